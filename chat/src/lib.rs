//! Messages to tokens and back.
//!
//! Owns: the tokenizer and its control tokens, the chat template, the tool-call formats, the
//! structural state of a message, and the training of the small model's tokenizer.
//! Does not know: which tools exist, how a token is sampled, torch, or the network.
//! Invariants: text from users and tools never becomes a control tag; a conversation rendered turn
//! by turn has the same token ids as one rendered at once; no token sequence makes a parser panic.

#![forbid(unsafe_code)]

mod control;
mod format;
mod grammar;
mod json;
mod render;
mod structure;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;
mod train;

pub use control::{ControlRole, ControlTokens, Frame};
pub use format::{
    AssistantMessage, CALL_BYTES_MAX, DEPTH_MAX, Event, Format, Inexpressible, MessageParser,
    NAME_BYTES_MAX, ParsedCall, UnknownFormat, parse_message, parse_message_with_tools,
    render_call,
};
pub use grammar::MessageGrammar;
pub use json::python_json;
pub use render::{Continuation, Dialogue, Renderer, Segment, split_reasoning, template_variables};
pub use template::{
    CHAT_TEMPLATE, ChatTemplate, Clock, Conversation, EncodedConversation, PrefixBreak,
    PrefixReport, Rendered, TemplateEncoder, TemplateError, TemplateFiles, tokenizer_config_json,
};
pub use tokenizer::{Tokenizer, TokenizerError};
pub use train::train_tokenizer;
