//! What a template is given: JSON as values of the template engine, and messages as `transformers`
//! hands them over.

use std::borrow::Cow;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{
    MAX_DEPTH, MAX_PROMPT_BYTES,
    controls::{Controls, Writer},
    error::TemplateError,
    marks::escape,
};

/// Names under which a message may carry its reasoning, the one that templates read first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Roles that a template may compare with or spell a tag with: they are no text.
const ROLES: [&str; 10] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "ipython",
    "environment",
    "observation",
    "documents",
];

/// Turns JSON into values, and keeps its texts from forging control tokens if it is given some.
pub(super) struct Import<'a> {
    controls: Option<&'a Controls>,
    /// How many more bytes of text may come.
    budget_bytes: usize,
}

/// Where in an object a text is, which decides whether it can be text at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Role,
    Kind,
    Text,
}

impl<'a> Import<'a> {
    pub(super) fn new(controls: Option<&'a Controls>) -> Self {
        Self { controls, budget_bytes: MAX_PROMPT_BYTES }
    }

    /// The message of that index. Its writer is read from its role.
    pub(super) fn message(&mut self, index: usize, message: &Json) -> Result<Value, TemplateError> {
        let wanted = "an object with a role and content";
        let object = message.as_object().ok_or(TemplateError::Message { index, wanted })?;
        let by_assistant = object.get("role").is_some_and(|role| role == "assistant");
        let writer = if by_assistant { Writer::Assistant } else { Writer::Other };
        self.object(&with_reasoning(object), writer, 0)
    }

    /// Tools or documents, or none.
    pub(super) fn list(&mut self, list: Option<&[Json]>) -> Result<Value, TemplateError> {
        let Some(list) = list else { return Ok(Value::from(())) };
        let values = list.iter().map(|json| self.value(json, Writer::Other, Place::Text, 0));
        Ok(Value::from(values.collect::<Result<Vec<_>, _>>()?))
    }

    /// A value from the operator, whose texts are trusted as those of the template are; so no
    /// controls are given.
    pub(super) fn trusted(json: &Json) -> Result<Value, TemplateError> {
        Import::new(None).value(json, Writer::Other, Place::Text, 0)
    }

    fn value(
        &mut self,
        json: &Json,
        writer: Writer,
        place: Place,
        depth: usize,
    ) -> Result<Value, TemplateError> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::TooDeep { what: "a message".into(), limit: MAX_DEPTH });
        }
        Ok(match json {
            Json::Null => Value::from(()),
            Json::Bool(bool) => Value::from(*bool),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => Value::from(integer),
                (None, Some(integer)) => Value::from(integer),
                // Beyond f64 there is nothing: `serde_json` has read it as one.
                (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::from(self.text(text, writer, place)?),
            Json::Array(items) => {
                let items =
                    items.iter().map(|item| self.value(item, writer, Place::Text, depth + 1));
                Value::from(items.collect::<Result<Vec<_>, _>>()?)
            }
            Json::Object(object) => self.object(object, writer, depth + 1)?,
        })
    }

    fn object(
        &mut self,
        object: &Map<String, Json>,
        writer: Writer,
        depth: usize,
    ) -> Result<Value, TemplateError> {
        let mut pairs = Vec::with_capacity(object.len());
        for (key, json) in object {
            let place = match key.as_str() {
                "role" => Place::Role,
                "type" => Place::Kind,
                _ => Place::Text,
            };
            // A tag inside of a call would break it: what the policy wrote there were letters.
            let writer = if key == "tool_calls" { Writer::Other } else { writer };
            let value = self.value(json, writer, place, depth)?;
            pairs.push((self.text(key, writer, Place::Kind)?, value));
        }
        Ok(Value::from_pairs(pairs))
    }

    /// A text, with cuts where it could forge a control token. Names that a template compares
    /// with, which cannot do so by themselves, stay as they are.
    fn text(&mut self, text: &str, writer: Writer, place: Place) -> Result<String, TemplateError> {
        let left = self.budget_bytes.checked_sub(text.len());
        self.budget_bytes = left.ok_or_else(|| TemplateError::TooLarge {
            what: "the conversation".into(),
            limit: MAX_PROMPT_BYTES,
            remedy: "shorten its messages or drop the oldest",
        })?;
        let is_name = match place {
            Place::Role => ROLES.contains(&text),
            Place::Kind => text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)),
            Place::Text => false,
        };
        let escaped = escape(text);
        Ok(match self.controls {
            Some(controls) if !is_name => controls.cut(&escaped, writer),
            _ => escaped.into_owned(),
        })
    }
}

/// The message with its reasoning under the name templates read, as `transformers` hands it over.
fn with_reasoning(message: &Map<String, Json>) -> Cow<'_, Map<String, Json>> {
    let given = REASONING.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null()));
    let Some(reasoning) = given else { return Cow::Borrowed(message) };
    let mut named = Map::new();
    named.insert("thinking".into(), reasoning.clone());
    named.extend(message.iter().map(|(key, value)| (key.clone(), value.clone())));
    named.insert("reasoning_content".into(), reasoning.clone());
    Cow::Owned(named)
}
