//! Conversations to prompts, through the checkpoint's own chat template.

use std::{fs, path::Path};

use ballast_chat::{
    ChatTemplate, Conversation, TemplateEncoder, TemplateError, TemplateFiles, Tokenizer,
    template_variables,
};
use serde_json::{Map, Value};

use crate::weights::CONFIG_FILE;

/// Writes conversations as the model was trained to read them. A text of a user or a tool cannot
/// forge a control token: [`TemplateEncoder`] says what that covers.
#[derive(Debug)]
pub struct Prompter {
    encoder: TemplateEncoder,
    /// What its config.json renders every conversation with, unless a request says otherwise.
    variables: Map<String, Value>,
}

impl Prompter {
    /// The template of a checkpoint directory, or the built-in one where it has none.
    ///
    /// # Errors
    /// A template that cannot be used.
    pub fn open(directory: &Path, tokenizer: Tokenizer) -> Result<Self, TemplateError> {
        let template =
            ChatTemplate::of_files(&TemplateFiles::read(directory)?, Some(unix_seconds))?;
        let template = template.unwrap_or_else(|| ChatTemplate::built_in(&tokenizer));
        let config_json = fs::read(directory.join(CONFIG_FILE)).unwrap_or_default();
        Self::new(template, tokenizer, template_variables(&config_json)?)
    }

    /// A template for a tokenizer, and the variables of every conversation.
    ///
    /// # Errors
    /// The tokenizer matches control tokens by rules that are not supported, or the template asks for
    /// no such variable.
    pub fn new(
        template: ChatTemplate,
        tokenizer: Tokenizer,
        variables: Map<String, Value>,
    ) -> Result<Self, TemplateError> {
        template.check_variables(&variables)?;
        Ok(Self { encoder: TemplateEncoder::new(template, tokenizer)?, variables })
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
        let mut all = self.variables.clone();
        all.extend(variables.clone());
        let conversation = Conversation {
            messages,
            tools: (!tools.is_empty()).then_some(tools),
            documents: None,
            add_generation_prompt: true,
            extra: Some(&all),
        };
        Ok(self.encoder.encode(&conversation)?.token_ids)
    }
}

/// The clock of templates that write today's date.
fn unix_seconds() -> i64 {
    i64::try_from(super::http::unix_seconds()).unwrap_or(i64::MAX)
}
