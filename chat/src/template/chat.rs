//! A checkpoint's chat template, and the conversations it renders.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    sync::Arc,
};

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{
    builtin,
    checkpoint::{self, TemplateFiles},
    controls::Controls,
    engine::Engine,
    error::TemplateError,
    marks::{Stripped, strip},
    strftime::Clock,
    value::Import,
};
use crate::{control::ControlRole, tokenizer::Tokenizer};

/// Variables that a conversation sets itself.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
/// Similarity (Jaro-Winkler) from which on a known name is suggested for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.7;

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

/// The texts of a conversation, made ready for a template.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    messages: Vec<Value>,
    tools: Value,
    documents: Value,
    /// How many tools and documents there are.
    others: usize,
}

/// What a template wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of `text` inside `{% generation %}` blocks: what the assistant says.
    pub assistant_spans: Vec<Range<usize>>,
}

impl Texts {
    /// The texts of a conversation, kept from forging any of `controls`.
    pub(super) fn of(
        conversation: &Conversation<'_>,
        controls: Option<&Controls>,
    ) -> Result<Self, TemplateError> {
        let Conversation { messages, tools, documents, .. } = *conversation;
        let mut import = Import::new(controls);
        let messages = messages.iter().enumerate();
        let messages: Result<_, _> =
            messages.map(|(index, message)| import.message(index, message)).collect();
        Ok(Self {
            messages: messages?,
            tools: import.list(tools)?,
            documents: import.list(documents)?,
            others: [tools, documents].into_iter().flatten().map(<[Json]>::len).sum(),
        })
    }

    /// Adds a message.
    pub(super) fn push(
        &mut self,
        message: &Json,
        controls: Option<&Controls>,
    ) -> Result<(), TemplateError> {
        let message = Import::new(controls).message(self.messages.len(), message)?;
        self.messages.push(message);
        Ok(())
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Forgets all but the first `len` messages.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.messages.truncate(len);
    }

    /// Who says a message.
    pub(crate) fn role(&self, message: usize) -> String {
        let role = self.messages.get(message).and_then(|message| message.get_attr("role").ok());
        role.and_then(|role| role.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl ChatTemplate {
    /// Reads the template of a checkpoint directory. Without a clock, a template finds no
    /// `strftime_now` and writes the date it was made with, if it can.
    ///
    /// # Errors
    /// When there is none, or it does not compile.
    pub fn load(dir: &Path, clock: Option<Clock>) -> Result<Self, TemplateError> {
        let template = Self::of_files(&TemplateFiles::read(dir)?, clock)?;
        template.ok_or_else(|| TemplateError::Missing(dir.to_path_buf()))
    }

    /// The template that the files of a checkpoint hold, if they hold one.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn of_files(
        files: &TemplateFiles,
        clock: Option<Clock>,
    ) -> Result<Option<Self>, TemplateError> {
        let found = checkpoint::find(files)?;
        if found.templates.is_empty() {
            return Ok(None);
        }
        Self::compile(found.templates, found.special_tokens, clock).map(Some)
    }

    /// The template for a checkpoint that has none: the tools, the messages and nothing else, in
    /// the frame and the tool-call format of `tokenizer`.
    #[must_use]
    pub fn built_in(tokenizer: &Tokenizer) -> Self {
        let control = tokenizer.control();
        let begin = ControlRole::DocumentStart;
        let spelled = control.id(begin).map(|_| control.frame().spelling(begin));
        let special_tokens = spelled.map(|bos| ("bos_token".to_owned(), Json::from(bos)));
        let source = builtin::source(tokenizer.format(), control.frame());
        let template = ("the built-in chat template".to_owned(), source);
        let templates = BTreeMap::from([("default".to_owned(), template)]);
        Self::compile(templates, special_tokens.into_iter().collect(), None)
            .expect("the tests compile it for every format")
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

    /// The file of the template that renders a conversation with tools, or without.
    ///
    /// # Errors
    /// When there is no template for it.
    pub(crate) fn file(&self, with_tools: bool) -> Result<&str, TemplateError> {
        Ok(self.choose(with_tools)?.file())
    }

    /// Checks the names of variables that every conversation is to be rendered with.
    ///
    /// # Errors
    /// A name that no template here asks for, or that a conversation sets itself.
    pub fn check_variables(&self, variables: &Map<String, Json>) -> Result<(), TemplateError> {
        let asked: BTreeSet<&str> =
            self.inner.engines.values().flat_map(Engine::variables).collect();
        let is_free = |name: &str| !RESERVED.contains(&name);
        let known = || asked.iter().copied().filter(|name| is_free(name));
        let unknown = |name: &&String| !(is_free(name) && asked.contains(name.as_str()));
        let Some(name) = variables.keys().find(unknown) else { return Ok(()) };
        let similarity = |other: &&str| strsim::jaro_winkler(name, other);
        let nearest = known().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let suggestion = nearest.filter(|near| similarity(near) >= SUGGESTION_SIMILARITY_MIN);
        Err(TemplateError::Variable {
            name: name.clone(),
            suggestion: suggestion.map(str::to_owned),
            known: known().map(str::to_owned).collect(),
        })
    }

    /// Renders with the texts of the conversation kept from forging any of `controls`.
    pub(super) fn render_marked(
        &self,
        conversation: &Conversation<'_>,
        controls: Option<&Controls>,
    ) -> Result<Stripped, TemplateError> {
        let Conversation { add_generation_prompt, extra, .. } = *conversation;
        self.render_texts(&Texts::of(conversation, controls)?, add_generation_prompt, extra)
    }

    /// Renders texts that are ready.
    pub(crate) fn render_texts(
        &self,
        texts: &Texts,
        add_generation_prompt: bool,
        extra: Option<&Map<String, Json>>,
    ) -> Result<Stripped, TemplateError> {
        let Texts { messages, tools, documents, others } = texts;
        let engine = self.choose(!tools.is_none())?;
        let mut context = BTreeMap::new();
        for (name, json) in self.inner.special_tokens.iter().chain(extra.into_iter().flatten()) {
            context.insert(name.as_str(), Import::trusted(json)?);
        }
        context.insert("messages", messages.clone().into());
        context.insert("tools", tools.clone());
        context.insert("documents", documents.clone());
        context.insert("add_generation_prompt", add_generation_prompt.into());
        Ok(strip(&engine.render(Value::from_pairs(context), messages.len() + others)?))
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
