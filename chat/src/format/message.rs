//! One assistant message: what it says, and the parser that finds out while it is written.

use ballast_proto::v1::StructuralState;
use serde_json::{Map, Value};

use super::{
    CALL_BYTES_MAX, CallParser, Format,
    pieces::{Piece, TagScanner},
    text::{CharCount, ReasoningScanner, Utf8},
};
use crate::{
    control::{ControlRole, Frame},
    structure::{Evidence, structural_state},
    tokenizer::Tokenizer,
};

/// In a message that came as text, what a tag weighs against the bytes around it: about as much as
/// an ordinary token, so that its structural state is nearly that of its tokens.
const TAG_WEIGHT_BYTES: usize = 4;

/// What one assistant message says.
#[derive(Clone, Debug, PartialEq)]
pub struct AssistantMessage {
    /// Text outside the calls, trimmed. A misplaced control tag stays visible in it.
    pub text: String,
    /// One per call that began, in order, malformed ones included.
    pub calls: Vec<ParsedCall>,
    /// Structural state of the whole message.
    pub state: StructuralState,
}

/// A tool call as the policy wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedCall {
    /// Name of the tool; empty when malformed.
    pub name: String,
    /// Arguments; empty when malformed.
    pub arguments: Map<String, Value>,
    /// The exact text of the call, without its tags.
    pub raw: String,
    /// Whether the call is unclosed, holds a control tag, is too long or too deep, or is not what
    /// its format says a call is.
    pub malformed: bool,
}

impl ParsedCall {
    /// The call that `parsed` (name, arguments) makes of `raw`.
    pub(crate) fn new(raw: String, parsed: Option<(String, Map<String, Value>)>) -> Self {
        match parsed.filter(|_| raw.len() <= CALL_BYTES_MAX) {
            Some((name, arguments)) => Self { name, arguments, raw, malformed: false },
            None => Self { name: String::new(), arguments: Map::new(), raw, malformed: true },
        }
    }
}

/// What became certain of a message. Nothing of it is ever taken back.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More of the text outside the calls. All of it, joined, is [`AssistantMessage::text`].
    Text(String),
    /// A call began and its name is known. A call that is malformed may never have this event.
    CallStarted {
        /// Number of the call in the message.
        index: usize,
        /// Name of the tool.
        name: String,
    },
    /// More of a call's arguments as JSON. All of it, joined, is an object equal to the arguments
    /// of a well-formed call; of a malformed one it is as much as was written.
    Arguments {
        /// Number of the call in the message.
        index: usize,
        /// JSON text.
        delta: String,
    },
    /// A call ended, well or not; its name is that of its `CallStarted` unless it is malformed.
    CallFinished {
        /// Number of the call in the message.
        index: usize,
        /// The whole call.
        call: ParsedCall,
    },
}

/// Reads one assistant message while it is written, from tokens or from text.
#[derive(Debug)]
pub struct MessageParser {
    frame: Frame,
    parser: Box<dyn CallParser>,
    scanner: TagScanner,
    /// A tag that ends the message unless something follows it, and what it weighs.
    held_end: Option<(ControlRole, usize)>,
    ended: bool,
    utf8: Utf8,
    reasoning: ReasoningScanner,
    chars: CharCount,
    control: usize,
    total: usize,
    text: String,
    calls: Vec<ParsedCall>,
}

impl MessageParser {
    /// At the start of a message that comes as text, in which the tags of the format's usual
    /// [`Frame`] are spelled.
    #[must_use]
    pub fn new(format: Format, tools: &[Value]) -> Self {
        Self::framed(format, format.rules().frames()[0], tools)
    }

    /// At the start of a message that comes as tokens of `tokenizer`.
    #[must_use]
    pub fn of_tokens(tokenizer: &Tokenizer, tools: &[Value]) -> Self {
        Self::framed(tokenizer.format(), tokenizer.control().frame(), tools)
    }

    fn framed(format: Format, frame: Frame, tools: &[Value]) -> Self {
        Self {
            frame,
            parser: format.rules().parser(tools),
            scanner: TagScanner::new(frame),
            held_end: None,
            ended: false,
            utf8: Utf8::default(),
            reasoning: ReasoningScanner::default(),
            chars: CharCount::default(),
            control: 0,
            total: 0,
            text: String::new(),
            calls: Vec::new(),
        }
    }

    /// Takes the next token. Every id is accepted; one outside the vocabulary has no text.
    pub fn push_token(&mut self, id: u32, tokenizer: &Tokenizer) -> Vec<Event> {
        let mut events = Vec::new();
        let control = tokenizer.control();
        self.release_end(&mut events);
        if let Some(role) = control.tag(id) {
            self.tag(role, 1, &mut events);
        } else {
            self.total += 1;
            self.control += usize::from(control.id(ControlRole::CallOpener) == Some(id));
            self.push_bytes(tokenizer.token_bytes(id), &mut events);
        }
        self.absorb(&events);
        events
    }

    /// Takes more text, in which tags are spelled; it may be cut anywhere, inside a tag or a
    /// character too. Do not mix it with tokens.
    pub fn push_text(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for piece in self.scanner.push(bytes) {
            self.release_end(&mut events);
            match piece {
                Piece::Tag(role) => self.tag(role, TAG_WEIGHT_BYTES, &mut events),
                Piece::Text(bytes) => {
                    self.total += bytes.len();
                    self.push_bytes(&bytes, &mut events);
                }
            }
        }
        self.absorb(&events);
        events
    }

    /// The message ends here: the last events, and the message as a whole.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Event>, AssistantMessage) {
        let mut events = Vec::new();
        let rest = self.scanner.finish();
        let calls_end_nothing =
            matches!(self.held_end, Some((ControlRole::CallsEnd, _))) && !self.parser.has_calls();
        if !rest.is_empty() || calls_end_nothing {
            self.release_end(&mut events);
        }
        self.total += rest.len();
        self.push_bytes(&rest, &mut events);
        self.end_text(&mut events);
        self.parser.finish(&mut events);
        self.absorb(&events);
        let evidence = Evidence {
            calls: &self.calls,
            misplaced: self.parser.is_misplaced(),
            text_chars: self.chars.chars(),
            control: self.control,
            total: self.total,
        };
        let state = structural_state(&evidence);
        (events, AssistantMessage { text: self.text, calls: self.calls, state })
    }

    /// The control tokens that may come next.
    pub(crate) fn allowed(&self) -> &'static [ControlRole] {
        if self.ended { &[] } else { self.parser.allowed() }
    }

    /// A stop tag is held until it is known whether the message ends with it. One at the end is no
    /// part of the message; only one is.
    fn tag(&mut self, role: ControlRole, weight: usize, events: &mut Vec<Event>) {
        use ControlRole::{CallsEnd, DocumentEnd, MessageEnd};
        self.ended |= [MessageEnd, CallsEnd, DocumentEnd].contains(&role);
        if [MessageEnd, CallsEnd].contains(&role) {
            self.held_end = Some((role, weight));
        } else {
            self.place(role, weight, events);
        }
    }

    /// Something follows the held stop tag, so it is misplaced.
    fn release_end(&mut self, events: &mut Vec<Event>) {
        if let Some((role, weight)) = self.held_end.take() {
            self.place(role, weight, events);
        }
    }

    fn place(&mut self, role: ControlRole, weight: usize, events: &mut Vec<Event>) {
        self.control += weight;
        self.total += weight;
        self.end_text(events);
        self.parser.tag(role, self.frame.spelling(role), events);
    }

    fn push_bytes(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.push(bytes, &mut text);
        self.say(&text, events);
    }

    /// Nothing follows that could complete a character or a `</think>`.
    fn end_text(&mut self, events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.say(&text, events);
        self.reasoning = ReasoningScanner::default();
    }

    fn say(&mut self, text: &str, events: &mut Vec<Event>) {
        self.chars.push(text);
        let mut rest = text;
        while let Some(end) = self.reasoning.read(rest) {
            self.parser.text(&rest[..end], events);
            self.parser.reasoning_ended(events);
            rest = &rest[end..];
        }
        self.parser.text(rest, events);
    }

    fn absorb(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Text(text) => self.text.push_str(text),
                Event::CallFinished { call, .. } => self.calls.push(call.clone()),
                Event::CallStarted { .. } | Event::Arguments { .. } => {}
            }
        }
    }
}

/// Parses sampled ids in the tokenizer's format, with or without the trailing `<|im_end|>`. Every
/// sequence of ids is accepted, ids outside the vocabulary included.
#[must_use]
pub fn parse_message(tokenizer: &Tokenizer, ids: &[u32]) -> AssistantMessage {
    parse_message_with_tools(tokenizer, ids, &[])
}

/// The same, with the definitions of the tools that may be called: in the Qwen XML format they say
/// what type a value has.
#[must_use]
pub fn parse_message_with_tools(
    tokenizer: &Tokenizer,
    ids: &[u32],
    tools: &[Value],
) -> AssistantMessage {
    let mut parser = MessageParser::of_tokens(tokenizer, tools);
    for id in ids {
        parser.push_token(*id, tokenizer);
    }
    parser.finish().1
}
