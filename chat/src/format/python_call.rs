//! A call as a Python expression: `name(argument=literal, ..)`.

use serde_json::{Map, Value};

use super::{Event, NAME_BYTES_MAX, ParsedCall, growing::GrowingObject, python};

/// Reads one call character by character, and emits each argument when it is complete.
#[derive(Debug, Default)]
pub(crate) struct PythonCall {
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

impl PythonCall {
    /// Right after the parenthesis.
    pub(crate) fn new(name: String) -> Self {
        let raw = name.clone() + "(";
        Self { argument_start: raw.len(), name, raw, ..Self::default() }
    }

    /// Takes a character of the call; whether it was the last.
    pub(crate) fn push(&mut self, c: char, index: usize, events: &mut Vec<Event>) -> bool {
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

    /// Something stands in it that makes it malformed.
    pub(crate) fn spoil(&mut self) {
        self.broken = true;
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

    /// The call ends here, whether or not its parenthesis came.
    pub(crate) fn finish(self, closed: bool, index: usize) -> Event {
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

/// A call as its expression; the error is what cannot be written.
pub(crate) fn write(name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
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

/// Whether a function or a parameter may be named so.
pub(crate) fn is_name(name: &str) -> bool {
    let begins_well = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
    begins_well && name.len() < NAME_BYTES_MAX && name.chars().all(is_name_char)
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-')
}
