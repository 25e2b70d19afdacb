//! The Pythonic format: a message that is a list of calls with keyword arguments.
//!
//! ```text
//! [product(name="lamp"), customer(name='anna', fields=["balance"])]
//! ```
//! A message is a list of calls if it begins with `[`, a name and `(`; until then it is held back.
//! What follows reasoning, behind its `</think>`, is read like a message of its own. Names are
//! letters, digits, `_`, `.` and `-`, the last because tools may be named so. Values are Python
//! literals. The list stands alone: other text before it makes it text, and text after it, or no `]`
//! at the end, is misplaced. There are no tags of calls, so any tag inside the message is misplaced.
//!
//! The `pythonic` parser of vLLM takes nothing for calls unless all of the message is one list, with
//! no white space before it and no `.` or `-` in a name. It takes `true` and `null`, sets, and
//! numbers with a base, which are malformed here.

use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, NAME_BYTES_MAX, Span, ToolCallFormat,
    python_call::{self, PythonCall, is_name},
    text::{REASONING_END, TrimmedText},
};
use crate::control::{
    ControlRole::{self, MessageEnd},
    Frame,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Pythonic;

impl ToolCallFormat for Pythonic {
    fn name(&self) -> &'static str {
        "pythonic"
    }

    fn frames(&self) -> &'static [Frame] {
        &[Frame::ChatMl, Frame::Llama3]
    }

    fn opener(&self) -> &'static str {
        ""
    }

    fn required(&self) -> &'static [ControlRole] {
        &[]
    }

    fn render(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<Span>, Inexpressible> {
        let cannot = |what| Inexpressible { format: self.name(), what };
        if calls.is_empty() {
            return Ok(vec![Span::Text(text.to_owned())]);
        }
        let reasoning = match text.trim_end() {
            "" => String::new(),
            text if text.ends_with(REASONING_END) => format!("{text}\n\n"),
            _ => return Err(cannot("text other than reasoning beside calls".to_owned())),
        };
        let calls: Result<Vec<_>, _> =
            calls.iter().map(|(name, arguments)| python_call::write(name, arguments)).collect();
        Ok(vec![Span::Text(format!("{reasoning}[{}]", calls.map_err(cannot)?.join(", ")))])
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
    /// After `[` or a comma: what stands there so far, perhaps the name of a call.
    Name(String),
    /// Inside the parentheses of a call.
    Call(Box<PythonCall>),
    /// After a call.
    AfterCall,
    /// After the list.
    Closed,
    /// Text.
    Text,
}

impl Parser {
    fn push(&mut self, c: char, events: &mut Vec<Event>) {
        match &mut self.state {
            State::AfterCall | State::Closed if c.is_whitespace() => {}
            State::Start if c.is_whitespace() => {
                self.outside.push(c.encode_utf8(&mut [0; 4]), events);
            }
            State::Start if c == '[' => self.state = State::Name("[".to_owned()),
            State::AfterCall if c == ',' => self.state = State::Name(",".to_owned()),
            State::AfterCall if c == ']' => self.state = State::Closed,
            State::Name(held) => {
                held.push(c);
                self.name_grew(events);
            }
            State::Call(call) => {
                if call.push(c, self.calls - 1, events) {
                    self.end_call(true, events);
                }
            }
            State::Start | State::AfterCall | State::Closed | State::Text => {
                self.text_begins(c.encode_utf8(&mut [0; 4]), events);
            }
        }
    }

    fn name_grew(&mut self, events: &mut Vec<Event>) {
        let State::Name(held) = &mut self.state else { return };
        // The first character is the bracket or comma before the name.
        let name = held[1..].trim_start();
        if let Some(name) = name.strip_suffix('(').filter(|name| is_name(name)) {
            let name = name.to_owned();
            events.push(Event::CallStarted { index: self.calls, name: name.clone() });
            self.calls += 1;
            self.state = State::Call(Box::new(PythonCall::new(name)));
        } else if name == "]" && self.calls > 0 {
            self.state = State::Closed;
        } else if held.len() >= NAME_BYTES_MAX || !(name.is_empty() || is_name(name)) {
            let held = std::mem::take(held);
            self.text_begins(&held, events);
        }
    }

    /// What was taken for calls goes on as text.
    fn text_begins(&mut self, text: &str, events: &mut Vec<Event>) {
        self.misplaced |= self.calls > 0;
        self.state = State::Text;
        self.outside.push(text, events);
    }

    fn end_call(&mut self, closed: bool, events: &mut Vec<Event>) {
        if let State::Call(call) = std::mem::replace(&mut self.state, State::AfterCall) {
            events.push(call.finish(closed, self.calls - 1));
        }
    }
}

impl CallParser for Parser {
    fn tag(&mut self, _role: ControlRole, name: &str, events: &mut Vec<Event>) {
        self.misplaced = true;
        match &mut self.state {
            State::Call(call) => {
                call.spoil();
                self.text(name, events);
            }
            State::Name(held) => {
                let held = std::mem::take(held) + name;
                self.text_begins(&held, events);
            }
            _ => self.text_begins(name, events),
        }
    }

    fn text(&mut self, text: &str, events: &mut Vec<Event>) {
        for (at, c) in text.char_indices() {
            if matches!(self.state, State::Text) {
                self.outside.push(&text[at..], events);
                return;
            }
            self.push(c, events);
        }
    }

    fn reasoning_ended(&mut self, _events: &mut Vec<Event>) {
        if self.calls == 0 {
            self.state = State::Start;
        }
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        match &mut self.state {
            State::Call(_) => {
                self.misplaced = true;
                self.end_call(false, events);
            }
            State::Name(held) => {
                let held = std::mem::take(held);
                self.text_begins(&held, events);
            }
            State::AfterCall => self.misplaced = true,
            State::Start | State::Closed | State::Text => {}
        }
    }

    fn has_calls(&self) -> bool {
        self.calls > 0
    }

    fn is_misplaced(&self) -> bool {
        self.misplaced
    }

    fn allowed(&self) -> &'static [ControlRole] {
        match self.state {
            State::Closed | State::Text => &[MessageEnd],
            State::Start if self.outside.has_begun() => &[MessageEnd],
            State::Start | State::Name(_) | State::Call(_) | State::AfterCall => &[],
        }
    }
}
