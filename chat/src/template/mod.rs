//! Hugging Face chat templates: how a conversation becomes the text a model was trained on.
//!
//! Owns: finding a checkpoint's template, rendering it as `transformers` does, the assistant's
//! spans, token ids in which only the template writes control tokens, and the check that a
//! conversation which grows keeps its beginning.
//! Does not know: how calls are parsed, or what the policy samples.
//! Limits: a template comes with a checkpoint and runs with bounded steps, recursion, input and
//! output. It is still a program that can ask for memory (`x ~ x` in a loop doubles a text), so a
//! checkpoint is to be trusted as far as its weights are.
//! Where it differs from `transformers`: iterating over none yields nothing, values of different
//! kinds can be compared, and `~` writes floats beyond 1e16 or below 1e-4 in its own way.

mod assistant;
mod builtin;
mod chat;
mod checkpoint;
mod controls;
mod encode;
mod engine;
mod error;
mod generation;
mod marks;
mod prefix;
mod python;
mod strftime;
mod tojson;
mod value;

pub use builtin::{CHAT_TEMPLATE, tokenizer_config_json};
pub(crate) use chat::Texts;
pub use chat::{ChatTemplate, Conversation, Rendered};
pub use checkpoint::TemplateFiles;
pub use encode::{EncodedConversation, TemplateEncoder};
pub use error::TemplateError;
pub(crate) use marks::Stripped;
pub use prefix::{PrefixBreak, PrefixReport};
pub use strftime::Clock;

/// Largest source of a template.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Largest conversation, and largest text a template may make of it.
const MAX_PROMPT_BYTES: usize = 8 << 20;
/// Deepest nesting of a message or a tool definition; JSON readers stop there as well.
const MAX_DEPTH: usize = 128;
/// Steps of the engine that every conversation may take.
const STEPS_BASE: u64 = 50_000;
/// More steps for each message, tool and document. Real templates take some hundreds.
const STEPS_PER_ITEM: u64 = 2_000;
/// Most steps of all. A single step can be slow: one over nested slices takes as long as they are
/// deep.
const STEPS_MAX: u64 = 1_000_000;
/// Stack of the engine, of which only what is used becomes memory. Measured: an expression takes
/// at most 512 bytes of stack per byte of source, a nested value 256 bytes for every 6 steps.
const STACK_BYTES: usize = 256 << 20;
/// Nested macros and loops.
const RECURSION_MAX: usize = 64;
