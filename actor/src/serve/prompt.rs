//! Conversations to prompts, through the checkpoint's own chat template.

use std::path::Path;

use ballast_chat::{ChatTemplate, Conversation, TemplateEncoder, TemplateError, Tokenizer};
use serde_json::{Map, Value};

/// Writes conversations as the model was trained to read them. A text of a user or a tool cannot
/// forge a control token: [`TemplateEncoder`] says what that covers.
#[derive(Debug)]
pub struct Prompter {
    encoder: TemplateEncoder,
}

impl Prompter {
    /// The template of a checkpoint directory.
    ///
    /// # Errors
    /// It has none, or one that cannot be used.
    pub fn open(directory: &Path, tokenizer: Tokenizer) -> Result<Self, TemplateError> {
        Self::new(ChatTemplate::load(directory, Some(unix_seconds))?, tokenizer)
    }

    /// A template for a tokenizer.
    ///
    /// # Errors
    /// The tokenizer matches control tokens by rules that are not supported.
    pub fn new(template: ChatTemplate, tokenizer: Tokenizer) -> Result<Self, TemplateError> {
        Ok(Self { encoder: TemplateEncoder::new(template, tokenizer)? })
    }

    /// Token ids up to where the assistant begins to write. `variables` are further ones of the
    /// template, such as `enable_thinking`.
    ///
    /// # Errors
    /// The template or the tokenizer refuses the conversation.
    pub fn prompt(
        &self,
        messages: &[Value],
        tools: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<Vec<u32>, TemplateError> {
        let conversation = Conversation {
            messages,
            tools: (!tools.is_empty()).then_some(tools),
            documents: None,
            add_generation_prompt: true,
            extra: Some(variables),
        };
        Ok(self.encoder.encode(&conversation)?.token_ids)
    }
}

/// The clock of templates that write today's date.
fn unix_seconds() -> i64 {
    i64::try_from(super::http::unix_seconds()).unwrap_or(i64::MAX)
}
