//! The Llama 3 format: a message that is a call is bare JSON.
//!
//! ```text
//! {"name": "product", "parameters": {"name": "lamp"}}; {"name": "customer", "parameters": {}}
//! ```
//! What begins like this is held back until it shows what it is. It is a call if it has a string
//! `name` and the key `parameters`, or if the message ends inside it and it has the name; anything
//! else is an answer in JSON. After `<|python_tag|>`, which may follow a text, everything is a call.
//! Between calls stand white space and semicolons; other text after a call is misplaced.
//! `<|eom_id|>` in place of `<|eot_id|>` ends a message with calls; after a text it is misplaced.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, ParsedCall, Span, ToolCallFormat,
    json_call::JsonCall,
    text::{TrimmedText, Utf8},
};
use crate::{
    control::{
        ControlRole::{self, CallOpen, CallOpener, CallsEnd, MessageEnd},
        Frame,
    },
    json::python_json,
};

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
            let objects: Vec<_> = calls.iter().map(|(name, args)| object(name, args)).collect();
            spans.push(Span::Text(objects.join(SEPARATOR)));
        }
        Ok(spans)
    }

    fn parser(&self, _tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(Parser::default())
    }
}

fn object(name: &str, arguments: &Map<String, Value>) -> String {
    let name = python_json(&Value::from(name));
    let arguments = python_json(&Value::Object(arguments.clone()));
    format!("{{\"name\": {name}, \"parameters\": {arguments}}}")
}

#[derive(Debug, Default)]
struct Parser {
    utf8: Utf8,
    outside: TrimmedText,
    state: State,
    calls: usize,
    misplaced: bool,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing but white space so far.
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
        let (raw, call) = (String::new(), JsonCall::new("parameters"));
        self.state = State::Object(Box::new(Object { raw, call, certain, holds_tag: false }));
    }

    fn feed(&mut self, mut text: &str, events: &mut Vec<Event>) {
        while !text.is_empty() {
            text = match &mut self.state {
                State::Start => {
                    let rest = text.trim_start();
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
                        self.outside.push(separators.as_bytes(), events);
                        self.misplaced = true;
                        self.state = State::Text;
                    }
                    rest
                }
                State::Object(_) => self.feed_object(text, events),
                State::Text => {
                    self.outside.push(text.as_bytes(), events);
                    ""
                }
            };
        }
    }

    /// Gives back what stands after the object.
    fn feed_object<'a>(&mut self, text: &'a str, events: &mut Vec<Event>) -> &'a str {
        let State::Object(object) = &mut self.state else { return text };
        let before = object.raw.len();
        object.raw.push_str(text);
        let scanner = &mut object.call.scanner;
        scanner.advance(&object.raw, true);
        if !object.certain && scanner.name().is_some() && scanner.has_arguments_key() {
            object.certain = true;
            self.calls += 1;
        }
        if let Some(end) = scanner.closed_at() {
            object.raw.truncate(end);
            self.end_object(true, events);
            return &text[end - before..];
        }
        if object.certain {
            object.call.emit(&object.raw, self.calls - 1, events);
        } else if scanner.is_broken() {
            self.end_object(false, events);
        }
        ""
    }

    fn end_object(&mut self, closed: bool, events: &mut Vec<Event>) {
        if !matches!(self.state, State::Object(_)) {
            return;
        }
        let State::Object(mut object) = std::mem::take(&mut self.state) else { return };
        let scanner = &object.call.scanner;
        let is_cut_off = !closed && !scanner.is_broken() && scanner.name().is_some();
        if !object.certain && !is_cut_off {
            self.outside.push(object.raw.as_bytes(), events);
            self.state = State::Text;
            return;
        }
        self.calls += usize::from(!object.certain);
        let index = self.calls - 1;
        object.call.emit(&object.raw, index, events);
        let parsed = read(&object.raw).filter(|_| closed && !object.holds_tag);
        if let Some((name, arguments)) = &parsed {
            object.call.complete(name, arguments, index, events);
        }
        events.push(Event::CallFinished { index, call: ParsedCall::new(object.raw, parsed) });
        self.state = State::Between(String::new());
    }

    /// Nothing follows that could complete a character.
    fn flush(&mut self, events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.feed(&text, events);
    }
}

impl CallParser for Parser {
    fn tag(&mut self, role: ControlRole, name: &str, events: &mut Vec<Event>) {
        self.flush(events);
        if role == CallOpen {
            self.end_object(false, events);
            self.begin(true);
            return;
        }
        self.misplaced = true;
        if let State::Object(object) = &mut self.state {
            object.holds_tag = true;
        }
        self.feed(name, events);
    }

    fn text(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.push(bytes, &mut text);
        self.feed(&text, events);
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        self.flush(events);
        self.end_object(false, events);
        self.outside.finish(events);
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
            State::Start => &[CallOpen, CallOpener],
            State::Object(_) => &[CallOpener],
            State::Between(_) => &[MessageEnd, CallsEnd, CallOpener],
            State::Text => &[MessageEnd, CallOpen],
        }
    }
}

/// The name and the parameters, if `raw` is a call.
fn read(raw: &str) -> Option<(String, Map<String, Value>)> {
    #[derive(Deserialize)]
    struct Call {
        name: String,
        parameters: Map<String, Value>,
    }

    // `serde` would take an array for a call as well.
    let is_object = raw.trim_start().starts_with('{');
    let Call { name, parameters } = serde_json::from_str(raw).ok().filter(|_| is_object)?;
    if name.is_empty() { None } else { Some((name, parameters)) }
}
