//! Fetches one policy version chunk by chunk and verifies it. Verified chunks survive a broken
//! connection: the next attempt fetches only what is missing.

use std::{collections::BTreeMap, time::Duration};

use ballast_chat::TemplateFiles;
use ballast_proto::{
    FETCH_BYTES_MAX, InvalidManifest, ManifestHash, PolicyVersion,
    v1::{
        Chunk, FetchRequest, ModelFile, WeightEncoding, WeightManifest,
        weights_client::WeightsClient,
    },
    verify_manifest,
};
use bytes::Bytes;
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use super::{CONFIG_FILE, StagedPolicy, TOKENIZER_FILE};

/// Largest policy an actor accepts, in bytes: a 7B model in fp32 takes 28 GiB. Checked before
/// anything is allocated.
pub const POLICY_BYTES_MAX: u64 = 64 << 30;
/// Largest single chunk or model file, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 1 << 30;
/// A source that sends nothing for this long during a fetch is given up.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Why a published version was not staged.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The manifest contradicts itself.
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    /// The manifest is written in a way this actor cannot read.
    #[error("the manifest of {0} has an encoding this actor does not know; update the actor")]
    Encoding(PolicyVersion),
    /// More bytes than an actor accepts.
    #[error("{what} of {version} has {bytes} bytes, more than the {max} an actor accepts")]
    TooLarge {
        /// Policy version.
        version: PolicyVersion,
        /// What is too large.
        what: String,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The machine has not enough memory for it.
    #[error("no memory to stage {bytes} bytes of {version}; give the actor more")]
    Memory {
        /// Policy version.
        version: PolicyVersion,
        /// Bytes needed.
        bytes: u64,
    },
    /// The checkpoint file is not in the manifest.
    #[error("the manifest of {0} lists no {1}")]
    FileMissing(PolicyVersion, &'static str),
    /// What arrived is not what the manifest names.
    #[error("{what} of {version} does not match its hash; the version in use stays")]
    Hash {
        /// Policy version.
        version: PolicyVersion,
        /// Which part.
        what: String,
    },
    /// The source no longer has this version: a newer one is out.
    #[error("{0} has been retired by its source")]
    Retired(PolicyVersion),
    /// The source sent nothing for too long.
    #[error("the source sent nothing for {} s", STALL_MAX.as_secs())]
    Stalled,
    /// The source ended its stream of manifests.
    #[error("the source closed the stream of manifests")]
    Closed,
    /// The call failed.
    #[error("the source failed: {}", .0.message())]
    Source(#[from] Status),
    /// The process shuts down or the address is none.
    #[error(transparent)]
    Connect(#[from] ballast_runtime::net::ConnectError),
    /// The verifying thread died.
    #[error("verification did not finish: {0}")]
    Verification(#[from] tokio::task::JoinError),
}

/// One version on its way in.
#[derive(Debug)]
pub(super) struct Download {
    manifest: WeightManifest,
    hash: ManifestHash,
    version: PolicyVersion,
    /// Verified chunks, concatenated: the bytes of the tensors in order.
    weights: Vec<u8>,
    chunks_verified: usize,
    weights_bytes: u64,
    /// Verified model files by name. They are the same for every version of a run.
    files: BTreeMap<String, (Chunk, Bytes)>,
}

impl Download {
    /// Checks a manifest and its sizes; allocates nothing yet. Files that `previous` already fetched
    /// are taken over when the manifest names the same contents.
    pub(super) fn begin(
        manifest: WeightManifest,
        previous: Option<Self>,
    ) -> Result<Self, WeightsError> {
        let hash = verify_manifest(&manifest)?;
        if let Some(previous) = previous {
            if previous.hash == hash {
                return Ok(previous);
            }
            let fresh = Self::new(manifest, hash, previous.files);
            return fresh.check_sizes();
        }
        Self::new(manifest, hash, BTreeMap::new()).check_sizes()
    }

    fn new(
        manifest: WeightManifest,
        hash: ManifestHash,
        mut files: BTreeMap<String, (Chunk, Bytes)>,
    ) -> Self {
        let wanted = |name: &String, chunk: &Chunk| {
            manifest.files.iter().any(|f| f.name == *name && f.chunk.as_ref() == Some(chunk))
        };
        files.retain(|name, (chunk, _)| wanted(name, chunk));
        let version = PolicyVersion(manifest.policy_version);
        // Cannot overflow: `verify_manifest` compared the saturating sum with the tensors' bytes,
        // and `check_sizes` refuses what saturates.
        let weights_bytes =
            manifest.chunks.iter().fold(0u64, |sum, chunk| sum.saturating_add(chunk.size_bytes));
        Self {
            manifest,
            hash,
            version,
            weights: Vec::new(),
            chunks_verified: 0,
            weights_bytes,
            files,
        }
    }

    fn check_sizes(self) -> Result<Self, WeightsError> {
        let version = self.version;
        if self.manifest.encoding() != WeightEncoding::Full {
            return Err(WeightsError::Encoding(version));
        }
        let check = |what: &str, bytes: u64, max: u64| {
            if bytes <= max {
                return Ok(());
            }
            Err(WeightsError::TooLarge { version, what: what.to_owned(), bytes, max })
        };
        check("the whole", self.weights_bytes, POLICY_BYTES_MAX)?;
        for chunk in &self.manifest.chunks {
            check("a chunk", chunk.size_bytes, CHUNK_BYTES_MAX)?;
        }
        for name in [CONFIG_FILE, TOKENIZER_FILE] {
            check(name, self.file(name)?.size_bytes, CHUNK_BYTES_MAX)?;
        }
        let templates = self.manifest.files.iter().filter(|file| is_template(file));
        let sizes = templates.filter_map(|file| Some(file.chunk.as_ref()?.size_bytes));
        let bytes = sizes.fold(0, u64::saturating_add);
        check("the chat template", bytes, TemplateFiles::FILE_BYTES_MAX)?;
        Ok(self)
    }

    /// Identity of the version.
    pub(super) fn hash(&self) -> ManifestHash {
        self.hash
    }

    /// Fetches what is missing and verifies the whole. After an error the call can be repeated; if
    /// dropped half-way, the chunk at hand is fetched again.
    pub(super) async fn complete(
        &mut self,
        client: &mut WeightsClient<Channel>,
    ) -> Result<StagedPolicy, WeightsError> {
        self.fetch_files(client).await?;
        self.fetch_weights(client).await?;

        // Hashing gigabytes would hold up heartbeats, so it has a thread of its own.
        let (manifest, version) = (self.manifest.clone(), self.version);
        let weights = Bytes::from(std::mem::take(&mut self.weights));
        self.chunks_verified = 0;
        let tensors =
            tokio::task::spawn_blocking(move || cut(manifest, &weights, version)).await??;
        Ok(StagedPolicy {
            policy_version: version,
            manifest_hash: self.hash,
            tensors,
            config_json: self.contents(CONFIG_FILE)?,
            tokenizer_json: self.contents(TOKENIZER_FILE)?,
            template_files: self.template_files(),
        })
    }

    /// Fetches the files that an actor needs and has not got.
    async fn fetch_files(
        &mut self,
        client: &mut WeightsClient<Channel>,
    ) -> Result<(), WeightsError> {
        let needed = |file: &&ModelFile| {
            [CONFIG_FILE, TOKENIZER_FILE].contains(&file.name.as_str()) || is_template(file)
        };
        for ModelFile { name, chunk } in self.manifest.files.iter().filter(needed) {
            if let Some(chunk) = chunk.as_ref().filter(|_| !self.files.contains_key(name)) {
                let mut contents = Vec::new();
                fetch(client, chunk, self.version, name, &mut contents).await?;
                self.files.insert(name.clone(), (chunk.clone(), contents.into()));
            }
        }
        Ok(())
    }

    async fn fetch_weights(
        &mut self,
        client: &mut WeightsClient<Channel>,
    ) -> Result<(), WeightsError> {
        let version = self.version;
        let memory = || WeightsError::Memory { version, bytes: self.weights_bytes };
        let total = usize::try_from(self.weights_bytes).map_err(|_| memory())?;
        // A dropped call may have left part of a chunk behind.
        let verified = &self.manifest.chunks[..self.chunks_verified];
        let verified_bytes: u64 = verified.iter().map(|chunk| chunk.size_bytes).sum();
        self.weights.truncate(usize::try_from(verified_bytes).map_err(|_| memory())?);
        let missing = total.saturating_sub(self.weights.len());
        self.weights
            .try_reserve_exact(missing)
            .map_err(|_| WeightsError::Memory { version, bytes: self.weights_bytes })?;
        while let Some(chunk) = self.manifest.chunks.get(self.chunks_verified) {
            let what = format!("chunk {}", self.chunks_verified);
            fetch(client, chunk, version, &what, &mut self.weights).await?;
            self.chunks_verified += 1;
        }
        Ok(())
    }

    fn file(&self, name: &'static str) -> Result<&Chunk, WeightsError> {
        let entry = |file: &&ModelFile| file.name == name;
        let file = self.manifest.files.iter().find(entry);
        file.and_then(|file| file.chunk.as_ref())
            .ok_or(WeightsError::FileMissing(self.version, name))
    }

    fn template_files(&self) -> TemplateFiles {
        let files = self.files.iter();
        files.map(|(name, (_, contents))| (name.clone(), contents.to_vec())).collect()
    }

    fn contents(&self, name: &'static str) -> Result<Bytes, WeightsError> {
        let file = self.files.get(name).ok_or(WeightsError::FileMissing(self.version, name))?;
        Ok(file.1.clone())
    }
}

fn is_template(file: &ModelFile) -> bool {
    TemplateFiles::has_place_for(&file.name)
}

/// Appends the contents of one chunk to `into`; on any error `into` is left as it was.
async fn fetch(
    client: &mut WeightsClient<Channel>,
    chunk: &Chunk,
    version: PolicyVersion,
    what: &str,
    into: &mut Vec<u8>,
) -> Result<(), WeightsError> {
    let start = into.len();
    let received = receive(client, chunk, version, into).await;
    let verified = received.and_then(|hash| {
        let size = (into.len() - start) as u64;
        if size == chunk.size_bytes && hash.as_bytes() == chunk.hash.as_slice() {
            return Ok(());
        }
        Err(WeightsError::Hash { version, what: what.to_owned() })
    });
    if verified.is_err() {
        into.truncate(start);
    }
    verified
}

/// Streams a chunk into `into`, stopping as soon as the source sends more than it announced.
async fn receive(
    client: &mut WeightsClient<Channel>,
    chunk: &Chunk,
    version: PolicyVersion,
    into: &mut Vec<u8>,
) -> Result<blake3::Hash, WeightsError> {
    let retired = |status: Status| match status.code() {
        Code::NotFound => WeightsError::Retired(version),
        _ => WeightsError::Source(status),
    };
    let stalled = |_| WeightsError::Stalled;
    let request = FetchRequest { hash: chunk.hash.clone() };
    let response = timeout(STALL_MAX, client.fetch(request)).await.map_err(stalled)?;
    let mut pieces = response.map_err(retired)?.into_inner();
    let mut hasher = blake3::Hasher::new();
    let mut missing = chunk.size_bytes;
    while let Some(piece) =
        timeout(STALL_MAX, pieces.message()).await.map_err(stalled)?.map_err(retired)?
    {
        let size = piece.data.len() as u64;
        if size > missing || piece.data.len() > FETCH_BYTES_MAX {
            let what = "a piece of a chunk".to_owned();
            let max = missing.min(FETCH_BYTES_MAX as u64);
            return Err(WeightsError::TooLarge { version, what, bytes: size, max });
        }
        missing -= size;
        hasher.update(&piece.data);
        into.extend_from_slice(&piece.data);
    }
    Ok(hasher.finalize())
}

/// Cuts the weights into tensors without copying, and checks each tensor's own hash.
fn cut(
    manifest: WeightManifest,
    weights: &Bytes,
    version: PolicyVersion,
) -> Result<Vec<(ballast_proto::v1::TensorEntry, Bytes)>, WeightsError> {
    let mut start = 0usize;
    let tensors = manifest.tensors.into_iter().map(|entry| {
        // `verify_manifest` knows both dtypes and made the sizes add up to `weights.len()`.
        let width: u64 = if entry.dtype == "BF16" { 2 } else { 4 };
        let size = entry.shape.iter().fold(width, |size, dim| size.saturating_mul(*dim));
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        let hash = |what| WeightsError::Hash { version, what };
        if end > weights.len() {
            return Err(hash(format!("tensor {}", entry.name)));
        }
        let bytes = weights.slice(start..end);
        start = end;
        if blake3::hash(&bytes).as_bytes() != entry.hash.as_slice() {
            return Err(hash(format!("tensor {}", entry.name)));
        }
        Ok((entry, bytes))
    });
    tensors.collect()
}
