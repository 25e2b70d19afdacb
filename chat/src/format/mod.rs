//! Tool-call formats: how an assistant message writes its calls, and how to read them again.
//!
//! Owns: the formats, each in its own file behind [`ToolCallFormat`], and the one parser that
//! serves sampled tokens and streamed text alike.
//! Does not know: which tools exist, what runs them, conversations.
//! Invariants: a message read in pieces is the message read at once, however it is cut; what a
//! parser emitted it never takes back; a call that does not parse keeps its text; no input makes a
//! parser panic, take more than linear time, or recurse deeper than [`DEPTH_MAX`].

mod block;
mod growing;
mod hermes;
mod json_call;
mod llama3;
mod message;
mod pieces;
mod python;
mod python_call;
mod pythonic;
mod qwen_xml;
mod schema;
mod text;

#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use serde_json::{Map, Value};

pub use self::message::{
    AssistantMessage, Event, MessageParser, ParsedCall, parse_message, parse_message_with_tools,
};
pub(crate) use self::text::REASONING_END;
use crate::control::{ControlRole, Frame};

/// How deep a call may nest, its own object and that of its arguments included; deeper makes it
/// malformed. It is the limit of `serde_json`, which reads the JSON formats; the others keep it too.
pub const DEPTH_MAX: usize = 127;

/// Length of a call's text from which on it is malformed, in bytes.
pub const CALL_BYTES_MAX: usize = 4 << 20;

/// Length of the names of functions and parameters from which on the formats that delimit them
/// without quotes take them for something else, in bytes. It bounds what a parser holds back.
pub const NAME_BYTES_MAX: usize = 256;

/// Similarity (Jaro-Winkler) from which on a known name is suggested for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.7;

/// A tool-call format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON in `<tool_call>` tags: Hermes, Qwen2.5, Qwen3.
    Hermes,
    /// Bare JSON messages: Llama 3.
    Llama3,
    /// XML in `<tool_call>` tags: Qwen3-Coder.
    QwenXml,
    /// `[f(a=1), g(b="x")]`: what ACEBench and BFCL prompts ask for.
    Pythonic,
}

/// A format name that nothing answers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown tool-call format {name:?}{}; use one of {}",
    .suggestion.map(|known| format!(" (did you mean {known:?}?)")).unwrap_or_default(),
    Format::ALL.map(Format::name).join(", ")
)]
pub struct UnknownFormat {
    /// What was asked for.
    pub name: String,
    /// The known name that resembles it most, if any does.
    pub suggestion: Option<&'static str>,
}

/// A call that a format has no way to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {format} tool-call format cannot write {what}; use the hermes or llama3 format")]
pub struct Inexpressible {
    /// Name of the format.
    pub format: &'static str,
    /// What cannot be written, and why.
    pub what: String,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Hermes, Self::Llama3, Self::QwenXml, Self::Pythonic];

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.rules().name()
    }

    /// A message that says `text` and makes `calls`, each as (name, arguments), without the token
    /// that ends it.
    ///
    /// # Errors
    /// The format cannot write this call. Hermes and Llama 3 can write every call.
    pub fn render(
        self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<String, Inexpressible> {
        let frame = self.rules().frames()[0];
        let spans = self.rules().render(text, calls)?;
        Ok(spans.iter().map(|span| span.spelling(frame)).collect())
    }

    /// The trait object behind the name.
    pub(crate) fn rules(self) -> &'static dyn ToolCallFormat {
        match self {
            Self::Hermes => &hermes::Hermes,
            Self::Llama3 => &llama3::Llama3,
            Self::QwenXml => &qwen_xml::QwenXml,
            Self::Pythonic => &pythonic::Pythonic,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        if let Some(format) = Self::ALL.into_iter().find(|format| format.name() == name) {
            return Ok(format);
        }
        let lowercase = name.to_lowercase();
        let similarity = |known: &str| strsim::jaro_winkler(&lowercase, known);
        let suggestion = Self::ALL
            .map(Self::name)
            .into_iter()
            .filter(|known| similarity(known) >= SUGGESTION_SIMILARITY_MIN)
            .max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        Err(UnknownFormat { name: name.to_owned(), suggestion })
    }
}

/// What tells one format from another.
pub(crate) trait ToolCallFormat: Sync {
    /// Its name in configurations.
    fn name(&self) -> &'static str;

    /// How the checkpoints that speak it may delimit messages, the usual way first.
    fn frames(&self) -> &'static [Frame];

    /// The ordinary token that every call holds; empty if there is none.
    fn opener(&self) -> &'static str;

    /// The control tokens it cannot do without, beside those that delimit messages.
    fn required(&self) -> &'static [ControlRole];

    /// A message without the token that ends it. Calls are (name, arguments).
    fn render(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<Span>, Inexpressible>;

    /// A parser at the start of a message. `tools` are the definitions of the tools that may be
    /// called; only a format whose values have no type of their own looks at them.
    fn parser(&self, tools: &[Value]) -> Box<dyn CallParser>;
}

/// Reads one message of a format, tag by tag and text by text. A tag counts where the tokenizer or
/// the tag scanner said so: letters that merely spell a tag are text here.
pub(crate) trait CallParser: fmt::Debug + Send + Sync {
    /// Takes a tag, spelled `name`.
    fn tag(&mut self, role: ControlRole, name: &str, events: &mut Vec<Event>);

    /// Takes text.
    fn text(&mut self, text: &str, events: &mut Vec<Event>);

    /// The text just taken ends with the `</think>` of reasoning. Whether that began with `<think>`
    /// is not asked, since the prompt may have begun it. A format whose calls stand at the start of
    /// a message takes what follows for that start, as long as there is no call.
    fn reasoning_ended(&mut self, _events: &mut Vec<Event>) {}

    /// The message ends here.
    fn finish(&mut self, events: &mut Vec<Event>);

    /// Whether a call began, finished or not.
    fn has_calls(&self) -> bool;

    /// Whether something stands where this format has no place for it.
    fn is_misplaced(&self) -> bool;

    /// The control tokens that may come next in a message of this format.
    fn allowed(&self) -> &'static [ControlRole];
}

/// A part of a rendered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    Tag(ControlRole),
    Text(String),
}

impl Span {
    /// As text.
    pub(crate) fn spelling(&self, frame: Frame) -> &str {
        match self {
            Self::Tag(role) => frame.spelling(*role),
            Self::Text(text) => text,
        }
    }
}

/// A Hermes call with its tags, as the template of the small model writes it.
#[must_use]
pub fn render_call(name: &str, arguments: &Map<String, Value>) -> String {
    format!("<tool_call>{}</tool_call>", hermes::body(name, arguments))
}
