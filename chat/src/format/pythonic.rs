//! The Pythonic format: a message that is a list of calls with keyword arguments.
//!
//! ```text
//! [product(name="lamp"), customer(name='anna', fields=["balance"])]
//! ```
//! A message is a list of calls if it begins with `[`, a name and `(`; until then it is held back.
//! Names are letters, digits, `_`, `.` and `-`, the last because tools may be named so. Values are
//! Python literals. The list stands alone: text after it, or no `]` at the end, is misplaced. There
//! are no tags of calls, so any tag inside the message is misplaced.

use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, NAME_BYTES_MAX, ParsedCall, Span, ToolCallFormat,
    growing::GrowingObject,
    python,
    text::{TrimmedText, Utf8},
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
        if !text.is_empty() {
            return Err(cannot("text beside calls".to_owned()));
        }
        let calls: Result<Vec<_>, _> =
            calls.iter().map(|(name, arguments)| render_call(name, arguments)).collect();
        Ok(vec![Span::Text(format!("[{}]", calls.map_err(cannot)?.join(", ")))])
    }

    fn parser(&self, _tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(Parser::default())
    }
}

fn render_call(name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
    let checked = |name: &str| match is_name(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("the name {name:?}")),
    };
    let mut text = checked(name)? + "(";
    for (index, (name, value)) in arguments.iter().enumerate() {
        text += if index == 0 { "" } else { ", " };
        text += &checked(name)?;
        text += "=";
        python::write(value, &mut text);
    }
    Ok(text + ")")
}

fn is_name(name: &str) -> bool {
    let begins_well = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
    begins_well && name.len() < NAME_BYTES_MAX && name.chars().all(is_name_char)
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-')
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
    /// After `[` or a comma: what stands there so far, perhaps the name of a call.
    Name(String),
    /// Inside the parentheses of a call.
    Call(Box<Call>),
    /// After a call.
    AfterCall,
    /// After the list.
    Closed,
    /// Text.
    Text,
}

#[derive(Debug, Default)]
struct Call {
    name: String,
    raw: String,
    /// Where in `raw` the argument begins.
    argument_start: usize,
    /// How many brackets are open inside the argument.
    depth: usize,
    lexer: Lexer,
    arguments: GrowingObject,
    broken: bool,
}

/// Tells strings from code.
#[derive(Debug, Default)]
enum Lexer {
    #[default]
    Code,
    /// After one quote, or after two: an empty string or the beginning of a triple quote.
    Opening { quote: char, quotes: u32 },
    /// Inside a string that ends after `quotes` quotes in a row, of which `run` came.
    String { quote: char, quotes: u32, run: u32, escaped: bool },
}

impl Lexer {
    /// Takes a character; whether it is code.
    fn push(&mut self, c: char) -> bool {
        match self {
            Self::Code if matches!(c, '"' | '\'') => *self = Self::Opening { quote: c, quotes: 1 },
            Self::Code => return true,
            Self::Opening { quote, quotes } if c == *quote => {
                let (quote, quotes) = (*quote, *quotes + 1);
                *self = if quotes == 3 {
                    Self::String { quote, quotes, run: 0, escaped: false }
                } else {
                    Self::Opening { quote, quotes }
                };
            }
            Self::Opening { quote, quotes: 1 } => {
                *self = Self::String { quote: *quote, quotes: 1, run: 0, escaped: c == '\\' };
            }
            Self::Opening { .. } => {
                *self = Self::Code;
                return true;
            }
            Self::String { quote, quotes, run, escaped } => {
                *run = if c == *quote && !*escaped { *run + 1 } else { 0 };
                *escaped = c == '\\' && !*escaped;
                if run == quotes {
                    *self = Self::Code;
                }
            }
        }
        false
    }
}

impl Call {
    fn new(name: String) -> Self {
        let raw = name.clone() + "(";
        Self { argument_start: raw.len(), name, raw, ..Self::default() }
    }

    /// Takes a character of the call; whether it was the last.
    fn push(&mut self, c: char, index: usize, events: &mut Vec<Event>) -> bool {
        self.raw.push(c);
        if !self.lexer.push(c) {
            return false;
        }
        match c {
            '(' | '[' | '{' => self.depth = self.depth.saturating_add(1),
            ')' | ',' if self.depth == 0 => {
                self.end_argument(c, index, events);
                return c == ')';
            }
            ')' | ']' | '}' => {
                self.broken |= self.depth == 0;
                self.depth = self.depth.saturating_sub(1);
            }
            _ => {}
        }
        false
    }

    /// An argument ended with `end`, a comma or a parenthesis.
    fn end_argument(&mut self, end: char, index: usize, events: &mut Vec<Event>) {
        let text = &self.raw[self.argument_start..self.raw.len() - 1];
        self.argument_start = self.raw.len();
        if self.broken {
            return;
        }
        let delta = if end == ')' && text.trim().is_empty() {
            // No argument, or a comma after the last.
            Some(String::new())
        } else {
            read_argument(text).and_then(|(name, value)| self.arguments.insert(name, value))
        };
        let Some(mut delta) = delta else {
            self.broken = true;
            return;
        };
        if end == ')' {
            delta += self.arguments.end();
        }
        events.push(Event::Arguments { index, delta });
    }

    fn finish(self, closed: bool, index: usize) -> Event {
        let parsed = (closed && !self.broken).then(|| (self.name, self.arguments.into_entries()));
        Event::CallFinished { index, call: ParsedCall::new(self.raw, parsed) }
    }
}

/// `name=literal`.
fn read_argument(text: &str) -> Option<(&str, Value)> {
    let (name, literal) = text.split_once('=')?;
    let name = name.trim();
    Some((name, python::read(literal)?)).filter(|_| is_name(name))
}

impl Parser {
    fn feed(&mut self, text: &str, events: &mut Vec<Event>) {
        for (at, c) in text.char_indices() {
            if matches!(self.state, State::Text) {
                self.outside.push(&text.as_bytes()[at..], events);
                return;
            }
            self.push(c, events);
        }
    }

    fn push(&mut self, c: char, events: &mut Vec<Event>) {
        match &mut self.state {
            State::Start | State::AfterCall | State::Closed if c.is_whitespace() => {}
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
            self.state = State::Call(Box::new(Call::new(name)));
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
        self.outside.push(text.as_bytes(), events);
    }

    fn end_call(&mut self, closed: bool, events: &mut Vec<Event>) {
        if let State::Call(call) = std::mem::replace(&mut self.state, State::AfterCall) {
            events.push(call.finish(closed, self.calls - 1));
        }
    }

    /// Nothing follows that could complete a character.
    fn flush(&mut self, events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.feed(&text, events);
    }
}

impl CallParser for Parser {
    fn tag(&mut self, _role: ControlRole, name: &str, events: &mut Vec<Event>) {
        self.flush(events);
        self.misplaced = true;
        match &mut self.state {
            State::Call(call) => {
                call.broken = true;
                self.feed(name, events);
            }
            State::Name(held) => {
                let held = std::mem::take(held) + name;
                self.text_begins(&held, events);
            }
            _ => self.text_begins(name, events),
        }
    }

    fn text(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.push(bytes, &mut text);
        self.feed(&text, events);
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        self.flush(events);
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
        self.outside.finish(events);
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
            State::Start | State::Name(_) | State::Call(_) | State::AfterCall => &[],
        }
    }
}
