//! The Llama 3 format: a message that is a call is bare JSON.
//!
//! ```text
//! {"name": "product", "parameters": {"name": "lamp"}}; {"name": "customer", "parameters": {}}
//! ```
//! What begins like this is held back until it shows what it is. It is a call if it has a string
//! `name` and the key `parameters`, or if the message ends inside it and it has the name; anything
//! else is an answer in JSON. After `<|python_tag|>`, which may follow a text, everything is a call.
//! What follows reasoning, behind its `</think>`, is read like a message of its own.
//! Between calls stand white space and semicolons; other text after a call is misplaced. The key
//! `arguments` may stand in place of `parameters`. `<|eom_id|>` in place of `<|eot_id|>` ends a
//! message with calls; after a text it is misplaced.
//!
//! The `llama3_json` parser of vLLM takes any object with a name and parameters for a call, also in
//! prose, in lists and behind commas. Here that is an answer that holds JSON.

use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, ParsedCall, Span, ToolCallFormat,
    json_call::{self, JsonCall},
    text::TrimmedText,
};
use crate::control::{
    ControlRole::{self, CallOpen, CallOpener, CallsEnd, MessageEnd},
    Frame,
};

/// The key of the arguments, and the one that models write in its place.
const ARGUMENTS: [&str; 2] = ["parameters", "arguments"];

/// What separates two calls.
const SEPARATOR: &str = "; ";

/// See the module.
#[derive(Debug)]
pub(crate) struct Llama3;

impl ToolCallFormat for Llama3 {
    fn name(&self) -> &'static str {
        "llama3"
    }

    fn frames(&self) -> &'static [Frame] {
        &[Frame::Llama3]
    }

    fn opener(&self) -> &'static str {
        "{\""
    }

    fn required(&self) -> &'static [ControlRole] {
        &[]
    }

    fn render(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<Span>, Inexpressible> {
        let mut spans = vec![Span::Text(text.to_owned())];
        if !calls.is_empty() {
            if !text.is_empty() {
                spans.push(Span::Tag(CallOpen));
            }
            let write = |call: &(&str, _)| json_call::write(call.0, ARGUMENTS[0], call.1);
            let objects: Vec<_> = calls.iter().map(write).collect();
            spans.push(Span::Text(objects.join(SEPARATOR)));
        }
        Ok(spans)
    }

    fn parser(&self, _tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(Parser::default())
    }
}

#[derive(Debug, Default)]
struct Parser {
    outside: TrimmedText,
    state: State,
    calls: usize,
    misplaced: bool,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing but reasoning and white space so far.
    #[default]
    Start,
    /// An object, perhaps a call.
    Object(Box<Object>),
    /// After a call; holds what separates it from the next.
    Between(String),
    /// Text.
    Text,
}

#[derive(Debug)]
struct Object {
    raw: String,
    call: JsonCall,
    /// Whether it is a call, well formed or not.
    certain: bool,
    holds_tag: bool,
}

impl Parser {
    fn begin(&mut self, certain: bool) {
        self.calls += usize::from(certain);
        let (raw, call) = (String::new(), JsonCall::new(&ARGUMENTS));
        self.state = State::Object(Box::new(Object { raw, call, certain, holds_tag: false }));
    }

    /// Takes text up to what may be the end of the object, and gives back the rest.
    fn feed_object<'a>(&mut self, text: &'a str, events: &mut Vec<Event>) -> &'a str {
        let State::Object(object) = &mut self.state else { return text };
        let end = text.find(['}', ']']).map_or(text.len(), |at| at + 1);
        object.raw.push_str(&text[..end]);
        let scanner = &mut object.call.scanner;
        scanner.advance(&object.raw);
        if !object.certain && scanner.name().is_some() && scanner.has_arguments_key() {
            object.certain = true;
            self.calls += 1;
        }
        if scanner.is_closed() {
            self.end_object(true, events);
        } else if object.certain {
            object.call.emit(&object.raw, self.calls - 1, events);
        } else if scanner.is_broken() {
            self.end_object(false, events);
        }
        &text[end..]
    }

    fn end_object(&mut self, closed: bool, events: &mut Vec<Event>) {
        if !matches!(self.state, State::Object(_)) {
            return;
        }
        let State::Object(mut object) = std::mem::take(&mut self.state) else { return };
        let scanner = &object.call.scanner;
        let is_cut_off = !closed && !scanner.is_broken() && scanner.name().is_some();
        if !object.certain && !is_cut_off {
            self.outside.push(&object.raw, events);
            self.state = State::Text;
            return;
        }
        self.calls += usize::from(!object.certain);
        let index = self.calls - 1;
        object.call.emit(&object.raw, index, events);
        let well_delimited = closed && !object.holds_tag;
        let parsed = if well_delimited { object.call.read(&object.raw) } else { None };
        events.push(Event::CallFinished { index, call: ParsedCall::new(object.raw, parsed) });
        self.state = State::Between(String::new());
    }
}

impl CallParser for Parser {
    fn tag(&mut self, role: ControlRole, name: &str, events: &mut Vec<Event>) {
        if role == CallOpen {
            self.end_object(false, events);
            self.begin(true);
            return;
        }
        self.misplaced = true;
        if let State::Object(object) = &mut self.state {
            object.holds_tag = true;
        }
        self.text(name, events);
    }

    fn text(&mut self, mut text: &str, events: &mut Vec<Event>) {
        while !text.is_empty() {
            text = match &mut self.state {
                State::Start => {
                    let rest = text.trim_start();
                    self.outside.push(&text[..text.len() - rest.len()], events);
                    if rest.starts_with('{') {
                        self.begin(false);
                    } else if !rest.is_empty() {
                        self.state = State::Text;
                    }
                    rest
                }
                State::Between(separators) => {
                    let rest = text.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
                    separators.push_str(&text[..text.len() - rest.len()]);
                    if rest.starts_with('{') {
                        self.begin(true);
                    } else if !rest.is_empty() {
                        self.outside.push(separators, events);
                        self.misplaced = true;
                        self.state = State::Text;
                    }
                    rest
                }
                State::Object(_) => self.feed_object(text, events),
                State::Text => {
                    self.outside.push(text, events);
                    ""
                }
            };
        }
    }

    fn reasoning_ended(&mut self, events: &mut Vec<Event>) {
        match &self.state {
            _ if self.calls > 0 => {}
            // Not yet known to be a call: a string of it may hold the tag, and nothing else may.
            State::Object(object) if object.call.scanner.is_in_string() => {}
            State::Object(object) => {
                self.outside.push(&object.raw, events);
                self.state = State::Start;
            }
            _ => self.state = State::Start,
        }
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        self.end_object(false, events);
    }

    fn has_calls(&self) -> bool {
        match &self.state {
            // Held back, and a call if the message ends here.
            State::Object(object) => self.calls > 0 || object.call.scanner.name().is_some(),
            _ => self.calls > 0,
        }
    }

    fn is_misplaced(&self) -> bool {
        self.misplaced
    }

    fn allowed(&self) -> &'static [ControlRole] {
        match &self.state {
            State::Start if self.outside.has_begun() => &[MessageEnd, CallOpen, CallOpener],
            State::Start => &[CallOpen, CallOpener],
            State::Object(_) => &[CallOpener],
            State::Between(_) => &[MessageEnd, CallsEnd, CallOpener],
            State::Text => &[MessageEnd, CallOpen],
        }
    }
}
