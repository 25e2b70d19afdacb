//! Conversations of episodes to tokens, turn by turn, as the checkpoint's chat template writes them.
//!
//! A prompt ends with the *header* of the message to come, the template's generation prompt. Of the
//! message itself the template is asked for nothing: its tokens are those the policy sampled. What
//! the policy reads next is what the template writes behind the token that ends that message: the
//! *trailer*, the results of the calls, and the header again.
//!
//! Invariants: what the template wrote before a message stays as it was, or the conversation is
//! refused, so that token ids only ever grow; only the template writes control tokens; what is
//! rendered depends on the conversation alone, so there is no clock in it.

mod dialogue;
mod probe;

use std::{fmt, sync::Arc};

use ballast_proto::v1::Role;
use serde_json::{Map, Value};

pub use self::dialogue::{Continuation, Dialogue, split_reasoning};
use crate::{
    control::ControlRole,
    template::{ChatTemplate, Conversation, TemplateEncoder, TemplateError, TemplateFiles},
    tokenizer::Tokenizer,
};

/// Key of config.json with variables that every conversation is rendered with.
const VARIABLES_KEY: &str = "chat_template_kwargs";

/// The tokens of one message that the policy did not write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who says it.
    pub role: Role,
    /// `[T]` token ids, template tokens included.
    pub token_ids: Vec<u32>,
}

/// Writes the conversations of episodes. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Renderer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: TemplateEncoder,
    variables: Map<String, Value>,
    /// What the template ends every prompt with, and its tokens.
    header: String,
    header_ids: Vec<u32>,
    remark: Option<String>,
    built_in: bool,
}

impl Renderer {
    /// The renderer of a checkpoint: with its own template, or the built-in one where it has none,
    /// and with the variables that `chat_template_kwargs` in its config.json gives.
    ///
    /// # Errors
    /// As [`Renderer::new`], and when a file cannot be understood.
    pub fn of_checkpoint(
        tokenizer: Tokenizer,
        files: &TemplateFiles,
        config_json: &[u8],
    ) -> Result<Self, TemplateError> {
        let variables = template_variables(config_json)?;
        match ChatTemplate::of_files(files, None)? {
            Some(template) => Self::checked(template, tokenizer, variables, false),
            None => Self::built_in(tokenizer, variables),
        }
    }

    /// A renderer with the built-in template.
    ///
    /// # Errors
    /// When the tokenizer cannot keep text and tags apart, or there are variables.
    pub fn built_in(
        tokenizer: Tokenizer,
        variables: Map<String, Value>,
    ) -> Result<Self, TemplateError> {
        Self::checked(ChatTemplate::built_in(&tokenizer), tokenizer, variables, true)
    }

    /// A renderer with this template.
    ///
    /// # Errors
    /// When episodes cannot be told with it: a conversation with calls and results does not go
    /// through, its beginning does not stay, or its calls are not in the tokenizer's format.
    pub fn new(
        template: ChatTemplate,
        tokenizer: Tokenizer,
        variables: Map<String, Value>,
    ) -> Result<Self, TemplateError> {
        Self::checked(template, tokenizer, variables, false)
    }

    fn checked(
        template: ChatTemplate,
        tokenizer: Tokenizer,
        variables: Map<String, Value>,
        built_in: bool,
    ) -> Result<Self, TemplateError> {
        template.check_variables(&variables)?;
        let encoder = TemplateEncoder::new(template, tokenizer)?;
        let (header, header_ids) = header(&encoder, &variables)?;
        let inner = Inner { encoder, variables, header, header_ids, remark: None, built_in };
        let mut renderer = Self { inner: Arc::new(inner) };
        let remark = probe::check(&renderer)?;
        if let Some(inner) = Arc::get_mut(&mut renderer.inner) {
            inner.remark = remark;
        }
        Ok(renderer)
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        self.inner.encoder.tokenizer()
    }

    /// Whether the template is the built-in one.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.inner.built_in
    }

    /// What a person should know of the template, although episodes can be told with it.
    #[must_use]
    pub fn remark(&self) -> Option<&str> {
        self.inner.remark.as_deref()
    }

    /// What the policy continues: `<|im_start|>assistant\n`, for example. No loss.
    #[must_use]
    pub fn assistant_header(&self) -> &[u32] {
        &self.inner.header_ids
    }

    /// Begins a conversation with a request, and gives back its messages up to the first header.
    ///
    /// # Errors
    /// When the template or the tokenizer refuses it.
    pub fn open(
        &self,
        tools: &[Value],
        request: &str,
    ) -> Result<(Dialogue, Vec<Segment>), TemplateError> {
        let (dialogue, ids) = Dialogue::open(self.clone(), tools, request)?;
        Ok((dialogue, self.segments(&ids)))
    }

    /// One segment for each message. What stands before the first belongs to it.
    fn segments(&self, ids: &[u32]) -> Vec<Segment> {
        let start = self.tokenizer().control().im_start;
        let mut starts: Vec<_> = (1..ids.len()).filter(|at| ids[*at] == start).collect();
        let has_begun = ids.first() == Some(&start);
        if !has_begun && !starts.is_empty() {
            starts.remove(0);
        }
        let (mut segments, mut from) = (Vec::new(), 0);
        for end in starts.into_iter().chain([ids.len()]).filter(|end| *end > 0) {
            let token_ids = ids[from..end].to_vec();
            segments.push(Segment { role: self.role(&token_ids), token_ids });
            from = end;
        }
        segments
    }

    /// Who says a message, by its header.
    fn role(&self, message: &[u32]) -> Role {
        let control = self.tokenizer().control();
        let start = message.iter().position(|id| *id == control.im_start).map_or(0, |at| at + 1);
        let header_end = control.id(ControlRole::HeaderEnd);
        let header = message[start..].iter().copied().take_while(|id| Some(*id) != header_end);
        // A name of a role is a few tokens at most.
        let header = self.tokenizer().decode(&header.take(8).collect::<Vec<_>>());
        match header.split_whitespace().next() {
            Some("system" | "developer") => Role::System,
            _ => Role::User,
        }
    }
}

impl fmt::Debug for Renderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { encoder, variables, built_in, .. } = &*self.inner;
        f.debug_struct("Renderer")
            .field("encoder", encoder)
            .field("variables", variables)
            .field("built_in", built_in)
            .finish_non_exhaustive()
    }
}

/// What the template adds for the message to come.
fn header(
    encoder: &TemplateEncoder,
    variables: &Map<String, Value>,
) -> Result<(String, Vec<u32>), TemplateError> {
    let (messages, tools) = probe::question();
    let render = |add_generation_prompt| {
        encoder.render(&Conversation {
            messages: &messages,
            tools: Some(&tools),
            documents: None,
            add_generation_prompt,
            extra: Some(variables),
        })
    };
    let (context, prompt) = (render(false)?, render(true)?);
    if !prompt.text.starts_with(&context.text) {
        return Err(encoder.unfit("writes a conversation otherwise when a message is to come"));
    }
    let ids = encoder.encode_part(&prompt, context.text.len()..prompt.text.len())?.token_ids;
    Ok((prompt.text[context.text.len()..].to_owned(), ids))
}

/// The variables that a config.json (`chat_template_kwargs`) renders every conversation with.
///
/// # Errors
/// They are no JSON object.
pub fn template_variables(config_json: &[u8]) -> Result<Map<String, Value>, TemplateError> {
    let mut config: Value = serde_json::from_slice(config_json).unwrap_or_default();
    match config.get_mut(VARIABLES_KEY).map(Value::take) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(variables)) => Ok(variables),
        Some(_) => Err(TemplateError::Config {
            file: "config.json".to_owned(),
            reason: format!("{VARIABLES_KEY} is no object of names and values"),
        }),
    }
}

#[cfg(test)]
mod tests;
