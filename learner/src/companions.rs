//! What goes with the weights in every checkpoint and every published version: the files that
//! training does not change, and the settings of the run that belong to the model.
//!
//! They are read once, at the start: whatever happens to the initial checkpoint while the run goes
//! on, what is saved or published later is complete.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ballast_chat::{
    Format, Renderer, TemplateError, TemplateFiles, Tokenizer, TokenizerError, UnknownFormat,
};
use ballast_policy::{CONFIG_FILE, Policy, TOKENIZER_FILE};
use ballast_runtime::config::Model;
use serde_json::{Map, Value};

/// Files that make the directory usable elsewhere; kept when the initial checkpoint has them. Those
/// of the chat template are kept too.
const FILES: [&str; 5] = [
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("checkpoint {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The run names a tool-call format that does not exist.
    #[error("model.tool_call_format: {0}")]
    Format(#[from] UnknownFormat),
    /// The tokenizer cannot be used.
    #[error("checkpoint {path}: {source}")]
    Tokenizer {
        /// The checkpoint directory.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// Episodes cannot be told with the chat template.
    #[error("checkpoint {path}: {source}")]
    Template {
        /// The checkpoint directory.
        path: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
    /// The network and the tokenizer do not belong together.
    #[error(
        "{path}: config.json says vocab_size {config}, but tokenizer.json has {tokenizer} tokens; \
         use the tokenizer this checkpoint was trained with"
    )]
    Vocabulary {
        /// The checkpoint directory.
        path: PathBuf,
        /// Rows of the embedding.
        config: i64,
        /// Tokens of the tokenizer.
        tokenizer: usize,
    },
}

/// What goes with the weights.
#[derive(Clone, Debug)]
pub struct Companions {
    tokenizer: Vec<u8>,
    template: TemplateFiles,
    others: Vec<(&'static str, Vec<u8>)>,
    /// Keys of config.json that say how conversations are written and read.
    settings: Map<String, Value>,
}

impl Companions {
    /// Reads them from a checkpoint directory; only the tokenizer must be there. What the run says
    /// about the model goes before what its config.json says.
    ///
    /// # Errors
    /// A file cannot be read, or the run names an unknown format.
    pub fn read(directory: &Path, model: &Model) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|source| Error::Io { path, source })
        };
        let mut others = Vec::new();
        for name in FILES {
            if directory.join(name).is_file() {
                others.push((name, read(name)?));
            }
        }
        let template = TemplateFiles::read(directory)
            .map_err(|source| Error::Template { path: directory.to_owned(), source })?;
        let tokenizer = read(TOKENIZER_FILE)?;
        Ok(Self { tokenizer, template, others, settings: settings(model)? })
    }

    /// Checks that episodes can be told with them, and says what is odd about that.
    ///
    /// # Errors
    /// The tokenizer or the chat template cannot be used, or not with this network.
    pub fn check(&self, directory: &Path, policy: &Policy) -> Result<(), Error> {
        let path = || directory.to_owned();
        let config_json = self.config_json(&policy.config().to_json());
        let tokenizer = Tokenizer::of_checkpoint(&self.tokenizer, &config_json)
            .map_err(|source| Error::Tokenizer { path: path(), source })?;
        let (config, tokens) = (policy.config().vocab_size, tokenizer.vocab_size());
        // The embedding may have more rows than there are tokens: many are padded to a round number.
        if !i64::try_from(tokens).is_ok_and(|tokens| tokens <= config) {
            return Err(Error::Vocabulary { path: path(), config, tokenizer: tokens });
        }
        let renderer = Renderer::of_checkpoint(tokenizer, &self.template, &config_json)
            .map_err(|source| Error::Template { path: path(), source })?;
        if renderer.is_built_in() {
            let path = directory.display();
            tracing::info!("{path} has no chat template; episodes use the built-in one");
        }
        if let Some(remark) = renderer.remark() {
            tracing::warn!("{remark}");
        }
        Ok(())
    }

    /// The files that are published with the weights, by name.
    #[must_use]
    pub fn published(&self, policy: &Policy) -> Vec<(String, Vec<u8>)> {
        let config = self.config_json(&policy.config().to_json());
        let own = [(CONFIG_FILE, config), (TOKENIZER_FILE, self.tokenizer.clone())];
        let own = own.map(|(name, contents)| (name.to_owned(), contents));
        let template = self.template.iter();
        own.into_iter()
            .chain(template.map(|(name, contents)| (name.to_owned(), contents.to_vec())))
            .collect()
    }

    /// Writes all of them beside the network's files, and the settings into its config.json.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        let others = self.others.iter().map(|(name, contents)| (*name, contents.as_slice()));
        let files = others.chain(self.template.iter()).chain([(TOKENIZER_FILE, &*self.tokenizer)]);
        for (name, contents) in files {
            write(&directory.join(name), contents)?;
        }
        if self.settings.is_empty() {
            return Ok(());
        }
        let path = directory.join(CONFIG_FILE);
        let config = fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        write(&path, &self.config_json(&config))
    }

    /// A config.json with the settings in it.
    fn config_json(&self, config_json: &[u8]) -> Vec<u8> {
        match serde_json::from_slice::<Map<String, Value>>(config_json) {
            Ok(mut config) if !self.settings.is_empty() => {
                config.extend(self.settings.clone());
                let mut bytes = serde_json::to_vec_pretty(&config).expect("a map of JSON values");
                bytes.push(b'\n');
                bytes
            }
            _ => config_json.to_vec(),
        }
    }
}

/// The keys of config.json for what the run says; none where it says nothing.
fn settings(model: &Model) -> Result<Map<String, Value>, Error> {
    let mut settings = Map::new();
    if !model.tool_call_format.is_empty() {
        let format: Format = model.tool_call_format.parse()?;
        settings.insert("tool_call_format".to_owned(), format.name().into());
    }
    if !model.template_variables.is_empty() {
        let variables = serde_json::to_value(&model.template_variables);
        settings.insert("chat_template_kwargs".to_owned(), variables.unwrap_or_default());
    }
    Ok(settings)
}

fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    // Further templates have a directory of their own.
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    fs::write(path, contents).map_err(failed)
}
