//! A checkpoint directory, opened for `score`, `generate` and `serve`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use ballast_chat::{Tokenizer, TokenizerError};
use ballast_policy::{CheckpointError, DeviceError, Dtype, Policy, TOKENIZER_FILE, open_device};
use serde_json::Value;

use crate::{decoder::Decoder, serve::served_model::eos_tokens, torch_decoder::TorchDecoder};

/// Which checkpoint, and where it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Hugging Face checkpoint directory.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Where the network runs: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Numbers the network computes with: fp32 or bf16.
    #[arg(long, default_value = "fp32")]
    pub dtype: String,
    /// Threads of the backend [default: all cores].
    #[arg(long)]
    threads: Option<u32>,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Model {
    directory: PathBuf,
    policy: Policy,
    /// Why there is none, where there is none: scoring and generating from token ids need none.
    tokenizer: Result<Tokenizer, Arc<ModelError>>,
    eos_tokens: Vec<u32>,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device, or the numbers it is to compute with.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file that says something else than JSON.
    #[error("{path} is no valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// Text is asked for, and there is no usable tokenizer.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenizerError,
    },
    /// The network has no row for some token.
    #[error(
        "config.json says vocab_size {config}, but {path} has {tokenizer} tokens; the two files do \
         not belong together"
    )]
    Vocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Vocabulary of the network.
        config: usize,
        /// Vocabulary of the tokenizer.
        tokenizer: usize,
    },
}

impl ModelArgs {
    /// Threads of the backend.
    #[must_use]
    pub fn threads(&self) -> u32 {
        let cores = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or_else(|| u32::try_from(cores()).unwrap_or(u32::MAX)).max(1)
    }
}

impl Model {
    /// Reads a checkpoint directory.
    ///
    /// # Errors
    /// A file that is missing, damaged or does not fit the others, or an absent device.
    pub fn open(args: &ModelArgs) -> Result<Self, ModelError> {
        ballast_policy::set_threads(args.threads());
        let directory = args.model.clone();
        let device = open_device(&args.device)?;
        let policy = Policy::open(&directory, device, args.dtype.parse::<Dtype>()?)?;
        let vocab_size = usize::try_from(policy.config().vocab_size).unwrap_or(0);
        let tokenizer = open_tokenizer(&directory, vocab_size).map_err(Arc::new);
        let generation = read_json(&directory.join("generation_config.json"))?;
        let config = read_json(&directory.join(ballast_policy::CONFIG_FILE))?.unwrap_or_default();
        let eos_tokens = eos_tokens(generation.as_ref(), &config);
        Ok(Self { directory, policy, tokenizer, eos_tokens })
    }

    /// The network.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where it was read from.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// It has none that can be used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Arc<ModelError>> {
        self.tokenizer.clone()
    }

    /// Tokens the network has an embedding for.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        usize::try_from(self.policy.config().vocab_size).unwrap_or(0)
    }

    /// Longest sequence, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        usize::try_from(self.policy.config().positions_max).unwrap_or(0)
    }

    /// Tokens that end a completion, as the checkpoint says.
    #[must_use]
    pub fn stop_tokens(&self) -> Vec<u32> {
        self.eos_tokens.clone()
    }

    /// A decoder of `slots` sequences of at most `tokens_max` tokens each.
    #[must_use]
    pub fn into_decoder(self, slots: usize, tokens_max: usize) -> Box<dyn Decoder> {
        let control = self.tokenizer.map_or([0; 8], |tokenizer| tokenizer.control().all());
        Box::new(TorchDecoder::new(self.policy, control, slots, tokens_max))
    }
}

fn open_tokenizer(directory: &Path, vocab_size: usize) -> Result<Tokenizer, ModelError> {
    let path = directory.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::of_directory(directory)
        .map_err(|source| ModelError::Tokenizer { path: path.clone(), source })?;
    // An embedding may be padded; one that is too small would be read out of bounds.
    if tokenizer.vocab_size() > vocab_size {
        let (config, tokenizer) = (vocab_size, tokenizer.vocab_size());
        return Err(ModelError::Vocabulary { path, config, tokenizer });
    }
    Ok(tokenizer)
}

/// Contents of a JSON file; `None` where there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CheckpointError::Read { path: path.to_owned(), source }.into());
        }
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}
