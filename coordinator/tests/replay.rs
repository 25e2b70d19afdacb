//! A replay over real gRPC: a learner of the replay gets, byte for byte, the batches that the learners
//! of the run got, whatever died in between. Actor and learners are fake.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ballast_coordinator::{
    journal::{Directory, Journal, Position, Reader, Record},
    process::Coordinator,
    replay::{self, REPORTS_MAX, Recording, ReplayError, Report, Weights},
};
use ballast_proto::v1::{
    ActorHello, ActorMessage, Assignment, CompleteStepRequest, CoordinatorMessage, JournalEntry,
    Mode, NextBatchRequest, Role, SampledVersion, SlotsFree, Span, StatusRequest, StepKind,
    StopReason, TrainBatch, Trajectory, actor_message, admin_client::AdminClient,
    coordinator_message::Message, journal_entry::Event, rollout_client::RolloutClient,
    training_client::TrainingClient,
};
use ballast_runtime::{
    config::{Config, ScheduleKind},
    net,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Two of the cold start, then these.
const STEPS: u64 = 2 + 6;

fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    config.run.name = "test".into();
    config.run.directory = directory.to_owned();
    config.coordinator.listen = "127.0.0.1:0".into();
    config.tasks.demonstrations = 4;
    config.schedule.kind = ScheduleKind::Interleave;
    config.schedule.steps = 6;
    config.schedule.rl_steps = 2;
    config.schedule.sft_steps = 1;
    config.schedule.cold_start_steps_max = 4;
    config.schedule.cold_start_check_every = 2;
    config.rl.group_size = 2;
    config.rl.groups_per_batch = 2;
    config.sft.batch = 2;
    config.evaluation.tasks = 5;
    config.evaluation.check_tasks = 3;
    config.learner.checkpoint_every = 5;
    config
}

/// The coordinator of the run.
struct Running {
    channel: Channel,
    coordinator: JoinHandle<()>,
}

impl Running {
    async fn start(directory: &Path) -> Self {
        let coordinator =
            Coordinator::build(config(directory), false, &CancellationToken::new()).await;
        let coordinator = coordinator.unwrap().expect("it leads");
        let channel = connect(&coordinator.address().to_string()).await;
        let run = coordinator.run(CancellationToken::new());
        let coordinator = tokio::spawn(async move { run.await.expect("the run ends well") });
        Self { channel, coordinator }
    }

    /// Waits until it has noticed that its learner is gone.
    async fn learner_gone(&self) {
        let mut admin = AdminClient::new(self.channel.clone());
        while admin.status(StatusRequest {}).await.unwrap().into_inner().learner.is_some() {
            tokio::task::yield_now().await;
        }
    }
}

async fn connect(address: &str) -> Channel {
    net::endpoint(address).unwrap().connect().await.unwrap()
}

fn hash(version: u64) -> Vec<u8> {
    vec![version as u8 + 1; 32]
}

/// A trajectory unlike that of any other episode.
fn trajectory(assignment: &Assignment) -> Trajectory {
    let id = assignment.episode_id;
    let sampled = assignment.mode() != Mode::Demonstrate;
    let version = assignment.min_policy_version.unwrap_or(0);
    let entry = SampledVersion { policy_version: version, manifest_hash: hash(version) };
    let logprob = -1.0 / (id as f32 + 3.0);
    Trajectory {
        episode_id: id,
        group_id: assignment.group_id,
        task: assignment.task.clone(),
        mode: assignment.mode,
        token_ids: vec![1, id as u32 + 2, 3],
        loss_mask: vec![0, 1, 1],
        behavior_logprobs: if sampled { vec![0.0, logprob, logprob / 3.0] } else { vec![0.0; 3] },
        policy_versions: if sampled { vec![0, version, version] } else { vec![0; 3] },
        sampled_versions: if sampled { vec![entry] } else { Vec::new() },
        spans: vec![
            Span { role: Role::User.into(), start: 0, end: 1, ..Default::default() },
            Span { role: Role::Assistant.into(), start: 1, end: 3, ..Default::default() },
        ],
        stop_reason: StopReason::Done.into(),
        reward: Some((id % 3) as f32),
        success: Some(true),
        sampling_seed: assignment.sampling_seed,
        ..Default::default()
    }
}

/// An actor that answers every assignment at once, until it is drained.
async fn act(channel: Channel, generation: u64) {
    use actor_message::Message as Say;
    let slots = 8;
    let (stream, messages) = mpsc::channel(64);
    let say = |message| stream.send(ActorMessage { message: Some(message) });
    let hello = ActorHello { actor_id: "actor".into(), generation, slots, ..Default::default() };
    say(Say::Hello(hello)).await.unwrap();
    say(Say::SlotsFree(SlotsFree { slots })).await.unwrap();
    let opened = RolloutClient::new(channel).session(ReceiverStream::new(messages)).await;
    let mut inbound = opened.unwrap().into_inner();
    while let Some(CoordinatorMessage { message }) = inbound.message().await.unwrap() {
        match message {
            Some(Message::Assignment(assignment)) => {
                say(Say::Trajectory(trajectory(&assignment))).await.unwrap();
                say(Say::SlotsFree(SlotsFree { slots: 1 })).await.unwrap();
            }
            Some(Message::Drain(_)) => break,
            _ => {}
        }
    }
}

fn next_batch(last_step: u64, generation: u64) -> NextBatchRequest {
    NextBatchRequest {
        learner_id: "learner".into(),
        generation,
        last_step,
        weights_address: "127.0.0.1:9".into(),
        manifest_hash: hash(last_step),
        ..Default::default()
    }
}

/// A learner that answers batches until the finish, or until it has answered `crash_after` of them.
/// Returns them all.
async fn learn(
    channel: Channel,
    last_step: u64,
    generation: u64,
    crash_after: usize,
) -> Vec<TrainBatch> {
    let mut client = TrainingClient::new(channel);
    let opened = client.next_batch(next_batch(last_step, generation)).await;
    let mut stream = opened.expect("accepted").into_inner();
    let mut batches = Vec::new();
    while batches.len() < crash_after {
        let batch = stream.message().await.expect("no fault").expect("a batch before the end");
        let kind = batch.kind();
        let request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation,
            step: batch.step,
            kind: kind.into(),
            manifest_hash: hash(batch.step),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("step-{}", batch.step)),
            ..Default::default()
        };
        batches.push(batch);
        let answered = client.complete_step(request).await;
        if kind == StepKind::Finish {
            break;
        }
        answered.expect("accepted");
    }
    batches
}

/// A run whose learner dies after three batches, and then its coordinator, actor and learner after
/// three more. Returns the batches of each learner.
async fn run(directory: &Path) -> Vec<Vec<TrainBatch>> {
    let first = Running::start(directory).await;
    let actor = tokio::spawn(act(first.channel.clone(), 1));
    // Steps 1 and 2, the checkpoint of 2, step 3.
    let mut served = vec![learn(first.channel.clone(), 0, 1, 4).await];
    first.learner_gone().await;
    served.push(learn(first.channel.clone(), 2, 2, 2).await);
    actor.abort();
    first.coordinator.abort();
    drop(first.coordinator.await);

    let again = Running::start(directory).await;
    let actor = tokio::spawn(act(again.channel.clone(), 2));
    served.push(learn(again.channel.clone(), 2, 3, usize::MAX).await);
    actor.await.unwrap();
    again.coordinator.await.unwrap();
    served
}

/// What the learners of the run got, each batch once, without the finish.
fn once(served: &[Vec<TrainBatch>]) -> Vec<TrainBatch> {
    let mut once: Vec<TrainBatch> = Vec::new();
    for batch in served.iter().flatten().filter(|batch| batch.kind() != StepKind::Finish) {
        match once.iter().find(|one| (one.step, one.kind) == (batch.step, batch.kind)) {
            Some(before) => assert_eq!(before.encode_to_vec(), batch.encode_to_vec()),
            None => once.push(batch.clone()),
        }
    }
    once
}

fn reader(directory: &Path) -> Reader {
    Reader::open(Arc::new(Directory::create(&directory.join("test/journal")).unwrap()))
}

/// A learner's view of a replay, and what the replay reported.
async fn replay(directory: &Path, from: u64, to: u64) -> (Vec<TrainBatch>, Vec<Report>) {
    let reader = reader(directory);
    let excerpt = Recording::read(&reader).unwrap().excerpt(from, to, false).unwrap();
    let (listener, address) = net::bind("127.0.0.1:0").await.unwrap();
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let served = tokio::spawn(replay::serve(listener, excerpt, reader, reports));
    let channel = connect(&address.to_string()).await;
    let batches = timeout(PATIENCE, learn(channel, from, 9, usize::MAX)).await.unwrap();
    timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
    let mut all = Vec::new();
    while let Some(report) = reported.recv().await {
        all.push(report);
    }
    (batches, all)
}

fn finish(step: u64, run_id: &str) -> TrainBatch {
    TrainBatch {
        step,
        kind: StepKind::Finish.into(),
        run_id: run_id.into(),
        ..TrainBatch::default()
    }
}

fn bytes(batches: &[TrainBatch]) -> Vec<Vec<u8>> {
    batches.iter().map(TrainBatch::encode_to_vec).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_serves_the_bytes_that_the_run_served() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let served = timeout(PATIENCE, run(directory)).await.expect("in time");
    assert!(served[1][0].step == 3 && served[2][0].step == 3, "trained again twice");
    let recorded = once(&served);
    let run_id = recorded[0].run_id.clone();
    let checkpoints =
        recorded.iter().filter(|one| one.kind() == StepKind::Checkpoint).map(|one| one.step);
    let checkpoints: Vec<u64> = checkpoints.collect();
    assert_eq!((checkpoints.first(), checkpoints.last()), (Some(&2), Some(&STEPS)));

    for from in [0].into_iter().chain(checkpoints).filter(|from| *from < STEPS) {
        let (batches, reports) = replay(directory, from, STEPS).await;
        let mut expected: Vec<_> =
            recorded.iter().filter(|batch| batch.step > from).cloned().collect();
        expected.push(finish(STEPS, &run_id));
        assert_eq!(bytes(&batches), bytes(&expected), "from step {from}");
        assert_eq!(reports[0], Report::Learner { step: from, weights: Weights::Same });
        assert_eq!(reports.last(), Some(&Report::Finished { step: STEPS }));
        let steps = |one: &Report| matches!(one, Report::Step { weights: Weights::Same, .. });
        assert_eq!(reports.iter().filter(|one| steps(one)).count() as u64, STEPS - from);
    }

    // Up to a step without a checkpoint: there is one at the end.
    let (batches, reports) = replay(directory, 2, 4).await;
    let kinds: Vec<_> = batches.iter().map(|batch| (batch.step, batch.kind())).collect();
    assert_eq!(kinds[kinds.len() - 2..], [(4, StepKind::Checkpoint), (4, StepKind::Finish)]);
    assert!(reports.contains(&Report::Checkpoint { step: 4 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    timeout(PATIENCE, run(directory)).await.expect("in time");
    let reader = reader(directory);
    let recording = || Recording::read(&reader).unwrap();
    for (from, to) in [(0, STEPS + 1), (3, 3), (5, 4)] {
        let refused = recording().excerpt(from, to, false).unwrap_err();
        assert!(matches!(refused, ReplayError::OutOfRange { finished: STEPS, .. }), "{refused}");
        assert!(refused.to_string().contains("the run has finished 8 steps"), "{refused}");
    }

    let excerpt = recording().excerpt(2, 5, true).unwrap();
    let start = |last_step, run_id: &str| {
        let run_id = run_id.to_owned();
        excerpt.start(&NextBatchRequest { run_id, ..next_batch(last_step, 1) })
    };
    assert!(start(1, "").unwrap_err().contains("from 2 to 5"));
    assert!(start(6, "").unwrap_err().contains("from 2 to 5"));
    assert!(start(2, "other").unwrap_err().contains("belongs to run other"));
    // Steps 3, 4, 5, the checkpoint, the finish: a learner that was cut off goes on where it was.
    let places: Vec<usize> = (2..=5).map(|step| start(step, "").unwrap()).collect();
    assert_eq!(places, [0, 1, 2, 3]);
    assert!(excerpt.message(4, &reader).is_some() && excerpt.message(5, &reader).is_none());

    assert_eq!(excerpt.compare(3, &hash(3)), Weights::Same);
    assert_eq!(excerpt.compare(3, &hash(4)), Weights::Other);
    assert_eq!(excerpt.compare(99, &hash(4)), Weights::Unknown);
    assert_eq!(excerpt.compare(3, b"short"), Weights::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_trajectory_does_not_pass() {
    let directory = tempfile::tempdir().unwrap();
    let served = timeout(PATIENCE, run(directory.path())).await.expect("in time");

    // With the checksums made anew, the batch that has it is another one.
    let forged = tempfile::tempdir().unwrap();
    let (changed, original) = forge(&reader(directory.path()), forged.path());
    let (batches, _) = replay(forged.path(), 0, STEPS).await;
    let recorded = once(&served);
    let differ =
        |(one, other): &(&TrainBatch, &TrainBatch)| one.encode_to_vec() != other.encode_to_vec();
    let differing: Vec<_> = recorded.iter().zip(&batches).filter(differ).collect();
    assert_eq!(differing.len(), 1, "one batch has the changed trajectory");
    let mut trajectories = differing[0].1.groups.iter().flat_map(|group| &group.trajectories);
    assert!(trajectories.any(|one| one.episode_id == changed));

    // Without, the journal is damaged.
    let place = |path: PathBuf| {
        let contents = fs::read(&path).unwrap();
        let at = contents.windows(original.len()).position(|window| *window == *original)?;
        Some((path, contents, at))
    };
    let segments = fs::read_dir(directory.path().join("test/journal/segments")).unwrap();
    let found = segments.map(|entry| entry.unwrap().path()).find_map(place);
    let (path, mut contents, at) = found.expect("one of the segments has it");
    contents[at + original.len() / 2] ^= 1;
    fs::write(path, contents).unwrap();
    let damaged = Recording::read(&reader(directory.path())).unwrap_err();
    assert!(damaged.to_string().contains("is damaged at byte"), "{damaged}");
}

/// Copies a journal, but for one bit of a log-probability in the first explored trajectory. Returns
/// whose, and the trajectory as it was.
fn forge(original: &Reader, directory: &Path) -> (u64, Bytes) {
    let mut records = original.records_from(Position(0)).unwrap();
    let mut forged = None;
    let copy = std::iter::from_fn(|| records.next_with_payload()).map(|next| {
        let (stored, payload) = next.unwrap();
        let event = JournalEntry::decode(stored.head.clone()).unwrap().event;
        let explored =
            matches!(&event, Some(Event::TrajectoryReported(one)) if one.mode() == Mode::Explore);
        if !explored || forged.is_some() {
            return Record { head: stored.head, payload };
        }
        let mut trajectory = Trajectory::decode(payload.clone()).unwrap();
        forged = Some((trajectory.episode_id, payload));
        let logprob = &mut trajectory.behavior_logprobs[1];
        *logprob = f32::from_bits(logprob.to_bits() ^ 1);
        Record { head: stored.head, payload: trajectory.encode_to_vec().into() }
    });
    let copy: Vec<Record> = copy.collect();
    let storage = Directory::create(&directory.join("test/journal")).unwrap();
    Journal::open(Arc::new(storage), None).unwrap().journal.append(&copy).unwrap();
    forged.expect("a trajectory was explored")
}
