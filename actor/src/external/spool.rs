//! Policy versions as checkpoint directories, where the server finds them.
//!
//! Owns: the version directories below one directory. Each exists for as long as its [`Spooled`]: the
//! version in use, and the next one until the server has it. What a killed process left is removed by
//! the next one.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use safetensors::{Dtype, tensor::View};

use crate::{
    decoder::DecodeError,
    weights::{CONFIG_FILE, StagedPolicy, TOKENIZER_FILE},
};

/// Every directory made here begins with this; nothing else is ever removed.
const PREFIX: &str = "policy-";
/// File of a checkpoint that holds the weights.
const WEIGHTS_FILE: &str = "model.safetensors";
/// The weights of the head, where it is not the embedding.
const HEAD: &str = "lm_head.weight";
/// Bytes of the manifest hash in a name: enough to tell versions of two runs apart.
const HASH_BYTES: usize = 8;

/// Where versions are written.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    /// Versions written so far; makes every directory another one.
    written: AtomicU64,
}

/// One version on disk, removed with this.
#[derive(Debug)]
pub(super) struct Spooled {
    /// What the server is told to call it: the same name is the same weights.
    pub(super) version: String,
    /// Absolute path of the checkpoint.
    pub(super) directory: PathBuf,
    /// The head of the network is its embedding.
    pub(super) tied: bool,
}

impl Spool {
    /// Uses `directory`, and removes what an earlier process left there.
    pub(super) fn open(directory: &Path) -> Result<Self, DecodeError> {
        let cannot = |error: io::Error| {
            DecodeError(format!(
                "{}: {error}; actor.engine.spool must be a directory that this actor can write and \
                 its server can read",
                directory.display()
            ))
        };
        fs::create_dir_all(directory).map_err(cannot)?;
        let directory = directory.canonicalize().map_err(cannot)?;
        remove_versions(&directory).map_err(cannot)?;
        Ok(Self { directory, written: AtomicU64::new(0) })
    }

    /// Writes a version. Nobody hears of its directory before it is whole.
    pub(super) fn write(&self, staged: &StagedPolicy) -> Result<Spooled, DecodeError> {
        let hash: String =
            staged.manifest_hash.0[..HASH_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        let version = format!("{PREFIX}{}-{hash}", staged.policy_version.0);
        let number = self.written.fetch_add(1, Relaxed);
        let directory = self.directory.join(format!("{version}-{number}"));
        let tied = staged.tensors.iter().all(|(entry, _)| entry.name != HEAD);
        let spooled = Spooled { version, directory, tied };
        // Dropping `spooled` removes what was written of it.
        write_checkpoint(&spooled.directory, staged).map_err(|error| {
            DecodeError(format!(
                "{} cannot be written: {error}; make room, or set actor.engine.spool to another disk",
                spooled.directory.display()
            ))
        })?;
        Ok(spooled)
    }
}

impl Drop for Spooled {
    /// A directory that stays is only a waste of disk.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!("{} cannot be removed: {error}", self.directory.display());
        }
    }
}

fn remove_versions(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn write_checkpoint(directory: &Path, staged: &StagedPolicy) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::write(directory.join(CONFIG_FILE), &staged.config_json)?;
    fs::write(directory.join(TOKENIZER_FILE), &staged.tokenizer_json)?;
    let views = staged
        .tensors
        .iter()
        .map(|(entry, bytes)| Ok((entry.name.as_str(), Tensor::new(entry, bytes)?)));
    let views = views.collect::<io::Result<Vec<_>>>()?;
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, metadata, &directory.join(WEIGHTS_FILE))
        .map_err(|error| io::Error::other(error.to_string()))
}

/// What safetensors wants to know of a tensor.
struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    fn new(entry: &ballast_proto::v1::TensorEntry, bytes: &'a [u8]) -> io::Result<Self> {
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::F32,
            "BF16" => Dtype::BF16,
            other => return Err(io::Error::other(format!("{}: dtype {other}", entry.name))),
        };
        let dim = |dim: &u64| usize::try_from(*dim).map_err(io::Error::other);
        let shape = entry.shape.iter().map(dim).collect::<io::Result<_>>()?;
        Ok(Self { dtype, shape, bytes })
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::TensorEntry;

    use super::*;
    use crate::testing::staged;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.expect("an entry").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_version_is_a_checkpoint_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(&root.path().join("a/b")).expect("a spool");
        let entry =
            TensorEntry { name: "w".into(), dtype: "BF16".into(), shape: vec![1, 2], hash: vec![] };
        let policy = StagedPolicy { tensors: vec![(entry, vec![1, 2, 3, 4].into())], ..staged(7) };
        let spooled = spool.write(&policy).expect("written");
        assert_eq!(spooled.version, "policy-7-0707070707070707");
        assert!(spooled.directory.is_absolute());
        assert_eq!(
            names(&spooled.directory),
            ["config.json", "model.safetensors", "tokenizer.json"]
        );
        let bytes = fs::read(spooled.directory.join(WEIGHTS_FILE)).expect("weights");
        let read = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = read.tensor("w").expect("a tensor");
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::BF16, &[1, 2][..]));
        assert_eq!(tensor.data(), [1, 2, 3, 4]);
        let again = spool.write(&policy).expect("written");
        assert_eq!(again.version, spooled.version);
        drop(spooled);
        assert!(again.directory.is_dir(), "the same version has another directory");
    }

    #[test]
    fn only_its_own_leftovers_are_removed() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["precious", "policy-1-0101010101010101-0"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        let spool = Spool::open(root.path()).expect("a spool");
        assert_eq!(names(root.path()), ["precious"]);
        let spooled = spool.write(&staged(1)).expect("written");
        assert_eq!(names(root.path()).len(), 2);
        drop(spooled);
        assert_eq!(names(root.path()), ["precious"]);
    }

    #[test]
    fn a_version_that_cannot_be_written_leaves_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(root.path()).expect("a spool");
        let entry =
            TensorEntry { name: "w".into(), dtype: "I8".into(), shape: vec![1], hash: vec![] };
        let policy = StagedPolicy { tensors: vec![(entry, vec![1].into())], ..staged(7) };
        let error = spool.write(&policy).expect_err("an unknown dtype");
        assert!(error.0.contains("I8") && error.0.contains("actor.engine.spool"), "{error}");
        assert_eq!(names(root.path()), [""; 0]);
    }
}
