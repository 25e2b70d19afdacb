//! A checkpoint's chat template, and the conversations it renders.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{
    checkpoint,
    controls::Controls,
    engine::Engine,
    error::TemplateError,
    marks::{Stripped, strip},
    strftime::Clock,
    value::Import,
};

/// The chat template of a checkpoint, compiled. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engines: BTreeMap<String, Engine>,
    special_tokens: Map<String, Json>,
}

/// What a template is given, in the shapes of the OpenAI API.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// Objects with `role`, `content`, `tool_calls` and so on. Arguments of calls are best given
    /// as objects; most templates take no text there.
    pub messages: &'a [Json],
    /// Tool definitions; none is not the same as an empty list.
    pub tools: Option<&'a [Json]>,
    /// Documents of retrieval: objects with `title` and `text`.
    pub documents: Option<&'a [Json]>,
    /// Whether to end with the header of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Further variables of the template, such as `enable_thinking`. Set by the operator: their
    /// texts are trusted.
    pub extra: Option<&'a Map<String, Json>>,
}

/// What a template wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of `text` inside `{% generation %}` blocks: what the assistant says.
    pub assistant_spans: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Reads the template of a checkpoint directory. Without a clock, a template finds no
    /// `strftime_now` and writes the date it was made with, if it can.
    ///
    /// # Errors
    /// When there is none, or it does not compile.
    pub fn load(dir: &Path, clock: Option<Clock>) -> Result<Self, TemplateError> {
        let found = checkpoint::find(dir)?;
        Self::compile(found.templates, found.special_tokens, clock)
    }

    /// A template from its source. `special_tokens` are what it may name: `bos_token` and so on.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn from_source(
        source: &str,
        special_tokens: Map<String, Json>,
        clock: Option<Clock>,
    ) -> Result<Self, TemplateError> {
        let template = ("chat template".to_owned(), source.to_owned());
        Self::compile(BTreeMap::from([("default".to_owned(), template)]), special_tokens, clock)
    }

    /// What the template writes for `conversation`.
    ///
    /// # Errors
    /// When the template raises, fails, or goes beyond its limits.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<Rendered, TemplateError> {
        let Stripped { text, spans, .. } = self.render_marked(conversation, None)?;
        Ok(Rendered { text, assistant_spans: spans })
    }

    /// Whether the template that renders `conversation` says what the assistant writes, with
    /// `{% generation %}` blocks.
    ///
    /// # Errors
    /// When there is no template for it.
    pub fn marks_assistant(&self, conversation: &Conversation<'_>) -> Result<bool, TemplateError> {
        Ok(self.choose(conversation.tools.is_some())?.marks_generation())
    }

    /// Renders with the texts of the conversation kept from forging any of `controls`.
    pub(super) fn render_marked(
        &self,
        conversation: &Conversation<'_>,
        controls: Option<&Controls>,
    ) -> Result<Stripped, TemplateError> {
        let engine = self.choose(conversation.tools.is_some())?;
        let mut import = Import::new(controls);
        let mut context = BTreeMap::new();
        for (name, json) in
            self.inner.special_tokens.iter().chain(conversation.extra.into_iter().flatten())
        {
            context.insert(name.as_str(), import.trusted(json)?);
        }
        context.insert("messages", import.messages(conversation.messages)?);
        context.insert("tools", import.list(conversation.tools)?);
        context.insert("documents", import.list(conversation.documents)?);
        context.insert("add_generation_prompt", conversation.add_generation_prompt.into());
        let lists = [Some(conversation.messages), conversation.tools, conversation.documents];
        let items = lists.into_iter().flatten().map(<[Json]>::len).sum();
        Ok(strip(&engine.render(Value::from_pairs(context), items)?))
    }

    fn compile(
        templates: BTreeMap<String, (String, String)>,
        special_tokens: Map<String, Json>,
        clock: Option<Clock>,
    ) -> Result<Self, TemplateError> {
        let engines = templates
            .into_iter()
            .map(|(name, (file, source))| Ok((name, Engine::compile(&file, &source, clock)?)));
        let engines = engines.collect::<Result<_, TemplateError>>()?;
        Ok(Self { inner: Arc::new(Inner { engines, special_tokens }) })
    }

    /// `tool_use` if there are tools and such a template, else `default`.
    fn choose(&self, with_tools: bool) -> Result<&Engine, TemplateError> {
        let engines = &self.inner.engines;
        let for_tools = if with_tools { engines.get("tool_use") } else { None };
        for_tools
            .or_else(|| engines.get("default"))
            .ok_or_else(|| TemplateError::NoDefault(engines.keys().cloned().collect()))
    }
}
