//! A Hugging Face checkpoint directory: `config.json`, `model.safetensors`, and the bytes of single
//! tensors for the wire.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tch::{Device, Kind, Tensor};

use crate::{ConfigError, ModelConfig};

/// Name of the network's configuration in a checkpoint directory.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the tokenizer in a checkpoint directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the weights in a checkpoint directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or cannot be read.
    #[error(
        "{path}: {source}; a checkpoint directory holds config.json, tokenizer.json and model.safetensors"
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

/// Reads all tensors of a safetensors file, as fp32.
///
/// # Errors
/// A missing, truncated or damaged file, or a dtype that is not a float.
pub fn read_weights(path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let io = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only and lives only in this function. A file that another process
    // truncates meanwhile would raise SIGBUS; checkpoints are written beside and renamed, never
    // changed in place.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let tensors = SafeTensors::deserialize(&map).map_err(|error| CheckpointError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let mut named = BTreeMap::new();
    for (name, view) in tensors.iter() {
        let shape: Vec<i64> = view.shape().iter().map(|dim| *dim as i64).collect();
        let dtype = format!("{:?}", view.dtype());
        let tensor =
            tensor_from_bytes(&dtype, &shape, view.data()).map_err(|error| match error {
                CheckpointError::Dtype { dtype, .. } => {
                    CheckpointError::Dtype { name: name.to_owned(), dtype }
                }
                other => other,
            })?;
        named.insert(name.to_owned(), tensor);
    }
    Ok(named)
}

/// Writes named tensors in fp32 to a safetensors file that `transformers` loads. The caller renames
/// it into place.
///
/// # Errors
/// The disk refuses.
pub fn write_weights(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CheckpointError> {
    write(path, tensors, Dtype::F32)
}

/// Writes named tensors in bf16, half the size of fp32 and rounded to 8 bits of mantissa.
///
/// # Errors
/// The disk refuses.
pub fn write_weights_bf16(
    path: &Path,
    tensors: &[(String, Tensor)],
) -> Result<(), CheckpointError> {
    write(path, tensors, Dtype::BF16)
}

fn write(path: &Path, tensors: &[(String, Tensor)], dtype: Dtype) -> Result<(), CheckpointError> {
    let bytes: Vec<(&String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let shape =
                tensor.size().iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
            let kind = if dtype == Dtype::BF16 { Kind::BFloat16 } else { Kind::Float };
            (name, shape, bytes_as(tensor, kind))
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        let view = TensorView::new(dtype, shape.clone(), data)
            .expect("bytes_as gives the dtype's width for each element of the shape");
        (name.as_str(), view)
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, metadata, path).map_err(|error| CheckpointError::Write {
        path: path.to_owned(),
        source: io::Error::other(error.to_string()),
    })
}

/// The bytes of a tensor in fp32, row-major, little-endian.
#[must_use]
pub fn tensor_bytes(tensor: &Tensor) -> Vec<u8> {
    bytes_as(tensor, Kind::Float)
}

fn bytes_as(tensor: &Tensor, kind: Kind) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut bytes = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// An fp32 tensor from the bytes of a safetensors dtype.
///
/// # Errors
/// A dtype that is not F32, F16 or BF16, or a byte string of the wrong size.
pub fn tensor_from_bytes(
    dtype: &str,
    shape: &[i64],
    bytes: &[u8],
) -> Result<Tensor, CheckpointError> {
    let (kind, width) = match dtype {
        "F32" => (Kind::Float, 4),
        "F16" => (Kind::Half, 2),
        "BF16" => (Kind::BFloat16, 2),
        other => {
            return Err(CheckpointError::Dtype { name: String::new(), dtype: other.to_owned() });
        }
    };
    let numel: usize = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).product();
    if bytes.len() != numel * width {
        return Err(CheckpointError::Size {
            shape: shape.to_vec(),
            expected: numel * width,
            found: bytes.len(),
        });
    }
    Ok(Tensor::from_data_size(bytes, shape, kind).to_kind(Kind::Float))
}
