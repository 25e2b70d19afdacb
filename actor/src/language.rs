//! Text to tokens and back, as the adopted policy's own tokenizer and template do it.

use std::sync::Arc;

use ballast_arena::ExpertAction;
use ballast_chat::{Renderer, Tokenizer, TokenizerError};

use crate::weights::StagedPolicy;

/// Tokenizer and template of the policy; cheap to clone.
#[derive(Clone, Debug)]
pub struct Language {
    tokenizer: Tokenizer,
    renderer: Arc<Renderer>,
}

/// Why the files that came with a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanguageError {
    /// The tokenizer cannot be read or lacks a control token, or config.json names no known format.
    #[error("tokenizer.json of the published policy: {0}")]
    Tokenizer(String),
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
    /// Reads the tokenizer of a staged policy and checks that the network knows all its tokens.
    ///
    /// # Errors
    /// A file that cannot be read, or two files that do not belong together.
    pub fn of(staged: &StagedPolicy) -> Result<Self, LanguageError> {
        let tokenizer = Tokenizer::of_checkpoint(&staged.tokenizer_json, &staged.config_json)
            .map_err(|error| LanguageError::Tokenizer(error.to_string()))?;
        let config: serde_json::Value =
            serde_json::from_slice(&staged.config_json).map_err(|_| LanguageError::Config)?;
        let rows = config.get("vocab_size").and_then(serde_json::Value::as_u64);
        let rows = rows.ok_or(LanguageError::Config)?;
        let tokens = tokenizer.vocab_size() as u64;
        // More rows than tokens are padding.
        if rows < tokens {
            return Err(LanguageError::Vocabulary { config: rows, tokenizer: tokens });
        }
        Ok(Self::new(tokenizer))
    }

    /// The language of a tokenizer.
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        let renderer = Arc::new(Renderer::new(tokenizer.clone()));
        Self { tokenizer, renderer }
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The template.
    #[must_use]
    pub fn renderer(&self) -> &Renderer {
        &self.renderer
    }

    /// What the expert writes to take `action`: one message, end token included.
    ///
    /// # Errors
    /// The tokenizer rejects the text.
    pub fn expert_message(&self, action: &ExpertAction) -> Result<Vec<u32>, TokenizerError> {
        match action {
            ExpertAction::Call { name, arguments } => {
                self.renderer.assistant_message("", &[(name, arguments)])
            }
            ExpertAction::Answer(text) => self.renderer.assistant_message(text, &[]),
        }
    }
}
