//! Text to tokens and back, as the adopted policy's own tokenizer and chat template do it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use ballast_chat::{Dialogue, Renderer, Segment, TemplateError, Tokenizer};
use serde_json::{Map, Value};

use crate::weights::StagedPolicy;

/// How many openings are kept for the siblings of an episode, which come soon after it.
const OPENINGS_MAX: usize = 16;

/// Tokenizer and template of the policy; cheap to clone.
#[derive(Clone, Debug)]
pub struct Language {
    renderer: Renderer,
    /// Those used last, the newest at the end: siblings share one, and an opening takes as long as a
    /// few tokens of a small model.
    openings: Arc<Mutex<VecDeque<Opening>>>,
}

/// The beginning of every episode of one task.
#[derive(Clone, Debug)]
struct Opening {
    tools: Vec<Value>,
    prompt: String,
    dialogue: Dialogue,
    segments: Vec<Segment>,
}

/// Why the files that came with a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanguageError {
    /// The tokenizer cannot be read or lacks a control token, or config.json names no known format.
    #[error("tokenizer.json of the published policy: {0}")]
    Tokenizer(String),
    /// Episodes cannot be told with the chat template.
    #[error("chat template of the published policy: {0}")]
    Template(String),
    /// config.json is no JSON or has no vocabulary size.
    #[error("config.json of the published policy has no usable vocab_size")]
    Config,
    /// The network has no row for some token.
    #[error(
        "config.json says vocab_size {config}, but tokenizer.json has {tokenizer} tokens; \
         publish a checkpoint whose two files belong together"
    )]
    Vocabulary {
        /// Vocabulary of the network.
        config: u64,
        /// Vocabulary of the tokenizer.
        tokenizer: u64,
    },
}

impl Language {
    /// Reads the tokenizer and the chat template of a staged policy and checks that the network
    /// knows all tokens.
    ///
    /// # Errors
    /// A file that cannot be read or used, or two files that do not belong together.
    pub fn of(staged: &StagedPolicy) -> Result<Self, LanguageError> {
        let tokenizer = Tokenizer::of_checkpoint(&staged.tokenizer_json, &staged.config_json)
            .map_err(|error| LanguageError::Tokenizer(error.to_string()))?;
        let config: Value =
            serde_json::from_slice(&staged.config_json).map_err(|_| LanguageError::Config)?;
        let rows = config.get("vocab_size").and_then(Value::as_u64);
        let rows = rows.ok_or(LanguageError::Config)?;
        let tokens = tokenizer.vocab_size() as u64;
        // More rows than tokens are padding.
        if rows < tokens {
            return Err(LanguageError::Vocabulary { config: rows, tokenizer: tokens });
        }
        let (files, config_json) = (&staged.template_files, &staged.config_json);
        let renderer = Renderer::of_checkpoint(tokenizer, files, config_json);
        Ok(Self::with(renderer.map_err(|error| LanguageError::Template(error.to_string()))?))
    }

    /// The language of a tokenizer, with the built-in template.
    ///
    /// # Errors
    /// The tokenizer cannot keep text and tags apart.
    pub fn built_in(tokenizer: Tokenizer) -> Result<Self, TemplateError> {
        Ok(Self::with(Renderer::built_in(tokenizer, Map::new())?))
    }

    fn with(renderer: Renderer) -> Self {
        Self { renderer, openings: Arc::default() }
    }

    /// Begins the conversation of an episode: with its messages up to the header of the policy's.
    ///
    /// # Errors
    /// The template or the tokenizer refuses the task.
    pub fn open(
        &self,
        tools: &[Value],
        prompt: &str,
    ) -> Result<(Dialogue, Vec<Segment>), TemplateError> {
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = |opening: &Opening| opening.prompt == prompt && opening.tools == tools;
        let known = openings.iter().position(is_this).and_then(|at| openings.remove(at));
        let opening = match known {
            Some(opening) => opening,
            None => {
                let (dialogue, segments) = self.renderer.open(tools, prompt)?;
                let (tools, prompt) = (tools.to_vec(), prompt.to_owned());
                Opening { tools, prompt, dialogue, segments }
            }
        };
        let opened = (opening.dialogue.clone(), opening.segments.clone());
        openings.push_back(opening);
        let excess = openings.len().saturating_sub(OPENINGS_MAX);
        openings.drain(..excess);
        Ok(opened)
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        self.renderer.tokenizer()
    }

    /// The template.
    #[must_use]
    pub fn renderer(&self) -> &Renderer {
        &self.renderer
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::OPENINGS_MAX;
    use crate::testing::language;

    #[test]
    fn siblings_share_an_opening_and_other_tasks_do_not() {
        let tools = [json!({"name": "product"})];
        let first = language().open(&tools, "price of lamp").expect("an opening").1;
        for number in 0..2 * OPENINGS_MAX {
            let other = language().open(&tools, &format!("price {number}")).expect("an opening").1;
            assert_ne!(other, first);
            assert!(language().openings.lock().expect("no panic").len() <= OPENINGS_MAX);
            assert_eq!(language().open(&tools, "price of lamp").expect("an opening").1, first);
        }
        assert_ne!(language().open(&[], "price of lamp").expect("an opening").1, first);
    }
}
