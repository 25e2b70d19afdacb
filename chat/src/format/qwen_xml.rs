//! The format of Qwen3-Coder: XML between `<tool_call>` and `</tool_call>`.
//!
//! ```text
//! <tool_call>
//! <function=product>
//! <parameter=name>
//! lamp
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//! A value is the text between its tags without one newline at each end; the tool's schema says
//! what type it has. A value cannot hold `</parameter>`, a name no angle bracket or newline. Only
//! `<tool_call>` and `</tool_call>` are tokens; the tags inside are ordinary text. Structural states
//! are those of the Hermes format.
//!
//! The `qwen3_coder` parser of vLLM also takes a function without those two tags, several of them
//! between the tags, and missing closing tags; here these are text or malformed. There, a value ends
//! at a `</function>` or `<parameter=` too; here it may hold them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, NAME_BYTES_MAX, Span, ToolCallFormat,
    block::{self, BlockParser, Body},
    growing::GrowingObject,
    schema::{Schemas, plain},
};
use crate::control::{
    ControlRole::{self, CallClose, CallOpen},
    Frame,
};

const FUNCTION_OPEN: &str = "<function=";
const FUNCTION_CLOSE: &str = "</function>";
const PARAMETER_OPEN: &str = "<parameter=";
const PARAMETER_CLOSE: &str = "</parameter>";

/// See the module.
#[derive(Debug)]
pub(crate) struct QwenXml;

impl ToolCallFormat for QwenXml {
    fn name(&self) -> &'static str {
        "qwen_xml"
    }

    fn frames(&self) -> &'static [Frame] {
        &[Frame::ChatMl]
    }

    fn opener(&self) -> &'static str {
        "</"
    }

    fn required(&self) -> &'static [ControlRole] {
        &[CallOpen, CallClose]
    }

    fn render(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<Span>, Inexpressible> {
        let bodies: Result<Vec<_>, _> =
            calls.iter().map(|(name, arguments)| render_body(name, arguments)).collect();
        let bodies = bodies.map_err(|what| Inexpressible { format: self.name(), what })?;
        Ok(block::render(text, bodies))
    }

    fn parser(&self, tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(BlockParser::new(XmlBody {
            schemas: Arc::new(Schemas::of(tools)),
            at: 0,
            place: Place::Function,
            name: String::new(),
            parameter: String::new(),
            searched: 0,
            arguments: GrowingObject::default(),
        }))
    }
}

fn render_body(name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
    let mut body = format!("\n{FUNCTION_OPEN}{}>\n", checked_name(name)?);
    for (name, value) in arguments {
        let mut text = plain(value);
        if text.contains(PARAMETER_CLOSE) {
            if value.is_string() {
                return Err(format!("the value of {name:?}, which holds {PARAMETER_CLOSE}"));
            }
            // In JSON it stands inside a string, where the slash may be escaped.
            text = text.replace(PARAMETER_CLOSE, "<\\/parameter>");
        }
        let name = checked_name(name)?;
        body += &format!("{PARAMETER_OPEN}{name}>\n{text}\n{PARAMETER_CLOSE}\n");
    }
    Ok(body + FUNCTION_CLOSE + "\n")
}

fn checked_name(name: &str) -> Result<&str, String> {
    if is_name(name) { Ok(name) } else { Err(format!("the name {name:?}")) }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() < NAME_BYTES_MAX && !name.contains(['<', '>', '\n'])
}

#[derive(Clone, Debug)]
struct XmlBody {
    schemas: Arc<Schemas>,
    /// How many bytes of the text are read.
    at: usize,
    place: Place,
    name: String,
    parameter: String,
    /// Up to where the end of the value was searched.
    searched: usize,
    arguments: GrowingObject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before `<function=`.
    Function,
    FunctionName,
    /// Before `<parameter=` or `</function>`.
    Parameter,
    ParameterName,
    Value,
    /// After `</function>`.
    Closed,
    Broken,
}

/// How a text compares to what should stand there.
enum Match {
    Yes,
    No,
    /// It is too short to say.
    Open,
}

impl XmlBody {
    /// One step ahead; none if it needs more text.
    fn step(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) -> Option<Place> {
        match self.place {
            Place::Function => self.expect(raw, &[(FUNCTION_OPEN, Place::FunctionName)]),
            Place::FunctionName => {
                let Some(name) = self.name(raw)? else { return Some(Place::Broken) };
                self.name.clone_from(&name);
                events.push(Event::CallStarted { index, name });
                Some(Place::Parameter)
            }
            Place::Parameter => {
                let next =
                    [(PARAMETER_OPEN, Place::ParameterName), (FUNCTION_CLOSE, Place::Closed)];
                let place = self.expect(raw, &next)?;
                if place == Place::Closed {
                    let delta = self.arguments.end().to_owned();
                    events.push(Event::Arguments { index, delta });
                }
                Some(place)
            }
            Place::ParameterName => {
                let Some(name) = self.name(raw)? else { return Some(Place::Broken) };
                self.parameter = name;
                self.searched = self.at;
                Some(Place::Value)
            }
            Place::Value => self.value(raw, index, events),
            Place::Closed => {
                self.skip_white(raw);
                (self.at < raw.len()).then_some(Place::Broken)
            }
            Place::Broken => None,
        }
    }

    /// Skips white space, then one of `choices`.
    fn expect(&mut self, raw: &str, choices: &[(&str, Place)]) -> Option<Place> {
        self.skip_white(raw);
        let rest = &raw[self.at..];
        let mut place = Some(Place::Broken);
        for (text, next) in choices {
            match compare(rest, text) {
                Match::Yes => {
                    self.at += text.len();
                    return Some(*next);
                }
                Match::Open => place = None,
                Match::No => {}
            }
        }
        place
    }

    fn skip_white(&mut self, raw: &str) {
        self.at = raw.len() - raw[self.at..].trim_start().len();
    }

    /// A name up to `>`; the inner none if it cannot become one.
    fn name(&mut self, raw: &str) -> Option<Option<String>> {
        let rest = &raw[self.at..];
        match rest.bytes().take(NAME_BYTES_MAX).position(|byte| byte == b'>') {
            Some(end) => {
                self.at += end + 1;
                Some(Some(rest[..end].to_owned()).filter(|name| is_name(name)))
            }
            None if rest.len() >= NAME_BYTES_MAX => Some(None),
            None => None,
        }
    }

    fn value(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) -> Option<Place> {
        let Some(end) = raw[self.searched..].find(PARAMETER_CLOSE) else {
            // Its beginning may stand at the end; one byte less than all of it does not fit.
            let mut searched = raw.len().saturating_sub(PARAMETER_CLOSE.len() - 1);
            while !raw.is_char_boundary(searched) {
                searched -= 1;
            }
            self.searched = searched.max(self.searched);
            return None;
        };
        let end = self.searched + end;
        let text = &raw[self.at..end];
        self.at = end + PARAMETER_CLOSE.len();
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let value = self.schemas.value(&self.name, &self.parameter, text);
        let Some(delta) = self.arguments.insert(&self.parameter, value) else {
            return Some(Place::Broken);
        };
        events.push(Event::Arguments { index, delta });
        Some(Place::Parameter)
    }
}

impl Body for XmlBody {
    fn advance(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) {
        while let Some(place) = self.step(raw, index, events) {
            self.place = place;
        }
    }

    fn is_complete(&self) -> bool {
        self.place == Place::Closed
    }

    fn finish(self, _raw: &str) -> Option<(String, Map<String, Value>)> {
        (self.place == Place::Closed).then(|| (self.name, self.arguments.into_entries()))
    }
}

fn compare(rest: &str, text: &str) -> Match {
    if rest.starts_with(text) {
        Match::Yes
    } else if text.starts_with(rest) {
        Match::Open
    } else {
        Match::No
    }
}
