//! A Hugging Face checkpoint directory: its files, what can be wrong with them, and the bytes of
//! single tensors for the wire. Reading weights is in `weights`, writing them in `shards`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use tch::{Device, Kind, Tensor};

use crate::{ConfigError, ModelConfig, ParameterError, Weights};

/// Name of the network's configuration in a checkpoint directory.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the tokenizer in a checkpoint directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the weights in a checkpoint directory, where they are one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the list that says which file holds which tensor, where the weights are several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or cannot be read.
    #[error(
        "{path}: {source}; a checkpoint directory holds config.json, tokenizer.json and model.safetensors \
         (or model.safetensors.index.json and its shards)"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `config.json` does not describe a network Ballast runs.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The safetensors file is truncated or damaged.
    #[error(
        "{path} is truncated or not a safetensors file ({reason}); put a whole one in its place, or name another checkpoint"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// The index of the shards is damaged, or is not of these shards.
    #[error("{path}: {reason}; the index and all its shards must be of one checkpoint")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor has a dtype other than F32, F16 or BF16.
    #[error("tensor {name} has dtype {dtype}; supported: F32, F16, BF16")]
    Dtype {
        /// Tensor name.
        name: String,
        /// Its dtype.
        dtype: String,
    },
    /// A byte string does not have the size its shape asks for.
    #[error("a tensor of shape {shape:?} needs {expected} bytes, not {found}")]
    Size {
        /// Shape.
        shape: Vec<i64>,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A weight is not a number, or infinite.
    #[error(
        "{path}: tensor {name} holds NaN or infinity; name a checkpoint from before it went wrong"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        name: String,
    },
    /// The weights are not the network's.
    #[error("{path}: {source}; weights and config.json must be of one checkpoint")]
    Parameters {
        /// The checkpoint directory.
        path: PathBuf,
        /// What does not fit.
        source: ParameterError,
    },
}

/// Reads `config.json` of a checkpoint directory.
///
/// # Errors
/// A missing file, or a network that is not supported.
pub fn read_config(directory: &Path) -> Result<ModelConfig, CheckpointError> {
    let path = directory.join(CONFIG_FILE);
    let bytes = std::fs::read(&path)
        .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    ModelConfig::from_json(&bytes).map_err(|source| CheckpointError::Config { path, source })
}

/// Reads all tensors of one safetensors file, in the dtypes they have there.
///
/// # Errors
/// A missing, truncated or damaged file, or a dtype that is not a float.
pub fn read_weights(path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let weights = Weights::open_file(path)?;
    weights.names().map(|name| Ok((name.to_owned(), weights.tensor(name)?))).collect()
}

/// The bytes of a tensor in fp32, row-major, little-endian.
#[must_use]
pub fn tensor_bytes(tensor: &Tensor) -> Vec<u8> {
    bytes_as(tensor, Kind::Float)
}

pub(crate) fn bytes_as(tensor: &Tensor, kind: Kind) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut bytes = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// libtorch's kind of a safetensors dtype.
pub(crate) fn kind_of(dtype: &str) -> Option<Kind> {
    match dtype {
        "F32" => Some(Kind::Float),
        "F16" => Some(Kind::Half),
        "BF16" => Some(Kind::BFloat16),
        _ => None,
    }
}

/// A tensor from bytes in a safetensors dtype, which it keeps.
///
/// # Errors
/// A dtype that is not F32, F16 or BF16, or a byte string of the wrong size.
pub fn tensor_from_bytes(
    dtype: &str,
    shape: &[i64],
    bytes: &[u8],
) -> Result<Tensor, CheckpointError> {
    let unknown =
        || CheckpointError::Dtype { name: "from the wire".into(), dtype: dtype.to_owned() };
    let kind = kind_of(dtype).ok_or_else(unknown)?;
    let expected = byte_count(shape, kind).unwrap_or(usize::MAX);
    let wrong = || CheckpointError::Size { shape: shape.to_vec(), expected, found: bytes.len() };
    if bytes.len() != expected {
        return Err(wrong());
    }
    Tensor::f_from_data_size(bytes, shape, kind).map_err(|_| wrong())
}

/// Bytes of a tensor; `None` for a shape that cannot be.
pub(crate) fn byte_count(shape: &[i64], kind: Kind) -> Option<usize> {
    shape.iter().try_fold(kind.elt_size_in_bytes(), |bytes, dim| {
        bytes.checked_mul(usize::try_from(*dim).ok()?)
    })
}
