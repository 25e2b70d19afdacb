//! The served model as requests see it: its name, its language and its limits. No network in it.

use std::{collections::BTreeSet, sync::Arc};

use ballast_chat::Tokenizer;
use serde_json::{Map, Value};

use super::{openai::ApiError, prompt::Prompter};

/// Everything about the model that a request is checked against and turned into tokens with.
#[derive(Debug)]
pub struct ServedModel {
    /// What clients call it.
    pub name: String,
    /// Unix time in seconds at which the server started.
    pub created: u64,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Writes conversations as the model was trained to read them; or why there is none, for the
    /// client that sends a conversation all the same.
    pub prompter: Result<Prompter, String>,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Tokens the network has an embedding for.
    pub vocab_size: usize,
    /// Tokens of a prompt and its completion together.
    pub context_tokens: usize,
}

impl ServedModel {
    /// The prompt of a conversation, up to where the assistant begins to write.
    ///
    /// # Errors
    /// The chat template refuses the conversation.
    pub fn chat_prompt(
        &self,
        messages: &[Value],
        tools: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<Arc<[u32]>, ApiError> {
        let prompter = self.prompter.as_ref();
        let prompter = prompter.map_err(|reason| ApiError::invalid("messages", reason.clone()))?;
        let prompt = prompter.prompt(messages, tools, variables);
        let prompt = prompt.map_err(|error| ApiError::invalid("messages", error.to_string()))?;
        self.checked("messages", prompt)
    }

    /// The prompt that a client spelled out, behind what the model sees before every text. Control
    /// tokens may be spelled in it: the whole text is the client's own.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or it is empty.
    pub fn text_prompt(&self, text: &str) -> Result<Arc<[u32]>, ApiError> {
        let (bytes, bytes_max) = (text.len(), self.prompt_bytes_max());
        if bytes > bytes_max {
            // Tokenising it, only to count, would take seconds and gigabytes.
            let context = self.context_tokens;
            let message = format!(
                "the prompt has {bytes} bytes; this model's context of {context} tokens holds at \
                 most {bytes_max}"
            );
            return Err(ApiError::body(400, "context_length_exceeded", message));
        }
        let prompt = self.tokenizer.encode(text);
        let prompt = prompt.map_err(|error| ApiError::invalid("prompt", error.to_string()))?;
        self.checked("prompt", [self.tokenizer.prefix(), &prompt].concat())
    }

    /// Bytes beyond which no text fits in the context, even if every token of it were the longest
    /// one and the tokenizer's normaliser shortened it as much as Unicode lets it (to a third).
    fn prompt_bytes_max(&self) -> usize {
        let ids = 0..u32::try_from(self.tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest = ids.map(|id| self.tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        3 * longest * self.context_tokens
    }

    /// A prompt of token ids.
    ///
    /// # Errors
    /// It is empty, or an id is outside the vocabulary.
    pub fn checked(&self, param: &str, prompt: Vec<u32>) -> Result<Arc<[u32]>, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::invalid(
                param,
                "the prompt is empty; it takes at least one token",
            ));
        }
        match prompt.iter().position(|id| *id as usize >= self.vocab_size) {
            Some(at) => {
                let (id, last) = (prompt[at], self.vocab_size - 1);
                let message =
                    format!("token {id} at index {at} is no token id; ids are 0 to {last}");
                Err(ApiError::invalid(param, message))
            }
            None => Ok(prompt.into()),
        }
    }

    /// Tokens a completion may have: what is asked for, or else `fallback`, or else what the context
    /// leaves.
    ///
    /// # Errors
    /// It does not fit in the context, with the numbers.
    pub fn tokens_max(
        &self,
        prompt: usize,
        asked: Option<usize>,
        fallback: Option<usize>,
    ) -> Result<usize, ApiError> {
        if asked == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens = 0; it is at least 1"));
        }
        let left = self.context_tokens.saturating_sub(prompt);
        let wanted = asked.or(fallback.map(|fallback| fallback.min(left))).unwrap_or(left).max(1);
        if wanted > left {
            return Err(ApiError::context(prompt, wanted, self.context_tokens));
        }
        Ok(wanted)
    }
}

/// The tokens that `generation_config.json`, or else `config.json`, says end a completion.
#[must_use]
pub fn eos_tokens(generation_config: Option<&Value>, config: &Value) -> Vec<u32> {
    let listed = |value: Option<&Value>| -> BTreeSet<u32> {
        let ids = match value {
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
            None => Vec::new(),
        };
        ids.into_iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    let generation = listed(generation_config.and_then(|config| config.get("eos_token_id")));
    let ids = if generation.is_empty() { listed(config.get("eos_token_id")) } else { generation };
    ids.into_iter().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use ballast_chat::{CHAT_TEMPLATE, ChatTemplate};
    use serde_json::json;

    use super::*;
    use crate::testing::tokenizer;

    pub(in crate::serve) fn model() -> ServedModel {
        let template = ChatTemplate::from_source(CHAT_TEMPLATE, Map::new(), None);
        let prompter =
            Prompter::new(template.expect("a template"), tokenizer().clone(), Map::new());
        ServedModel {
            name: "tiny".into(),
            created: 1,
            tokenizer: tokenizer().clone(),
            prompter: Ok(prompter.expect("a prompter")),
            stop_tokens: vec![tokenizer().control().im_end],
            vocab_size: tokenizer().vocab_size(),
            context_tokens: 1024,
        }
    }

    #[test]
    fn a_text_comes_behind_what_the_model_sees_before_every_text() {
        let mut json: Value = serde_json::from_slice(tokenizer().json()).expect("JSON");
        let begin = tokenizer().control().im_start;
        json["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"<|im_start|>":
                    {"id": "<|im_start|>", "ids": [begin], "tokens": ["<|im_start|>"]}}}]});
        let beginning = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("a tokenizer");
        let plain = model().text_prompt("a lamp").expect("a prompt");
        let model = ServedModel { tokenizer: beginning, ..model() };
        let prompt = model.text_prompt("a lamp").expect("a prompt");
        assert_eq!(prompt[..], [&[begin], &plain[..]].concat());
    }

    #[test]
    fn a_completion_fits_in_the_context_or_is_refused_with_the_numbers() {
        let model = model();
        assert_eq!(model.tokens_max(1000, None, None), Ok(24));
        assert_eq!(model.tokens_max(1000, None, Some(16)), Ok(16));
        assert_eq!(model.tokens_max(1020, None, Some(16)), Ok(4));
        assert_eq!(model.tokens_max(1000, Some(24), None), Ok(24));
        for (prompt, asked) in [(1000, Some(25)), (1024, None), (5000, None), (1024, Some(1))] {
            let error = model.tokens_max(prompt, asked, Some(16)).expect_err("too long");
            assert_eq!(error.code, "context_length_exceeded");
            assert!(error.message.contains(&prompt.to_string()), "{error}");
            assert!(error.message.contains("1024"), "{error}");
        }
        assert!(model.tokens_max(1, Some(0), None).is_err());
    }

    #[test]
    fn a_hopeless_prompt_is_refused_before_it_is_tokenised() {
        let model = model();
        let longest = model.prompt_bytes_max();
        assert!(model.text_prompt(&"a".repeat(longest)).is_ok(), "the plan counts its tokens");
        let error = model.text_prompt(&"a".repeat(longest + 1)).expect_err("too long");
        assert_eq!(error.code, "context_length_exceeded");
        assert!(error.message.contains(&(longest + 1).to_string()), "{error}");
    }

    #[test]
    fn a_prompt_has_known_tokens() {
        let model = model();
        assert!(model.checked("prompt", Vec::new()).is_err());
        let error = model.checked("prompt", vec![1, 999_999]).expect_err("no such token");
        assert!(error.message.contains("999999 at index 1"), "{error}");
    }

    #[test]
    fn the_end_is_read_from_either_file() {
        let config = json!({"eos_token_id": 3});
        assert_eq!(eos_tokens(None, &config), [3]);
        assert_eq!(eos_tokens(Some(&json!({"eos_token_id": [5, 4]})), &config), [4, 5]);
        assert_eq!(eos_tokens(Some(&json!({})), &config), [3]);
        assert_eq!(eos_tokens(None, &json!({"eos_token_id": null})), [0u32; 0]);
    }
}
