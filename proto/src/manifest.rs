//! Identity and structure of a weight manifest.

use prost::Message as _;

use crate::{ManifestHash, v1::WeightManifest};

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// The manifest does not hash to the hash it carries.
    #[error("the manifest of v{0} does not match its own hash")]
    Hash(u64),
    /// The chunks do not add up to the tensors.
    #[error("the manifest of v{version} lists {chunks} bytes of chunks for {tensors} of tensors")]
    Size {
        /// Policy version.
        version: u64,
        /// Sum of the chunk sizes, bytes.
        chunks: u64,
        /// Sum of the tensor sizes, bytes.
        tensors: u64,
    },
    /// A dtype other than F32 or BF16.
    #[error("tensor {0} has the unknown dtype {1}")]
    Dtype(String, String),
}

/// BLAKE3 of the manifest's canonical encoding: prost's, with `manifest_hash` empty. The message has
/// no map and prost writes fields in tag order, so equal manifests have equal encodings.
#[must_use]
pub fn canonical_hash(manifest: &WeightManifest) -> ManifestHash {
    let bare = WeightManifest { manifest_hash: Vec::new(), ..manifest.clone() };
    ManifestHash(*blake3::hash(&bare.encode_to_vec()).as_bytes())
}

/// Checks that a manifest hashes to its own hash and that its chunks cover its tensors exactly.
///
/// # Errors
/// The first fault found.
pub fn verify_manifest(manifest: &WeightManifest) -> Result<ManifestHash, InvalidManifest> {
    let version = manifest.policy_version;
    let hash = canonical_hash(manifest);
    if manifest.manifest_hash != hash.0 {
        return Err(InvalidManifest::Hash(version));
    }
    let mut tensors = 0u64;
    for entry in &manifest.tensors {
        let width = match entry.dtype.as_str() {
            "F32" => 4,
            "BF16" => 2,
            other => return Err(InvalidManifest::Dtype(entry.name.clone(), other.to_owned())),
        };
        let bytes = entry.shape.iter().fold(width, |bytes: u64, dim| bytes.saturating_mul(*dim));
        tensors = tensors.saturating_add(bytes);
    }
    let chunks =
        manifest.chunks.iter().fold(0u64, |sum, chunk| sum.saturating_add(chunk.size_bytes));
    if chunks != tensors {
        return Err(InvalidManifest::Size { version, chunks, tensors });
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Chunk, TensorEntry, WeightEncoding};

    fn manifest() -> WeightManifest {
        let mut manifest = WeightManifest {
            policy_version: 3,
            encoding: WeightEncoding::Full.into(),
            tensors: vec![TensorEntry {
                name: "w".into(),
                dtype: "F32".into(),
                shape: vec![2, 3],
                hash: vec![0; 32],
            }],
            chunks: vec![Chunk { hash: vec![1; 32], size_bytes: 24 }],
            files: Vec::new(),
            manifest_hash: Vec::new(),
        };
        manifest.manifest_hash = canonical_hash(&manifest).0.to_vec();
        manifest
    }

    #[test]
    fn a_sound_manifest_is_accepted() {
        assert_eq!(verify_manifest(&manifest()), Ok(canonical_hash(&manifest())));
    }

    #[test]
    fn any_change_breaks_the_hash() {
        let mut changed = manifest();
        changed.tensors[0].hash[0] ^= 1;
        assert_eq!(verify_manifest(&changed), Err(InvalidManifest::Hash(3)));
    }

    #[test]
    fn chunks_must_cover_the_tensors() {
        let mut short = manifest();
        short.chunks[0].size_bytes = 20;
        short.manifest_hash = canonical_hash(&short).0.to_vec();
        assert_eq!(
            verify_manifest(&short),
            Err(InvalidManifest::Size { version: 3, chunks: 20, tensors: 24 })
        );
    }
}
