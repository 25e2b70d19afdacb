//! The weights of a checkpoint directory, mapped into memory and not copied before they are asked
//! for: one safetensors file, or the shards that an index lists.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::{
    CheckpointError, INDEX_FILE, WEIGHTS_FILE,
    checkpoint::{byte_count, kind_of},
};

/// Bytes of the length that a safetensors file begins with.
const LENGTH_BYTES: usize = 8;

/// The tensors of a checkpoint, by name.
#[derive(Debug)]
pub struct Weights {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Located>,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    map: Mmap,
}

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Located {
    file: usize,
    /// Its bytes in that file.
    bytes: Range<usize>,
    kind: Kind,
    shape: Vec<i64>,
}

/// `model.safetensors.index.json`; its `metadata` adds nothing to what the shards say themselves.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weights of a checkpoint directory: `model.safetensors`, or else what
    /// `model.safetensors.index.json` lists, as transformers chooses.
    ///
    /// # Errors
    /// A missing or damaged file, an index that is not of its shards, or a dtype that is not a float.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let single = directory.join(WEIGHTS_FILE);
        let index = directory.join(INDEX_FILE);
        if single.exists() || !index.exists() {
            return Self::open_file(&single);
        }
        Self::open_shards(directory, &index)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// A missing or damaged file, or a dtype that is not a float.
    pub fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let map = map_file(path)?;
        let tensors = locate(path, &map, 0)?.into_iter().collect();
        Ok(Self { files: vec![Mapped { path: path.to_owned(), map }], tensors })
    }

    fn open_shards(directory: &Path, path: &Path) -> Result<Self, CheckpointError> {
        let wrong = |reason: String| CheckpointError::Index { path: path.to_owned(), reason };
        let text = fs::read(path)
            .map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut weights = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            // A name with a directory in it would reach outside the checkpoint.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(wrong(format!("{name:?} is not the name of a file beside it")));
            }
            let shard = directory.join(name);
            if !shard.exists() {
                return Err(wrong(format!("it lists the shard {name}, which is not there")));
            }
            let map = map_file(&shard)?;
            for (tensor, located) in locate(&shard, &map, weights.files.len())? {
                if index.weight_map.get(&tensor) != Some(name) {
                    let reason = format!("it does not place the tensor {tensor} in {name}");
                    return Err(wrong(reason));
                }
                weights.tensors.insert(tensor, located);
            }
            weights.files.push(Mapped { path: shard, map });
        }
        let absent = index.weight_map.iter().find(|(name, _)| !weights.tensors.contains_key(*name));
        match absent {
            Some((tensor, shard)) => {
                Err(wrong(format!("it places the tensor {tensor} in {shard}, which lacks it")))
            }
            None => Ok(weights),
        }
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shapes of all tensors.
    pub(crate) fn shapes(&self) -> BTreeMap<&str, Vec<i64>> {
        self.tensors.iter().map(|(name, at)| (name.as_str(), at.shape.clone())).collect()
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Copies a tensor out, in the dtype it is stored in.
    ///
    /// # Errors
    /// There is no such tensor, or libtorch refuses its shape.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let (tensor, _) = self.read(name)?;
        Ok(tensor)
    }

    /// The same, of finite numbers only.
    ///
    /// # Errors
    /// The tensor is not there or holds NaN or infinity.
    pub fn finite_tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let (tensor, path) = self.read(name)?;
        if is_finite(&tensor) {
            return Ok(tensor);
        }
        Err(CheckpointError::NotFinite { path: path.to_owned(), name: name.to_owned() })
    }

    fn read(&self, name: &str) -> Result<(Tensor, &Path), CheckpointError> {
        let damaged = |path: &Path, reason: String| CheckpointError::Damaged {
            path: path.to_owned(),
            reason: format!("tensor {name}: {reason}"),
        };
        let Some(located) = self.tensors.get(name) else {
            let path = self.files.first().map_or(Path::new(WEIGHTS_FILE), |file| &file.path);
            return Err(damaged(path, "not in it".to_owned()));
        };
        let Mapped { path, map } = &self.files[located.file];
        let bytes = &map[located.bytes.clone()];
        let tensor = Tensor::f_from_data_size(bytes, &located.shape, located.kind)
            .map_err(|error| damaged(path, error.to_string()))?;
        Ok((tensor, path))
    }
}

fn map_file(path: &Path) -> Result<Mmap, CheckpointError> {
    let io = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only. A file that another process truncates while it is mapped would
    // raise SIGBUS; checkpoints are written beside and renamed, never changed in place.
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// The tensors of a mapped file, each checked to be what its shape says and within the file.
fn locate(path: &Path, map: &Mmap, file: usize) -> Result<Vec<(String, Located)>, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
    let (header, metadata) =
        SafeTensors::read_metadata(map).map_err(|error| damaged(error.to_string()))?;
    let start = LENGTH_BYTES + header;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = format!("{:?}", info.dtype);
        let Some(kind) = kind_of(&dtype) else {
            return Err(CheckpointError::Dtype { name, dtype });
        };
        let shape: Option<Vec<i64>> =
            info.shape.iter().map(|dim| i64::try_from(*dim).ok()).collect();
        let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
        let whole = |shape: &Vec<i64>| {
            byte_count(shape, kind) == Some(bytes.len()) && bytes.end <= map.len()
        };
        let Some(shape) = shape.filter(whole) else {
            return Err(damaged(format!("tensor {name} of shape {:?} is not whole", info.shape)));
        };
        tensors.push((name, Located { file, bytes, kind, shape }));
    }
    Ok(tensors)
}

/// One pass where all is well: a sum is NaN or infinite if one of its terms is. A sum that merely
/// overflows is looked into.
fn is_finite(tensor: &Tensor) -> bool {
    tensor.sum(tensor.kind()).double_value(&[]).is_finite()
        || tensor.isfinite().all().int64_value(&[]) != 0
}
