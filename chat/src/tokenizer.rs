//! A Hugging Face `tokenizer.json`, with its control tokens found and checked.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::control::ControlTokens;

/// Encoded and decoded once at load: what does not survive the way there and back would change
/// between what a tool said and what the policy reads. Holds the words of the template.
const PROBE: &str =
    "system\n<tools>\nuser\nassistant\n\t{\"A b\": [1, -2.5e3]}\r\n  \u{e9}\u{4e2d}\u{1f600} ";

/// Text to token ids and back. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// Why a tokenizer cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(
        "cannot read the tokenizer {path}: {source}; a checkpoint directory needs a tokenizer.json"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not a tokenizer.
    #[error("not a Hugging Face tokenizer.json: {0}; write it with a current `tokenizers` release")]
    Invalid(String),
    /// Control tokens that the tool-call format needs do not exist.
    #[error(
        "the tokenizer has no single token for {}; use a checkpoint that has them (Qwen3 does), or \
         add the tags to `added_tokens` of its tokenizer.json and train their embeddings",
        .0.join(" ")
    )]
    MissingControlTokens(Vec<&'static str>),
    /// Decoding does not give back what was encoded.
    #[error(
        "the tokenizer turns {PROBE:?} into {0:?}; use one that loses nothing (byte-level BPE)"
    )]
    Lossy(String),
    /// A text cannot be encoded.
    #[error("the tokenizer cannot encode a text of {bytes} bytes: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// The vocabulary proper spells a control tag, so untrusted text could forge one.
    #[error(
        "untrusted text became the control tag with id {0}; the tag must be an added token of the \
         tokenizer.json and no part of its ordinary vocabulary"
    )]
    Forged(u32),
    /// Training failed.
    #[error("cannot train a tokenizer: {0}")]
    Train(String),
}

struct Inner {
    json: Vec<u8>,
    /// Recognises added tokens in a text.
    trusting: tokenizers::Tokenizer,
    /// The same without any added token, so a tag spelled in a text is only its bytes. Removing
    /// them beats escaping the text: no normaliser or strip rule of an added token can undo it.
    untrusting: tokenizers::Tokenizer,
    control: ControlTokens,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` and checks that Ballast can work with it.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, lack a control token, or lose text.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let value: Value =
            serde_json::from_slice(json).map_err(|e| TokenizerError::Invalid(e.to_string()))?;
        let trusting = build(&value, &["truncation", "padding", "post_processor"])?;
        let untrusting =
            build(&value, &["truncation", "padding", "post_processor", "added_tokens"])?;
        let control = find_control_tokens(&trusting)?;
        let ids_end = trusting.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let inner =
            Inner { json: json.to_vec(), trusting, untrusting, control, vocab_size: ids_end };
        let tokenizer = Self { inner: Arc::new(inner) };
        tokenizer.check_lossless()?;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` from a file.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`Tokenizer::from_bytes`].
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let json = std::fs::read(path)
            .map_err(|source| TokenizerError::Read { path: path.to_path_buf(), source })?;
        Self::from_bytes(&json)
    }

    /// The exact bytes this tokenizer was made from.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// Number of token ids, added tokens included: the largest id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Ids of the control tokens.
    #[must_use]
    pub fn control(&self) -> &ControlTokens {
        &self.inner.control
    }

    /// Encodes trusted text: a control tag spelled in it becomes its id. For templates and tests.
    ///
    /// # Errors
    /// When the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.inner.trusting, text)
    }

    /// Encodes text that a user, a tool or a policy wrote: a control tag spelled in it becomes the
    /// pieces of its letters, never its id. `{"` is ordinary JSON and keeps its id.
    ///
    /// # Errors
    /// When the tokenizer rejects the text, or would forge a tag (a faulty vocabulary).
    pub fn encode_untrusted(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = encode(&self.inner.untrusting, text)?;
        match ids.iter().find(|&&id| self.control().is_tag(id)) {
            Some(&id) => Err(TokenizerError::Forged(id)),
            None => Ok(ids),
        }
    }

    /// The text of `ids`, control tokens included. Ids outside the vocabulary have no text; bytes
    /// that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        // A byte-level decoder fails on no input; one that does was refused by `check_lossless`.
        self.inner.trusting.decode(ids, false).unwrap_or_default()
    }

    fn check_lossless(&self) -> Result<(), TokenizerError> {
        let decoded = self.decode(&self.encode_untrusted(PROBE)?);
        if decoded == PROBE { Ok(()) } else { Err(TokenizerError::Lossy(decoded)) }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { vocab_size, control, .. } = &*self.inner;
        f.debug_struct("Tokenizer")
            .field("vocab_size", vocab_size)
            .field("control", control)
            .finish_non_exhaustive()
    }
}

/// Builds the tokenizer with some parts of its JSON left out. Truncation and padding always are:
/// they would silently cut a long tool result.
fn build(value: &Value, without: &[&str]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut value = value.clone();
    for part in without {
        if let Some(entry) = value.get_mut(*part) {
            *entry = if entry.is_array() { Value::Array(Vec::new()) } else { Value::Null };
        }
    }
    tokenizers::Tokenizer::from_bytes(value.to_string())
        .map_err(|e| TokenizerError::Invalid(e.to_string()))
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
    match tokenizer.encode_fast(text, false) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(e) => Err(TokenizerError::Encode { bytes: text.len(), reason: e.to_string() }),
    }
}

fn find_control_tokens(tokenizer: &tokenizers::Tokenizer) -> Result<ControlTokens, TokenizerError> {
    let ids = ControlTokens::NAMES.map(|name| single_token(tokenizer, name));
    let missing: Vec<_> = std::iter::zip(ControlTokens::NAMES, ids)
        .filter_map(|(name, id)| id.is_none().then_some(name))
        .collect();
    if missing.is_empty() {
        Ok(ControlTokens::from_all(ids.map(Option::unwrap_or_default)))
    } else {
        Err(TokenizerError::MissingControlTokens(missing))
    }
}

/// The id `name` is encoded to, if that is one token spelled exactly so.
fn single_token(tokenizer: &tokenizers::Tokenizer, name: &str) -> Option<u32> {
    match encode(tokenizer, name).ok()?[..] {
        [id] if tokenizer.id_to_token(id).as_deref() == Some(name) => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{Tokenizer, TokenizerError};
    use crate::{ControlTokens, testing::tokenizer};

    fn with_edited_json(edit: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
        let mut value = serde_json::from_slice(tokenizer().json()).unwrap();
        edit(&mut value);
        Tokenizer::from_bytes(value.to_string().as_bytes())
    }

    #[test]
    fn trusted_text_makes_tags_and_untrusted_text_does_not() {
        let tokenizer = tokenizer();
        for (name, id) in std::iter::zip(ControlTokens::NAMES, tokenizer.control().all()) {
            assert_eq!(tokenizer.encode(name).unwrap(), [id]);
            assert_eq!(tokenizer.decode(&[id]), name);
            let untrusted = tokenizer.encode_untrusted(name).unwrap();
            assert_eq!(untrusted.contains(&id), !tokenizer.control().is_tag(id), "{name}");
            assert_eq!(tokenizer.decode(&untrusted), name);
        }
    }

    #[test]
    fn every_missing_control_token_is_named() {
        let result = with_edited_json(|value| {
            let added = value["added_tokens"].as_array_mut().unwrap();
            added.retain(|token| {
                token["content"] != "<tool_call>" && token["content"] != "<|im_end|>"
            });
        });
        let message = result.unwrap_err().to_string();
        assert!(message.contains("no single token for <|im_end|> <tool_call>;"), "{message}");
    }

    #[test]
    fn truncation_in_the_file_does_not_cut_text() {
        let truncation =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        let tokenizer = with_edited_json(|value| value["truncation"] = truncation).unwrap();
        let text = "1234567890";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
    }

    #[test]
    fn a_lossy_tokenizer_is_refused() {
        let lossy = [("normalizer", json!({"type": "Lowercase"})), ("decoder", Value::Null)];
        for (part, replacement) in lossy {
            let result = with_edited_json(|value| value[part] = replacement);
            assert!(matches!(result, Err(TokenizerError::Lossy(_))), "{part}");
        }
    }

    #[test]
    fn bad_files_are_errors_that_name_them() {
        let missing = Tokenizer::from_file(Path::new("/nowhere/tokenizer.json")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tokenizer.json"));
        for bytes in [&b""[..], b"{", b"[]", b"{}", b"null", b"{\"model\": 3}", b"\xff"] {
            assert!(matches!(Tokenizer::from_bytes(bytes), Err(TokenizerError::Invalid(_))));
        }
    }

    proptest! {
        #[test]
        fn untrusted_text_survives_and_never_makes_a_tag(
            pieces in prop::collection::vec(
                prop_oneof![
                    any::<String>(),
                    (0..8_usize).prop_map(|i| ControlTokens::NAMES[i].to_owned()),
                    (0..8_usize, 1..5_usize)
                        .prop_map(|(i, n)| ControlTokens::NAMES[i].chars().take(n).collect()),
                ],
                0..8,
            )
        ) {
            let (tokenizer, text) = (tokenizer(), pieces.concat());
            let ids = tokenizer.encode_untrusted(&text).unwrap();
            prop_assert!(!ids.iter().any(|&id| tokenizer.control().is_tag(id)));
            prop_assert_eq!(tokenizer.decode(&ids), text);
        }
    }
}
