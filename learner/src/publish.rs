//! Weight versions that actors fetch: the newest and the one before it, as content-addressed chunks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ballast_policy::{Policy, tensor_bytes};
use ballast_proto::{
    ManifestHash, PolicyVersion, canonical_hash,
    v1::{Chunk, ModelFile, TensorEntry, WeightEncoding, WeightManifest},
};
use bytes::Bytes;
use tokio::sync::watch;

use crate::companions::Companions;

/// Size of a chunk, bytes; the last one of a version may be smaller.
const CHUNK_BYTES: usize = 4 << 20;

/// Versions kept: actors still fetching the previous one are not cut off by a new one.
const VERSIONS_KEPT: usize = 2;

/// Bytes of one version's chunks, by their BLAKE3.
type Chunks = HashMap<[u8; 32], Bytes>;

/// Versions on offer. Cheap to clone; the training thread publishes, the `Weights` service reads.
#[derive(Clone, Debug)]
pub struct WeightStore {
    /// Oldest first.
    versions: Arc<Mutex<Vec<Chunks>>>,
    newest: watch::Sender<Option<Arc<WeightManifest>>>,
    companions: Companions,
}

impl WeightStore {
    /// An empty store; `companions` go with every version.
    #[must_use]
    pub fn new(companions: Companions) -> Self {
        let (newest, _) = watch::channel(None);
        Self { versions: Arc::default(), newest, companions }
    }

    /// Copies the policy's weights and offers them as `version`. Blocks on nobody.
    pub fn publish(&self, version: PolicyVersion, policy: &Policy) -> ManifestHash {
        let (manifest, chunks) = describe(version, policy, &self.companions);
        let hash = ManifestHash::from_wire(&manifest.manifest_hash)
            .expect("describe fills in a BLAKE3 hash");
        {
            let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
            versions.push(chunks);
            let excess = versions.len().saturating_sub(VERSIONS_KEPT);
            versions.drain(..excess);
        }
        self.newest.send_replace(Some(Arc::new(manifest)));
        hash
    }

    /// Follows the newest manifest.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<WeightManifest>>> {
        self.newest.subscribe()
    }

    /// The bytes of a chunk; `None` once the versions that hold it are retired.
    #[must_use]
    pub fn chunk(&self, hash: &[u8; 32]) -> Option<Bytes> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.iter().rev().find_map(|chunks| chunks.get(hash).cloned())
    }
}

fn describe(
    version: PolicyVersion,
    policy: &Policy,
    companions: &Companions,
) -> (WeightManifest, Chunks) {
    let mut tensors = Vec::new();
    let mut contents = Vec::new();
    for (name, tensor) in policy.named_tensors() {
        let bytes = tensor_bytes(&tensor);
        tensors.push(TensorEntry {
            name,
            dtype: "F32".to_owned(),
            shape: tensor.size().iter().map(|dim| dim.unsigned_abs()).collect(),
            hash: blake3::hash(&bytes).as_bytes().to_vec(),
        });
        contents.extend_from_slice(&bytes);
    }
    let contents = Bytes::from(contents);
    let mut chunks = Chunks::new();
    let mut offer = |bytes: Bytes| {
        let hash = *blake3::hash(&bytes).as_bytes();
        let chunk = Chunk { hash: hash.to_vec(), size_bytes: bytes.len() as u64 };
        chunks.insert(hash, bytes);
        chunk
    };
    let listed = (0..contents.len())
        .step_by(CHUNK_BYTES)
        .map(|start| offer(contents.slice(start..contents.len().min(start + CHUNK_BYTES))))
        .collect();
    let files = companions.published(policy).into_iter();
    let files = files.map(|(name, bytes)| ModelFile { name, chunk: Some(offer(bytes.into())) });
    let mut manifest = WeightManifest {
        policy_version: version.0,
        encoding: WeightEncoding::Full.into(),
        tensors,
        chunks: listed,
        files: files.collect(),
        manifest_hash: Vec::new(),
    };
    manifest.manifest_hash = canonical_hash(&manifest).0.to_vec();
    (manifest, chunks)
}
