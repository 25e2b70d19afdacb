//! The learner against a coordinator that the test plays: whatever breaks, every step is done once, in
//! order, and its answer arrives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::{path::Path, time::Duration};

use ballast_learner::{
    driver::{Driver, Error},
    publish::WeightStore,
    rpc::LearnerIdentity,
    worker::{self, Worker},
};
use ballast_proto::{
    Generation,
    v1::{
        CompleteStepRequest, CompleteStepResponse, NextBatchRequest, StepKind, TrainBatch,
        training_server::{Training, TrainingServer},
    },
};
use ballast_runtime::{
    leader::{LEADER_METADATA, Search},
    net::bind,
};
use support::{checkpoint, config, rl, sft};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

type Batches = mpsc::Receiver<Result<TrainBatch, Status>>;

/// A call of the learner. When the test drops it, the coordinator goes away without an answer.
enum Call {
    NextBatch(NextBatchRequest, oneshot::Sender<Result<Batches, Status>>),
    CompleteStep(CompleteStepRequest, oneshot::Sender<Result<(), Status>>),
}

struct FakeCoordinator(mpsc::Sender<Call>);

fn gone<T>(_: T) -> Status {
    Status::unavailable("it goes away")
}

#[tonic::async_trait]
impl Training for FakeCoordinator {
    type NextBatchStream = ReceiverStream<Result<TrainBatch, Status>>;

    async fn next_batch(
        &self,
        request: Request<NextBatchRequest>,
    ) -> Result<Response<Self::NextBatchStream>, Status> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call::NextBatch(request.into_inner(), answer)).await.map_err(gone)?;
        Ok(Response::new(ReceiverStream::new(answered.await.map_err(gone)??)))
    }

    async fn complete_step(
        &self,
        request: Request<CompleteStepRequest>,
    ) -> Result<Response<CompleteStepResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call::CompleteStep(request.into_inner(), answer)).await.map_err(gone)?;
        answered.await.map_err(gone)??;
        Ok(Response::new(CompleteStepResponse {}))
    }
}

/// A process that may be the coordinator. Dropped, it ends as if it was killed.
struct Candidate {
    address: String,
    calls: mpsc::Receiver<Call>,
    server: Option<Runtime>,
}

impl Candidate {
    fn start() -> Self {
        let (sender, calls) = mpsc::channel(4);
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (bound, binding) = std::sync::mpsc::channel();
        server.spawn(async move {
            let (listener, address) = bind("127.0.0.1:0").await.unwrap();
            bound.send(address.to_string()).unwrap();
            let server =
                Server::builder().add_service(TrainingServer::new(FakeCoordinator(sender)));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        });
        Self { address: binding.recv().unwrap(), calls, server: Some(server) }
    }

    async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.expect("in time").expect("a server")
    }

    /// Takes a `NextBatch`; the stream it opens is the test's to fill.
    async fn next_batch(&mut self) -> (NextBatchRequest, mpsc::Sender<Result<TrainBatch, Status>>) {
        let Call::NextBatch(request, answer) = self.call().await else {
            panic!("a step was completed")
        };
        let (batches, stream) = mpsc::channel(4);
        answer.send(Ok(stream)).unwrap();
        (request, batches)
    }

    /// Takes a `CompleteStep` and answers it.
    async fn complete(&mut self, answer: Result<(), Status>) -> CompleteStepRequest {
        let Call::CompleteStep(request, answerer) = self.call().await else {
            panic!("batches were asked for")
        };
        answerer.send(answer).unwrap();
        request
    }

    /// Takes a `CompleteStep` whose answer is lost.
    async fn complete_in_vain(&mut self) -> CompleteStepRequest {
        match self.call().await {
            Call::CompleteStep(request, _) => request,
            Call::NextBatch(..) => panic!("batches were asked for"),
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

struct Learner {
    running: JoinHandle<Result<(), Error>>,
    store: WeightStore,
    shutdown: CancellationToken,
}

impl Learner {
    fn start(runs: &Path, addresses: &str) -> Self {
        let worker = Worker::open(&config(runs)).unwrap();
        let (store, shutdown) = (worker.store().clone(), CancellationToken::new());
        let identity = LearnerIdentity {
            learner_id: "learner-0".into(),
            generation: Generation(1),
            weights_address: "127.0.0.1:9".into(),
        };
        let coordinator = Search::new(addresses, "the coordinator").unwrap();
        let driver = Driver::new(coordinator, identity, worker, shutdown.clone());
        Self { running: tokio::spawn(driver.run()), store, shutdown }
    }

    fn version_on_offer(&self) -> u64 {
        self.store.watch().borrow().as_ref().unwrap().policy_version
    }

    async fn ends(self) -> Result<(), Error> {
        timeout(PATIENCE, self.running).await.expect("in time").expect("no panic")
    }
}

fn start() -> (TempDir, Candidate, Learner) {
    let (runs, coordinator) = (tempfile::tempdir().unwrap(), Candidate::start());
    let learner = Learner::start(runs.path(), &coordinator.address);
    (runs, coordinator, learner)
}

fn of_run_one(batch: TrainBatch) -> Result<TrainBatch, Status> {
    Ok(TrainBatch { run_id: "one".into(), ..batch })
}

fn finish(step: u64) -> Result<TrainBatch, Status> {
    of_run_one(TrainBatch { step, kind: StepKind::Finish.into(), ..Default::default() })
}

/// Manifest hashes of steps 1 and 2 when nothing breaks.
fn undisturbed() -> [Vec<u8>; 2] {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    [sft(1), rl(2)].map(|batch| worker.perform(&batch).unwrap().manifest_hash.0.to_vec())
}

#[tokio::test]
async fn a_lost_answer_is_given_again_before_anything_else() {
    let (_runs, mut coordinator, learner) = start();
    let (first, batches) = coordinator.next_batch().await;
    assert_eq!((first.last_step, &*first.run_id), (0, ""));
    batches.send(of_run_one(sft(1))).await.unwrap();
    batches.send(of_run_one(rl(2))).await.unwrap();
    let lost = coordinator.complete_in_vain().await;
    assert_eq!(lost.step, 1);
    assert!(lost.metrics.contains_key("loss/cross_entropy"));
    assert_eq!(learner.version_on_offer(), 1, "its weights are on offer all the same");

    assert_eq!(coordinator.complete(Ok(())).await, lost);
    // What was served ahead over the old stream does not count.
    let (again, batches) = coordinator.next_batch().await;
    assert_eq!((again.last_step, &*again.run_id), (1, "one"));
    assert_eq!((&again.manifest_hash, again.generation), (&lost.manifest_hash, first.generation));
    batches.send(of_run_one(rl(2))).await.unwrap();
    let second = coordinator.complete(Ok(())).await;
    assert_eq!([lost.manifest_hash, second.manifest_hash], undisturbed());
    batches.send(finish(2)).await.unwrap();
    assert_eq!(coordinator.complete(Ok(())).await.kind(), StepKind::Finish);
    learner.ends().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_settled_by_the_step_of_the_weights() {
    let (_runs, mut coordinator, _learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    coordinator.complete_in_vain().await;
    let refused = Err(Status::failed_precondition("not the learner; call NextBatch"));
    assert_eq!(coordinator.complete(refused).await.step, 1);
    let (again, batches) = coordinator.next_batch().await;
    assert_eq!(again.last_step, 1);
    batches.send(of_run_one(rl(2))).await.unwrap();
    assert_eq!(coordinator.complete(Ok(())).await.step, 2);
}

#[tokio::test]
async fn a_stream_that_breaks_while_a_step_is_made_costs_nothing() {
    let (_runs, mut coordinator, _learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    drop(batches);
    // The answer still arrives over the connection that is left; then the stream's end is seen.
    assert_eq!(coordinator.complete(Ok(())).await.step, 1);
    let (again, batches) = coordinator.next_batch().await;
    assert_eq!(again.last_step, 1);
    batches.send(of_run_one(rl(2))).await.unwrap();
    assert_eq!(coordinator.complete(Ok(())).await.step, 2);
}

#[tokio::test]
async fn a_checkpoint_keeps_its_path_when_the_answer_is_lost() {
    let (_runs, mut coordinator, _learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    coordinator.complete(Ok(())).await;
    batches.send(of_run_one(checkpoint(1))).await.unwrap();
    let lost = coordinator.complete_in_vain().await;
    let path = lost.checkpoint.clone().unwrap();
    assert!(path.ends_with("run/checkpoints/step-1"), "{path}");
    assert_eq!(coordinator.complete(Ok(())).await, lost);
    // A coordinator that did not take it serves it again, and gets the same.
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(checkpoint(1))).await.unwrap();
    assert_eq!(coordinator.complete(Ok(())).await, lost);
}

#[tokio::test]
async fn a_restarted_learner_says_which_run_its_checkpoint_belongs_to() {
    let (runs, mut coordinator, learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    coordinator.complete(Ok(())).await;
    learner.shutdown.cancel();
    learner.ends().await.unwrap();

    let _restarted = Learner::start(runs.path(), &coordinator.address);
    let (request, _batches) = coordinator.next_batch().await;
    assert_eq!((request.last_step, &*request.run_id), (1, "one"));
}

#[tokio::test]
async fn the_next_candidate_goes_on_where_the_dead_coordinator_was() {
    let (mut first, mut second) = (Candidate::start(), Candidate::start());
    let runs = tempfile::tempdir().unwrap();
    let addresses = format!("{},{}", first.address, second.address);
    let _learner = Learner::start(runs.path(), &addresses);
    let (_, batches) = first.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    let lost = first.complete_in_vain().await;
    drop(first);
    assert_eq!(second.complete(Ok(())).await, lost);
    let (request, _batches) = second.next_batch().await;
    assert_eq!(request.last_step, 1);
}

#[tokio::test]
async fn a_standby_names_the_leader() {
    let (_runs, mut standby, learner) = start();
    let mut leader = Candidate::start();
    let mut status = Status::unavailable("a standby");
    status.metadata_mut().insert(LEADER_METADATA, leader.address.parse().unwrap());
    let Call::NextBatch(_, answer) = standby.call().await else { panic!("nothing is done yet") };
    answer.send(Err(status)).unwrap();
    let (_, batches) = leader.next_batch().await;
    batches.send(finish(0)).await.unwrap();
    // The run is over even if nobody hears the answer.
    drop(leader.call().await);
    learner.ends().await.unwrap();
}

#[tokio::test]
async fn a_batch_of_another_run_ends_the_learner() {
    let (_runs, mut coordinator, learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    coordinator.complete(Ok(())).await;
    batches.send(Ok(TrainBatch { run_id: "two".into(), ..rl(2) })).await.unwrap();
    let error = learner.ends().await.unwrap_err();
    assert!(matches!(error, Error::Worker(worker::Error::Run { .. })), "{error}");
}

#[tokio::test]
async fn a_signal_while_the_coordinator_is_away_saves_the_weights() {
    let (runs, mut coordinator, learner) = start();
    let (_, batches) = coordinator.next_batch().await;
    batches.send(of_run_one(sft(1))).await.unwrap();
    // It hangs: neither an answer nor an end.
    let _hanging = coordinator.call().await;
    learner.shutdown.cancel();
    learner.ends().await.unwrap();
    assert!(runs.path().join("run/checkpoints/step-1/trainer_state.json").is_file());
}
