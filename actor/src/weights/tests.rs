use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use ballast_proto::{
    canonical_hash,
    v1::{
        Chunk, FetchRequest, FetchResponse, ModelFile, WatchWeightsRequest, WeightEncoding,
        WeightManifest,
        weights_server::{Weights, WeightsServer},
    },
};
use ballast_runtime::net::bind;
use tokio::sync::{mpsc, watch};
use tokio_stream::{
    StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use super::*;
use crate::counters::Counters;

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A weights service whose contents the test can spoil.
#[derive(Clone)]
struct FakeLearner {
    manifest: watch::Sender<Option<WeightManifest>>,
    chunks: Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>,
    /// Hash of every chunk fetched, in order.
    fetched: Arc<Mutex<Vec<Vec<u8>>>>,
    /// One message per call of `Watch`.
    watched: mpsc::Sender<()>,
}

type Stream<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Weights for FakeLearner {
    type WatchStream = Stream<WeightManifest>;
    type FetchStream = Stream<FetchResponse>;

    async fn watch(
        &self,
        _request: Request<WatchWeightsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.watched.send(()).await.expect("the test counts");
        let manifests = WatchStream::new(self.manifest.subscribe());
        Ok(Response::new(Box::pin(manifests.filter_map(|manifest| manifest.map(Ok)))))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let hash = request.into_inner().hash;
        self.fetched.lock().expect("no panic").push(hash.clone());
        let contents = self.chunks.lock().expect("no panic").get(&hash).cloned();
        let contents = contents.ok_or_else(|| Status::not_found("retired"))?;
        let pieces: Vec<_> = contents
            .chunks(4)
            .map(|piece| Ok(FetchResponse { data: piece.to_vec().into() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}

/// Bytes of the two tensors of a version; no two chunks of 10 are equal.
fn contents(fill: u8) -> (Vec<u8>, Vec<u8>) {
    let bytes = |range: std::ops::Range<u8>| range.map(|index| fill ^ index).collect();
    (bytes(0..24), bytes(24..30))
}

impl FakeLearner {
    async fn start() -> (Self, String, mpsc::Receiver<()>) {
        let (watched, calls) = mpsc::channel(1000);
        let learner = Self {
            manifest: watch::channel(None).0,
            chunks: Arc::default(),
            fetched: Arc::default(),
            watched,
        };
        let (listener, address) = bind("127.0.0.1:0").await.expect("a free port");
        let server = Server::builder().add_service(WeightsServer::new(learner.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (learner, address.to_string(), calls)
    }

    fn chunk(&self, contents: &[u8]) -> Chunk {
        let hash = blake3::hash(contents).as_bytes().to_vec();
        self.chunks.lock().expect("no panic").insert(hash.clone(), contents.to_vec());
        Chunk { hash, size_bytes: contents.len() as u64 }
    }

    /// A version with two tensors made of `fill`, in chunks of 10 bytes; `change` may spoil it.
    fn publish(&self, version: u64, fill: u8, change: impl FnOnce(&mut WeightManifest)) {
        let (first, second) = contents(fill);
        let entry = |name: &str, dtype: &str, shape: Vec<u64>, bytes: &[u8]| TensorEntry {
            name: name.into(),
            dtype: dtype.into(),
            shape,
            hash: blake3::hash(bytes).as_bytes().to_vec(),
        };
        let mut manifest = WeightManifest {
            policy_version: version,
            encoding: WeightEncoding::Full.into(),
            tensors: vec![
                entry("a", "F32", vec![2, 3], &first),
                entry("b", "BF16", vec![3], &second),
            ],
            chunks: [first, second].concat().chunks(10).map(|bytes| self.chunk(bytes)).collect(),
            files: [
                (CONFIG_FILE, "{}"),
                (TOKENIZER_FILE, "[]"),
                ("chat_template.jinja", "a template"),
                ("notes.txt", "not fetched"),
            ]
            .map(|(name, contents)| ModelFile {
                name: name.into(),
                chunk: Some(self.chunk(contents.as_bytes())),
            })
            .to_vec(),
            manifest_hash: Vec::new(),
        };
        change(&mut manifest);
        manifest.manifest_hash = canonical_hash(&manifest).0.to_vec();
        self.manifest.send_replace(Some(manifest));
    }

    fn take_fetched(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.fetched.lock().expect("no panic"))
    }
}

struct Follower {
    source: watch::Sender<Option<String>>,
    staged: mpsc::Receiver<StagedPolicy>,
    counters: Arc<Counters>,
    cancelled: CancellationToken,
}

impl Follower {
    fn start(address: &str) -> Self {
        let (source, addresses) = watch::channel(Some(address.to_owned()));
        let (sender, staged) = mpsc::channel(8);
        let counters = Arc::new(Counters::default());
        let cancelled = CancellationToken::new();
        let stage = move |policy| sender.try_send(policy).expect("room");
        let task = subscribe(addresses, stage, Arc::clone(&counters), cancelled.clone());
        tokio::spawn(task);
        Self { source, staged, counters, cancelled }
    }

    async fn next(&mut self) -> StagedPolicy {
        let staged = tokio::time::timeout(PATIENCE, self.staged.recv()).await;
        staged.expect("in time").expect("the subscriber runs")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}

#[tokio::test]
async fn a_version_is_staged_byte_for_byte() {
    let (learner, address, _calls) = FakeLearner::start().await;
    learner.publish(4, 7, |_| {});
    let mut follower = Follower::start(&address);
    let staged = follower.next().await;
    assert_eq!(staged.policy_version, PolicyVersion(4));
    let manifest = learner.manifest.borrow().clone().expect("published");
    assert_eq!(staged.manifest_hash, canonical_hash(&manifest));
    let (names, bytes): (Vec<_>, Vec<_>) =
        staged.tensors.iter().map(|(entry, bytes)| (entry.name.as_str(), bytes.to_vec())).unzip();
    assert_eq!(names, ["a", "b"]);
    let (first, second) = contents(7);
    assert_eq!(bytes, [first, second]);
    assert_eq!((&staged.config_json[..], &staged.tokenizer_json[..]), (&b"{}"[..], &b"[]"[..]));
    let templates: Vec<_> = staged.template_files.iter().collect();
    assert_eq!(templates, [("chat_template.jinja", &b"a template"[..])]);
    assert_eq!(learner.take_fetched().len(), 6, "three files and three chunks");

    learner.publish(5, 8, |_| {});
    assert_eq!(follower.next().await.policy_version, PolicyVersion(5));
    assert_eq!(learner.take_fetched().len(), 3, "the files are known");
    assert_eq!(follower.counters.weights_refused(), 0);
}

#[tokio::test]
async fn a_corrupted_chunk_stages_nothing_and_only_the_rest_is_fetched_again() {
    let (learner, address, mut calls) = FakeLearner::start().await;
    learner.publish(1, 1, |_| {});
    let mut follower = Follower::start(&address);
    assert_eq!(follower.next().await.policy_version, PolicyVersion(1));
    calls.recv().await.expect("a call");
    learner.take_fetched();

    // The second of three chunks is wrong in one bit.
    let mut spoiled = Vec::new();
    let (chunks, manifest) = (Arc::clone(&learner.chunks), learner.manifest.clone());
    learner.publish(2, 2, |manifest| {
        spoiled = manifest.chunks[1].hash.clone();
        chunks.lock().expect("no panic").get_mut(&spoiled).expect("a chunk")[0] ^= 1;
    });
    calls.recv().await.expect("it connects again after the fault");
    assert!(follower.staged.try_recv().is_err(), "nothing was staged");
    assert!(follower.counters.weights_refused() >= 1, "the fault was reported");

    chunks.lock().expect("no panic").get_mut(&spoiled).expect("a chunk")[0] ^= 1;
    assert_eq!(follower.next().await.policy_version, PolicyVersion(2));
    let first = manifest.borrow().clone().expect("published").chunks[0].hash.clone();
    let fetched = learner.take_fetched();
    assert_eq!(fetched.iter().filter(|hash| **hash == first).count(), 1, "verified once, kept");
    assert!(fetched.iter().filter(|hash| **hash == spoiled).count() >= 2);
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_until_a_sound_version_comes() {
    type Fault = (&'static str, fn(&mut WeightManifest));
    let faults: [Fault; 8] = [
        ("a tensor's hash", |m| m.tensors[0].hash[0] ^= 1),
        ("more tensors than bytes", |m| m.tensors[0].shape[0] = 3),
        ("an unknown encoding", |m| m.encoding = 9),
        ("an unknown dtype", |m| m.tensors[0].dtype = "F8".into()),
        ("no tokenizer", |m| m.files.retain(|file| file.name != TOKENIZER_FILE)),
        ("too large a policy", |m| {
            m.tensors[0].shape = vec![u64::MAX / 4];
            m.chunks[0].size_bytes = u64::MAX - 26;
        }),
        ("too large a template", |m| {
            m.files[2].chunk.as_mut().expect("a template").size_bytes = 1 << 30;
        }),
        ("too large a chunk", |m| {
            m.tensors[0].shape = vec![1 << 30];
            m.chunks[0].size_bytes = (4 << 30) - 14;
        }),
    ];
    for (what, fault) in faults {
        let (learner, address, mut calls) = FakeLearner::start().await;
        learner.publish(1, 1, fault);
        let mut follower = Follower::start(&address);
        calls.recv().await.expect("a call");
        calls.recv().await.expect("a second call, after the refusal");
        assert!(follower.counters.weights_refused() >= 1, "{what}");
        learner.publish(2, 2, |_| {});
        assert_eq!(follower.next().await.policy_version, PolicyVersion(2), "{what}");
    }
}

#[tokio::test]
async fn a_retired_version_is_no_fault() {
    let (learner, address, mut calls) = FakeLearner::start().await;
    let chunks = Arc::clone(&learner.chunks);
    learner.publish(1, 1, |manifest| {
        chunks.lock().expect("no panic").remove(&manifest.chunks[2].hash);
    });
    let mut follower = Follower::start(&address);
    calls.recv().await.expect("a call");
    calls.recv().await.expect("a second call");
    learner.publish(2, 2, |_| {});
    assert_eq!(follower.next().await.policy_version, PolicyVersion(2));
    assert_eq!(follower.counters.weights_refused(), 0);
}

#[tokio::test]
async fn the_follower_moves_with_the_source() {
    let (first, first_address, _first_calls) = FakeLearner::start().await;
    let (second, second_address, _second_calls) = FakeLearner::start().await;
    first.publish(9, 1, |_| {});
    second.publish(3, 2, |_| {});
    let mut follower = Follower::start(&first_address);
    assert_eq!(follower.next().await.policy_version, PolicyVersion(9));
    follower.source.send_replace(Some(second_address));
    // Lower: the new learner started from an older checkpoint, and it is the one to follow.
    assert_eq!(follower.next().await.policy_version, PolicyVersion(3));
}
