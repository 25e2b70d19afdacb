//! Why a chat template cannot be loaded or used, in words for the person who wrote or chose it.

use std::path::PathBuf;

use super::prefix::PrefixBreak;
use crate::tokenizer::TokenizerError;

/// Why a chat template cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The checkpoint has no template.
    #[error(
        "{0} has no chat template; put one in chat_template.jinja or in `chat_template` of \
         tokenizer_config.json"
    )]
    Missing(PathBuf),
    /// A file says something that cannot be understood.
    #[error("{file}: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are templates, but none for this conversation.
    #[error(
        "the checkpoint has the chat templates {}, and none named `default`; name one so",
        .0.join(", ")
    )]
    NoDefault(Vec<String>),
    /// The template does not compile.
    #[error("{file} line {line}: {reason}")]
    Syntax {
        /// The template.
        file: String,
        /// Where, counted from 1.
        line: usize,
        /// What the compiler said.
        reason: String,
    },
    /// The template called `raise_exception`.
    #[error("{file} line {line}: the template refuses the conversation: {message}")]
    Raised {
        /// The template.
        file: String,
        /// Where, counted from 1.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// The template does something it cannot do with this conversation.
    #[error("{file} line {line}: {reason}")]
    Render {
        /// The template.
        file: String,
        /// Where, counted from 1.
        line: usize,
        /// What the engine said.
        reason: String,
    },
    /// The template takes too many steps.
    #[error(
        "{file}: gave up after {steps} steps; the template loops over far more than it is given"
    )]
    TooSlow {
        /// The template.
        file: String,
        /// The limit.
        steps: u64,
    },
    /// Something is larger than it may be.
    #[error("{what} is larger than {limit} bytes; {remedy}")]
    TooLarge {
        /// What it is.
        what: String,
        /// The limit.
        limit: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// A value is nested more deeply than anything a template or its reader can follow.
    #[error("{what} is nested more than {limit} levels deep; flatten it")]
    TooDeep {
        /// What it is.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// The template engine failed on its own.
    #[error("{file}: the template engine failed: {reason}; simplify the template")]
    Engine {
        /// The template.
        file: String,
        /// What it said.
        reason: String,
    },
    /// The tokenizer cannot encode what the template wrote, or cannot keep text and tags apart.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer has a control token whose rules of matching are not supported.
    #[error("the added token {token:?} of the tokenizer {reason}; correct its tokenizer.json")]
    ControlToken {
        /// How it is spelled.
        token: String,
        /// What about it.
        reason: &'static str,
    },
    /// The template changes what it wrote before, so a conversation cannot be continued.
    #[error(
        "{file} does not keep what it wrote, so that no conversation can go on turn by turn: \
         {broken}; correct the template or the variables it is given, or remove it to use the \
         built-in one"
    )]
    NotPreserving {
        /// The template.
        file: String,
        /// Where it changes.
        broken: Box<PrefixBreak>,
    },
    /// The template does not write what an episode needs.
    #[error("{file} {problem}; correct the template, or remove it to use the built-in one")]
    Unfit {
        /// The template.
        file: String,
        /// What it does not do.
        problem: String,
    },
    /// What the template writes as a tool call is none in the format that messages are read in.
    #[error(
        "{file} writes a call as {call:?}, which the {format} tool-call format does not read; {}",
        format_remedy(.readers)
    )]
    Format {
        /// The template.
        file: String,
        /// A call as it writes it.
        call: String,
        /// Name of the format.
        format: &'static str,
        /// Names of the formats that read it.
        readers: Vec<&'static str>,
    },
    /// A variable for the template that it does not know.
    #[error(
        "the chat template has no variable {name:?}, which model.template_variables or \
         chat_template_kwargs in config.json sets{}",
        suggestion_or_all(.suggestion, .known)
    )]
    Variable {
        /// The name.
        name: String,
        /// The variable that resembles it most, if any does.
        suggestion: Option<String>,
        /// What it knows.
        known: Vec<String>,
    },
    /// A message of that index is not what it has to be.
    #[error("message {index} is not {wanted}")]
    Message {
        /// Its index in the conversation, from 0.
        index: usize,
        /// What it has to be.
        wanted: &'static str,
    },
}

fn format_remedy(readers: &[&str]) -> String {
    if readers.is_empty() {
        return "correct the template, or remove it to use the built-in one".to_owned();
    }
    let readers = readers.join(" or ");
    format!("set model.tool_call_format, or tool_call_format in config.json, to {readers}")
}

fn suggestion_or_all(suggestion: &Option<String>, known: &[String]) -> String {
    match suggestion {
        Some(near) => format!("; did you mean {near:?}?"),
        None if known.is_empty() => "; it has none".to_owned(),
        None => format!("; it has {}", known.join(", ")),
    }
}
