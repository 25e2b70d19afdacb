//! Writing weights as transformers does: one safetensors file, or shards and their index where one
//! file would be too large. Tensors are converted one at a time.

use std::{
    borrow::Cow,
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use safetensors::{Dtype, tensor::View};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{CheckpointError, INDEX_FILE, WEIGHTS_FILE, checkpoint::bytes_as};

/// Largest weights file, bytes; only a single tensor that is larger makes a larger one.
pub const SHARD_BYTES_MAX: usize = 5_000_000_000;

/// A tensor and the kind to write it in.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) kind: Kind,
}

/// What safetensors wants to know of a [`Stored`].
struct StoredView<'a> {
    stored: &'a Stored,
    shape: Vec<usize>,
}

/// Writes named tensors in fp32 to a safetensors file that `transformers` loads. The caller renames
/// it into place.
///
/// # Errors
/// The disk refuses.
pub fn write_weights(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CheckpointError> {
    write_as(path, tensors, Kind::Float)
}

/// Writes named tensors in bf16, half the size of fp32 and rounded to 8 bits of mantissa.
///
/// # Errors
/// The disk refuses.
pub fn write_weights_bf16(
    path: &Path,
    tensors: &[(String, Tensor)],
) -> Result<(), CheckpointError> {
    write_as(path, tensors, Kind::BFloat16)
}

fn write_as(path: &Path, tensors: &[(String, Tensor)], kind: Kind) -> Result<(), CheckpointError> {
    let stored: Vec<Stored> = tensors
        .iter()
        .map(|(name, tensor)| Stored { name: name.clone(), tensor: tensor.shallow_clone(), kind })
        .collect();
    write_file(path, &stored)
}

/// Writes the weights of a checkpoint directory.
pub(crate) fn write_shards(directory: &Path, tensors: &[Stored]) -> Result<(), CheckpointError> {
    write_shards_of(directory, tensors, SHARD_BYTES_MAX)
}

fn write_shards_of(
    directory: &Path,
    tensors: &[Stored],
    bytes_max: usize,
) -> Result<(), CheckpointError> {
    let (single, index) = (directory.join(WEIGHTS_FILE), directory.join(INDEX_FILE));
    let shards = split(tensors, bytes_max);
    if shards.len() <= 1 {
        remove_stale(&index)?;
        return write_file(&single, tensors);
    }
    remove_stale(&single)?;
    let mut weight_map = Map::new();
    let count = shards.len();
    for (number, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        write_file(&directory.join(&name), shard)?;
        weight_map.extend(shard.iter().map(|stored| (stored.name.clone(), name.clone().into())));
    }
    weight_map.sort_keys();
    let total_size: usize = tensors.iter().map(Stored::bytes).sum();
    let total_parameters: usize = tensors.iter().map(|stored| stored.tensor.numel()).sum();
    let metadata = json!({ "total_parameters": total_parameters, "total_size": total_size });
    let text = json!({ "metadata": metadata, "weight_map": Value::Object(weight_map) });
    fs::write(&index, format!("{text:#}\n"))
        .map_err(|source| CheckpointError::Write { path: index, source })
}

/// Cuts the list into runs of at most `bytes_max`; a tensor that is larger is a run of its own.
fn split(tensors: &[Stored], bytes_max: usize) -> Vec<&[Stored]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, stored) in tensors.iter().enumerate() {
        if at > start && bytes + stored.bytes() > bytes_max {
            shards.push(&tensors[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += stored.bytes();
    }
    shards.push(&tensors[start..]);
    shards
}

/// Whoever reads the directory must not find the weights of an earlier save.
fn remove_stale(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(CheckpointError::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write_file(path: &Path, tensors: &[Stored]) -> Result<(), CheckpointError> {
    let views = tensors.iter().map(|stored| (stored.name.as_str(), StoredView::of(stored)));
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, metadata, path).map_err(|error| CheckpointError::Write {
        path: path.to_owned(),
        source: io::Error::other(error.to_string()),
    })
}

// === impl Stored ===

impl Stored {
    fn bytes(&self) -> usize {
        self.tensor.numel() * self.kind.elt_size_in_bytes()
    }
}

// === impl StoredView ===

impl<'a> StoredView<'a> {
    fn of(stored: &'a Stored) -> Self {
        let sizes = stored.tensor.size();
        let shape = sizes.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
        Self { stored, shape }
    }
}

impl View for StoredView<'_> {
    fn dtype(&self) -> Dtype {
        match self.stored.kind {
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytes_as(&self.stored.tensor, self.stored.kind).into()
    }

    fn data_len(&self) -> usize {
        self.stored.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weights;

    fn stored(sizes: &[i64]) -> Vec<Stored> {
        let options = (Kind::Float, tch::Device::Cpu);
        let tensor = |size: i64| Tensor::arange(size, options);
        let of = |(at, size): (usize, &i64)| Stored {
            name: format!("t{at}"),
            tensor: tensor(*size),
            kind: Kind::Float,
        };
        sizes.iter().enumerate().map(of).collect()
    }

    #[test]
    fn shards_are_as_full_as_the_bound_allows() {
        let lengths = |sizes: &[i64]| {
            let tensors = stored(sizes);
            split(&tensors, 40).iter().map(|shard| shard.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[5, 5, 1]), [2, 1]);
        assert_eq!(lengths(&[100, 1, 100]), [1, 1, 1]);
        assert_eq!(lengths(&[10]), [1]);
    }

    #[test]
    fn what_is_written_in_shards_is_read_again_and_replaces_a_single_file() {
        let directory = tempfile::tempdir().unwrap();
        let tensors = stored(&[3, 4, 5]);
        write_shards_of(directory.path(), &stored(&[1]), 100).unwrap();
        write_shards_of(directory.path(), &tensors, 20).unwrap();
        let weights = Weights::open(directory.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["t0", "t1", "t2"]);
        assert!(weights.tensor("t2").unwrap().equal(&tensors[2].tensor));
        assert!(directory.path().join("model-00003-of-00003.safetensors").is_file());
        write_shards_of(directory.path(), &stored(&[1]), 100).unwrap();
        assert_eq!(Weights::open(directory.path()).unwrap().names().count(), 1);
    }
}
