//! Arguments that are read one by one.

use serde_json::{Map, Value};

use super::DEPTH_MAX;
use crate::json::python_json;

/// Levels of the object of arguments and of the call's own object.
const OUTER_LEVELS: usize = 2;

/// An object of arguments that grows by one entry, and its JSON text.
#[derive(Clone, Debug, Default)]
pub(crate) struct GrowingObject {
    entries: Map<String, Value>,
}

impl GrowingObject {
    /// Adds an entry: the text to append. None if it nests too deep or there is one of this name.
    pub(crate) fn insert(&mut self, name: &str, value: Value) -> Option<String> {
        if self.entries.contains_key(name) || !nests_within(&value, DEPTH_MAX - OUTER_LEVELS) {
            return None;
        }
        let open = if self.entries.is_empty() { "{" } else { ", " };
        let text = format!("{open}{}: {}", python_json(&Value::from(name)), python_json(&value));
        self.entries.insert(name.to_owned(), value);
        Some(text)
    }

    /// The text that ends it.
    pub(crate) fn end(&self) -> &'static str {
        if self.entries.is_empty() { "{}" } else { "}" }
    }

    pub(crate) fn into_entries(self) -> Map<String, Value> {
        self.entries
    }
}

/// Whether lists and objects in `value` nest at most `levels` deep.
fn nests_within(value: &Value, levels: usize) -> bool {
    let inner = levels.checked_sub(1);
    match value {
        Value::Array(items) => {
            inner.is_some_and(|inner| items.iter().all(|item| nests_within(item, inner)))
        }
        Value::Object(entries) => {
            inner.is_some_and(|inner| entries.values().all(|value| nests_within(value, inner)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}
