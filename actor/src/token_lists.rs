//! The file that `score` and `generate` read: a JSON list of lists of token ids.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// What is wrong with such a file.
#[derive(Debug, thiserror::Error)]
pub enum TokenListsError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{path} is no valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// It is other JSON.
    #[error("{path} is {found}; it must be a list of lists of token ids, for example [[1, 2, 3]]")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// One of the lists cannot be used.
    #[error("{path}: list {index}: {fault}")]
    List {
        /// The file.
        path: PathBuf,
        /// Which list, from 0.
        index: usize,
        /// What is wrong with it.
        fault: String,
    },
}

/// Reads a file of token lists and checks every id against the vocabulary and every list against
/// the context, of which `reserved` tokens are kept for what follows the list.
///
/// # Errors
/// The first fault, with the list and the index in it.
pub fn read(
    path: &Path,
    vocab_size: usize,
    context_tokens: usize,
    reserved: usize,
) -> Result<Vec<Vec<u32>>, TokenListsError> {
    let path = path.to_owned();
    let bytes = std::fs::read(&path)
        .map_err(|source| TokenListsError::Read { path: path.clone(), source })?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|source| TokenListsError::Json { path: path.clone(), source })?;
    let Value::Array(lists) = &value else {
        return Err(TokenListsError::Shape { path, found: kind(&value) });
    };
    let list = |(index, value): (usize, &Value)| {
        let tokens = token_ids(value, vocab_size)
            .and_then(|tokens| fits(tokens, context_tokens, reserved))
            .map_err(|fault| TokenListsError::List { path: path.clone(), index, fault })?;
        Ok(tokens)
    };
    lists.iter().enumerate().map(list).collect()
}

/// Reads one list of token ids.
///
/// # Errors
/// What is wrong, for people.
fn token_ids(value: &Value, vocab_size: usize) -> Result<Vec<u32>, String> {
    let Value::Array(items) = value else {
        return Err(format!("it is {}, not a list of token ids", kind(value)));
    };
    let last = vocab_size.saturating_sub(1);
    let id = |(index, item): (usize, &Value)| {
        let id = item.as_u64().ok_or_else(|| format!("{item} at index {index} is no token id"))?;
        let known = u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size);
        known.ok_or_else(|| {
            format!("token id {id} at index {index} is outside the vocabulary (0 to {last})")
        })
    };
    items.iter().enumerate().map(id).collect()
}

/// Checks a prompt's length.
///
/// # Errors
/// The numbers, for people.
pub fn fits(tokens: Vec<u32>, context: usize, reserved: usize) -> Result<Vec<u32>, String> {
    let count = tokens.len();
    match (count.saturating_add(reserved) <= context, reserved) {
        (true, _) => Ok(tokens),
        (false, 0) => Err(format!("{count} tokens; the model's context is {context}")),
        (false, _) => Err(format!(
            "{count} tokens and {reserved} to generate; the model's context is {context}"
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, reserved: usize) -> Result<Vec<Vec<u32>>, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tokens.json");
        std::fs::write(&path, text).expect("written");
        read(&path, 10, 4, reserved).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(read_text("[[1, 2], [], [9]]", 0), Ok(vec![vec![1, 2], vec![], vec![9]]));
        assert_eq!(read_text("[[1, 2]]", 2), Ok(vec![vec![1, 2]]));
    }

    #[test]
    fn faults_name_the_list_and_the_index() {
        let faults = [
            ("[[1, 2], [3", 0, "EOF while parsing"),
            ("{}", 0, "is an object; it must be a list of lists"),
            ("[[1], 3]", 0, "list 1: it is a number, not a list"),
            ("[[1], [2, \"x\"]]", 0, "list 1: \"x\" at index 1 is no token id"),
            ("[[1], [2, -1]]", 0, "list 1: -1 at index 1 is no token id"),
            (
                "[[1], [2, 10]]",
                0,
                "list 1: token id 10 at index 1 is outside the vocabulary (0 to 9)",
            ),
            ("[[1, 2, 3, 4, 5]]", 0, "list 0: 5 tokens; the model's context is 4"),
            ("[[1, 2, 3]]", 2, "list 0: 3 tokens and 2 to generate; the model's context is 4"),
        ];
        for (text, reserved, expected) in faults {
            let error = read_text(text, reserved).expect_err(text);
            assert!(error.contains(expected) && error.contains("tokens.json"), "{error}");
        }
        let missing = read(Path::new("/nowhere/tokens.json"), 10, 4, 0).expect_err("missing");
        assert!(missing.to_string().starts_with("cannot read /nowhere/tokens.json"));
    }
}
