//! A Hugging Face `tokenizer.json`, with its control tokens found and checked.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    control::{ControlTokens, Frame},
    format::{Format, Inexpressible, UnknownFormat},
};

/// Encoded and decoded once at load: what does not survive the way there and back would change
/// between what a tool said and what the policy reads. Holds the words of the template.
const PROBE: &str =
    "system\n<tools>\nuser\nassistant\n\t{\"A b\": [1, -2.5e3]}\r\n  \u{e9}\u{4e2d}\u{1f600} ";

/// Ids a vocabulary may have; a file that says more is damaged. The largest real ones have 2^18.
const VOCAB_SIZE_MAX: usize = 1 << 22;

/// Key of config.json that names the tool-call format a checkpoint speaks.
const FORMAT_KEY: &str = "tool_call_format";

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
        "the tokenizer has no single token for {}, which the {format} tool-call format needs; set \
         {FORMAT_KEY} in config.json to what the checkpoint speaks ({}), or add the tags to \
         `added_tokens` of its tokenizer.json and train their embeddings",
        .missing.join(" "), Format::ALL.map(Format::name).join(", ")
    )]
    MissingControlTokens {
        /// The format that was named, or that the tokenizer resembles.
        format: Format,
        /// How they are spelled.
        missing: Vec<&'static str>,
    },
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
    /// The checkpoint names a tool-call format that does not exist.
    #[error("{FORMAT_KEY} in config.json: {0}")]
    UnknownFormat(#[from] UnknownFormat),
    /// The tool-call format has no way to write a call.
    #[error(transparent)]
    Inexpressible(#[from] Inexpressible),
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
    format: Format,
    control: ControlTokens,
    /// What goes before a text of its own.
    prefix: Vec<u32>,
    /// The bytes of all tokens, joined; `ends[id]` is where those of `id` end.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` and checks that Ballast can work with it. The tool-call format is
    /// told by the control tokens: Llama 3 by `<|eom_id|>`, otherwise Hermes.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, lack a control token, or lose text.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::load(json, None)
    }

    /// The same for a checkpoint that speaks `format`, whatever its tokens suggest.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`].
    pub fn with_format(json: &[u8], format: Format) -> Result<Self, TokenizerError> {
        Self::load(json, Some(format))
    }

    /// The same for a checkpoint with this `config.json`, whose `tool_call_format` names the format
    /// if it is there. It travels with the weights, so every process reads the same calls.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], and when the named format does not exist.
    pub fn of_checkpoint(json: &[u8], config_json: &[u8]) -> Result<Self, TokenizerError> {
        let config: Value = serde_json::from_slice(config_json).unwrap_or_default();
        let named = config.get(FORMAT_KEY).filter(|name| !name.is_null());
        let format = named
            .map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned).parse())
            .transpose()?;
        Self::load(json, format)
    }

    /// The same from a checkpoint directory.
    ///
    /// # Errors
    /// When a file cannot be read, and as [`Tokenizer::of_checkpoint`].
    pub fn of_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })
        };
        Self::of_checkpoint(&read("tokenizer.json")?, &read("config.json")?)
    }

    fn load(json: &[u8], format: Option<Format>) -> Result<Self, TokenizerError> {
        let value: Value =
            serde_json::from_slice(json).map_err(|e| TokenizerError::Invalid(e.to_string()))?;
        let trusting = build(&value, &["truncation", "padding", "post_processor"])?;
        let untrusting =
            build(&value, &["truncation", "padding", "post_processor", "added_tokens"])?;
        let format = format.unwrap_or_else(|| detect_format(&trusting));
        let control = find_control_tokens(&trusting, format)?;
        let (bytes, ends) = token_bytes(&trusting)?;
        let json = json.to_vec();
        let prefix = prefix(&value["post_processor"]);
        let inner = Inner { json, trusting, untrusting, format, control, prefix, bytes, ends };
        let tokenizer = Self { inner: Arc::new(inner) };
        tokenizer.check_lossless()?;
        Ok(tokenizer)
    }

    /// The exact bytes this tokenizer was made from.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// Number of token ids, added tokens included: the largest id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.ends.len()
    }

    /// The tool-call format that the checkpoint speaks.
    #[must_use]
    pub fn format(&self) -> Format {
        self.inner.format
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

    /// What the model was trained to see before a text that is no conversation: `<|begin_of_text|>`
    /// for Llama 3, nothing for Qwen. A chat template writes it itself.
    #[must_use]
    pub fn prefix(&self) -> &[u32] {
        &self.inner.prefix
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
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that one token stands for, perhaps a part of a character; none outside the
    /// vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let Inner { bytes, ends, .. } = &*self.inner;
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(end) = ends.get(index) else { return &[] };
        let start = index.checked_sub(1).map_or(0, |before| ends[before]);
        &bytes[start..*end]
    }

    fn check_lossless(&self) -> Result<(), TokenizerError> {
        let ids = self.encode_untrusted(PROBE)?;
        // Ours must be what the file's own decoder says.
        let theirs = self.inner.trusting.decode(&ids, false).unwrap_or_default();
        let lossy = [theirs, self.decode(&ids)].into_iter().find(|decoded| decoded != PROBE);
        lossy.map_or(Ok(()), |decoded| Err(TokenizerError::Lossy(decoded)))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { format, control, .. } = &*self.inner;
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("format", format)
            .field("control", control)
            .finish_non_exhaustive()
    }
}

/// The special tokens that a post-processor puts before a single text.
fn prefix(processor: &Value) -> Vec<u32> {
    if let Some(processors) = processor["processors"].as_array() {
        return processors.iter().flat_map(prefix).collect();
    }
    let items = processor["single"].as_array().into_iter().flatten();
    let specials = items.map_while(|item| item["SpecialToken"]["id"].as_str());
    let ids = specials.flat_map(|name| processor["special_tokens"][name]["ids"].as_array());
    ids.flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
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

fn detect_format(tokenizer: &tokenizers::Tokenizer) -> Format {
    let has = |name| single_token(tokenizer, name).is_some();
    if !has("<tool_call>") && has("<|eom_id|>") { Format::Llama3 } else { Format::Hermes }
}

/// The control tokens of the first way to delimit messages that is complete.
fn find_control_tokens(
    tokenizer: &tokenizers::Tokenizer,
    format: Format,
) -> Result<ControlTokens, TokenizerError> {
    let rules = format.rules();
    let find = |frame: &Frame| {
        let single_token = |name: &str| single_token(tokenizer, name);
        ControlTokens::find(*frame, rules.opener(), rules.required(), single_token)
    };
    let mut found = rules.frames().iter().map(find);
    let first = found.next().unwrap_or_else(|| Err(Vec::new()));
    let found = first.or_else(|missing| found.find_map(Result::ok).ok_or(missing));
    found.map_err(|missing| TokenizerError::MissingControlTokens { format, missing })
}

/// What each token stands for, joined, and where it ends. Byte-level tokenizers spell a byte as a
/// printable character; a token that holds any other character stands for itself.
fn token_bytes(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u8>, Vec<usize>), TokenizerError> {
    let byte_of = byte_level_alphabet();
    let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
    if size as usize > VOCAB_SIZE_MAX {
        let reason = format!("a token has id {}; the largest may be {VOCAB_SIZE_MAX}", size - 1);
        return Err(TokenizerError::Invalid(reason));
    }
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for id in 0..size {
        let token = tokenizer.id_to_token(id).unwrap_or_default();
        let spelled: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
        bytes.extend(spelled.unwrap_or_else(|| token.into_bytes()));
        ends.push(bytes.len());
    }
    Ok((bytes, ends))
}

/// The byte that each character of a byte-level vocabulary spells. Printable Latin-1 spells itself;
/// the others, in order, are the characters from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = '\u{100}'..;
    let spell = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
        _ => (next.next().unwrap_or_default(), byte),
    };
    (0..=u8::MAX).map(spell).collect()
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
    use crate::{ControlTokens, Format, testing::tokenizer};

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
        assert!(message.contains("no single token for <|im_end|> <tool_call>,"), "{message}");
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
        let missing = Tokenizer::of_directory(Path::new("/nowhere")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tokenizer.json"));
        for bytes in [&b""[..], b"{", b"[]", b"{}", b"null", b"{\"model\": 3}", b"\xff"] {
            assert!(matches!(Tokenizer::from_bytes(bytes), Err(TokenizerError::Invalid(_))));
        }
    }

    #[test]
    fn config_json_may_name_the_format() {
        let json = tokenizer().json();
        let format = |config: &str| {
            Tokenizer::of_checkpoint(json, config.as_bytes()).map(|tokenizer| tokenizer.format())
        };
        assert_eq!(format("{\"tool_call_format\": \"pythonic\"}").unwrap(), Format::Pythonic);
        for silent in ["{}", "{\"tool_call_format\": null}", "no JSON"] {
            assert_eq!(format(silent).unwrap(), Format::Hermes);
        }
        for unknown in ["\"pythonik\"", "3", "[]"] {
            let error = format(&format!("{{\"tool_call_format\": {unknown}}}")).unwrap_err();
            assert!(error.to_string().contains("hermes, llama3, qwen_xml, pythonic"), "{error}");
        }
    }

    #[test]
    fn a_lying_id_is_refused_before_anything_is_sized_by_it() {
        for id in [1_u64 << 22, u64::from(u32::MAX)] {
            let result = with_edited_json(|value| value["model"]["vocab"]["!"] = id.into());
            assert!(matches!(result, Err(TokenizerError::Invalid(_))), "{id}");
        }
    }

    #[test]
    fn bytes_of_tokens_are_what_the_file_decodes() {
        let tokenizer = tokenizer();
        for id in 0..u32::try_from(tokenizer.vocab_size()).unwrap() {
            let theirs = tokenizer.inner.trusting.decode(&[id], false).unwrap();
            assert_eq!(String::from_utf8_lossy(tokenizer.token_bytes(id)), theirs, "{id}");
        }
        assert!(tokenizer.token_bytes(u32::MAX).is_empty());
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
