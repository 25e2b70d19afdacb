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
    #[error("the chat template does not keep what it wrote: {0}")]
    NotPreserving(Box<PrefixBreak>),
    /// A message of that index is not what it has to be.
    #[error("message {index} is not {wanted}")]
    Message {
        /// Its index in the conversation, from 0.
        index: usize,
        /// What it has to be.
        wanted: &'static str,
    },
}
