//! A whole run over real gRPC on loopback: a coordinator in this process, a fake actor and a fake
//! learner that play their part of the contract without any network to train.

use std::{path::Path, sync::Arc, time::Duration};

use ballast_coordinator::{
    check::{Check, Report},
    journal::{Directory, Position, Reader},
    process::Coordinator,
};
use ballast_proto::v1::{
    ActorHello, ActorMessage, Assignment, CompleteStepRequest, CoordinatorMessage, Effect,
    JournalEntry, Mode, NextBatchRequest, Role, RunState, SampledVersion, ScheduleRequest,
    SetScheduleRequest, SlotsFree, Span, StatusRequest, StepKind, StopReason, StopRequest,
    Trajectory, actor_message, admin_client::AdminClient, coordinator_message::Message, effect,
    rollout_client::RolloutClient, training_client::TrainingClient,
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
use tonic::{Code, transport::Channel};

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

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
    config.learner.checkpoint_every = 4;
    config
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

struct Running {
    channel: Channel,
    directory: tempfile::TempDir,
    coordinator: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::take_up(tempfile::tempdir().expect("a temporary directory")).await
    }

    async fn take_up(directory: tempfile::TempDir) -> Self {
        let config = config(directory.path());
        let coordinator = Coordinator::build(config, false, &never()).await;
        let coordinator = coordinator.expect("built").expect("it leads");
        let address = coordinator.address().to_string();
        let written = directory.path().join("test/coordinator.address");
        assert_eq!(std::fs::read_to_string(written).expect("written").trim(), address);
        let run = coordinator.run(CancellationToken::new());
        let coordinator = tokio::spawn(async move { run.await.expect("the run ends well") });
        let channel = net::endpoint(&address).expect("an address").connect().await.expect("bound");
        Self { channel, directory, coordinator }
    }

    fn file(&self, name: &str) -> String {
        let path = self.directory.path().join("test").join(name);
        std::fs::read_to_string(path).expect("written by the run")
    }
}

/// Every record of a run's journal, with its payload.
fn records(run: &Path) -> Vec<(Position, u64, JournalEntry, Bytes)> {
    let storage = Directory::create(&run.join("journal")).expect("there");
    let mut records = Reader::open(Arc::new(storage)).records_from(Position(0)).expect("readable");
    std::iter::from_fn(|| records.next_with_payload())
        .map(|next| {
            let (stored, payload) = next.expect("whole");
            let entry = JournalEntry::decode(stored.head).expect("an entry");
            (stored.position, stored.term.0, entry, payload)
        })
        .collect()
}

fn check(run: &Path) -> Report {
    let mut check = Check::new(Some(2));
    for (position, term, entry, payload) in records(run) {
        check.record(position.0, term, entry.encode_to_vec().into(), payload);
    }
    check.finish()
}

fn hash(version: u64) -> Vec<u8> {
    vec![version as u8 + 1; 32]
}

fn trajectory(assignment: &Assignment) -> Trajectory {
    let sampled = assignment.mode() != Mode::Demonstrate;
    let version = assignment.min_policy_version.unwrap_or(0);
    let entry = SampledVersion { policy_version: version, manifest_hash: hash(version) };
    Trajectory {
        episode_id: assignment.episode_id,
        group_id: assignment.group_id,
        task: assignment.task.clone(),
        mode: assignment.mode,
        token_ids: vec![1, 2, 3],
        loss_mask: vec![0, 1, 1],
        behavior_logprobs: if sampled { vec![0.0, -0.5, -0.1] } else { vec![0.0; 3] },
        policy_versions: if sampled { vec![0, version, version] } else { vec![0; 3] },
        sampled_versions: if sampled { vec![entry] } else { Vec::new() },
        spans: vec![
            Span { role: Role::User.into(), start: 0, end: 1, ..Default::default() },
            Span { role: Role::Assistant.into(), start: 1, end: 3, ..Default::default() },
        ],
        stop_reason: StopReason::Done.into(),
        reward: Some(1.0),
        success: Some(true),
        sampling_seed: assignment.sampling_seed,
        ..Default::default()
    }
}

async fn say(stream: &mpsc::Sender<ActorMessage>, message: actor_message::Message) {
    stream.send(ActorMessage { message: Some(message) }).await.expect("the session is open");
}

/// An actor that answers every assignment at once, until it is drained. Returns how many
/// acknowledgements it got.
async fn act(channel: Channel, name: &str, slots: u32) -> usize {
    act_as(channel, name, 1, slots).await
}

async fn act_as(channel: Channel, name: &str, generation: u64, slots: u32) -> usize {
    let (stream, messages) = mpsc::channel(64);
    let hello = ActorHello { actor_id: name.into(), generation, slots, ..Default::default() };
    say(&stream, actor_message::Message::Hello(hello)).await;
    say(&stream, actor_message::Message::SlotsFree(SlotsFree { slots })).await;
    let mut inbound = RolloutClient::new(channel)
        .session(ReceiverStream::new(messages))
        .await
        .expect("a session")
        .into_inner();
    let mut acknowledged = 0;
    while let Some(CoordinatorMessage { message }) = inbound.message().await.expect("no fault") {
        match message {
            Some(Message::Assignment(assignment)) => {
                let report = actor_message::Message::Trajectory(trajectory(&assignment));
                say(&stream, report).await;
                say(&stream, actor_message::Message::SlotsFree(SlotsFree { slots: 1 })).await;
            }
            Some(Message::Acknowledged(_)) => acknowledged += 1,
            Some(Message::Drain(_)) => break,
            _ => {}
        }
    }
    acknowledged
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

/// A learner that applies batches until the finish, or until it has answered `crash_after` of them.
async fn learn(channel: Channel, last_step: u64, generation: u64, crash_after: usize) -> Vec<u64> {
    let mut client = TrainingClient::new(channel);
    let opened = client.next_batch(next_batch(last_step, generation)).await;
    let mut batches = opened.expect("accepted").into_inner();
    let mut steps = Vec::new();
    for _ in 0..crash_after {
        let batch = batches.message().await.expect("no fault").expect("a batch before the end");
        let kind = batch.kind();
        if kind == StepKind::Finish {
            break;
        }
        if kind != StepKind::Checkpoint {
            steps.push(batch.step);
        }
        let request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation,
            step: batch.step,
            kind: kind.into(),
            manifest_hash: hash(batch.step),
            skipped: false,
            metrics: [("loss/total".to_owned(), 0.5)].into(),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("step-{}", batch.step)),
        };
        client.complete_step(request).await.expect("accepted");
    }
    steps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiny_schedule_runs_to_its_end() {
    let running = Running::start().await;
    let actor = tokio::spawn(act(running.channel.clone(), "actor-0", 8));
    let steps = timeout(PATIENCE, learn(running.channel.clone(), 0, 1, usize::MAX)).await;
    // The cold start ends at its first check; then six steps of the main part.
    assert_eq!(steps.expect("in time"), (1..=8).collect::<Vec<u64>>());
    let acknowledged = timeout(PATIENCE, actor).await.expect("in time").expect("no panic");

    let Running { directory, coordinator, .. } = running;
    timeout(PATIENCE, coordinator).await.expect("in time").expect("no panic");
    let run = directory.path().join("test");
    let result = std::fs::read(run.join("result.json")).expect("written");
    let result: serde_json::Value = serde_json::from_slice(&result).expect("JSON");
    assert_eq!((&result["steps"], &result["outcome"]), (&8.into(), &"finished".into()));
    assert_eq!(result["episodes"]["finished"], acknowledged);
    assert_eq!(result["episodes"]["dispatched"], acknowledged);
    assert_eq!(result["evaluations"][1]["name"], "after_cold_start");
    assert_eq!(result["evaluations"][1]["successes"], 5);

    let report = check(&run);
    assert_eq!(report.violations, []);
    assert_eq!(report.finished, acknowledged as u64, "J1: what was acknowledged is in the journal");
    assert_eq!((report.step, report.in_flight, report.terms), (8, 0, 1));
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("written");
    assert_eq!(metrics.lines().count(), 8 + 3, "eight steps and three evaluations");
    assert!(run.join("config.toml").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_crashes_is_replaced_and_a_second_one_is_refused() {
    let running = Running::start().await;
    let actor = tokio::spawn(act(running.channel.clone(), "actor-0", 8));
    // Steps 1 and 2, the checkpoint of 2, step 3; then it is gone.
    let steps = timeout(PATIENCE, learn(running.channel.clone(), 0, 1, 4)).await;
    assert_eq!(steps.expect("in time"), [1, 2, 3]);

    let (status, mut admin) = (StatusRequest {}, AdminClient::new(running.channel.clone()));
    let gone = async {
        while admin.status(status).await.expect("served").into_inner().learner.is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the end of the stream is noticed");
    let second = tokio::spawn(learn(running.channel.clone(), 2, 2, usize::MAX));
    let mut client = TrainingClient::new(running.channel.clone());
    let here = async {
        while admin.status(status).await.expect("served").into_inner().learner.is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, here).await.expect("accepted");
    let refusal = client.next_batch(next_batch(2, 3)).await.expect_err("one learner at a time");
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    let steps = timeout(PATIENCE, second).await.expect("in time").expect("no panic");
    assert_eq!(steps, (3..=8).collect::<Vec<u64>>(), "step 3 is trained again");
    timeout(PATIENCE, actor).await.expect("in time").expect("no panic");
    timeout(PATIENCE, running.coordinator).await.expect("in time").expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_can_watch_and_stop_a_run() {
    let running = Running::start().await;
    let mut admin = AdminClient::new(running.channel.clone());
    let status = admin.status(StatusRequest {}).await.expect("served").into_inner();
    assert_eq!((status.run.as_str(), status.state()), ("test", RunState::Waiting));
    let mut watched = admin.watch_status(StatusRequest {}).await.expect("served").into_inner();
    assert!(watched.message().await.expect("no fault").is_some(), "the status comes at once");
    admin.stop(StopRequest {}).await.expect("served");
    let last = async {
        let mut last = status;
        while let Ok(Some(next)) = watched.message().await {
            last = next;
        }
        last
    };
    let last = timeout(PATIENCE, last).await.expect("the watch ends with the run");
    assert_eq!(last.state(), RunState::Finished);
    assert!(running.file("result.json").contains("\"stopped\""));
    timeout(PATIENCE, running.coordinator).await.expect("in time").expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_can_change_the_schedule_of_a_run() {
    let running = Running::start().await;
    let mut admin = AdminClient::new(running.channel.clone());
    let change = |changes: &[&str], revision| SetScheduleRequest {
        changes: changes.iter().map(|text| (*text).to_owned()).collect(),
        reason: "it forgets".into(),
        revision,
    };
    let wrong = admin.set_schedule(change(&["kind=adaptve", "stps=3"], None)).await;
    let wrong = wrong.expect_err("refused");
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("did you mean `steps`?"), "{}", wrong.message());
    let changed = admin.set_schedule(change(&["kind=adaptive", "steps=3"], Some(0))).await;
    let changed = changed.expect("accepted").into_inner();
    assert_eq!((changed.revision, changed.step), (1, 1));
    let late = admin.set_schedule(change(&["steps=4"], Some(0))).await.expect_err("stale");
    assert_eq!(late.code(), Code::FailedPrecondition);
    let shown = admin.schedule(ScheduleRequest {}).await.expect("served").into_inner();
    assert_eq!((shown.kind.as_str(), shown.phase.as_str()), ("adaptive", "cold_start"));
    assert_eq!(shown.revision, 1);
    assert!(shown.settings.contains("\nsteps = 3\n"), "{}", shown.settings);

    let actor = tokio::spawn(act(running.channel.clone(), "actor-0", 8));
    let steps = timeout(PATIENCE, learn(running.channel.clone(), 0, 1, usize::MAX)).await;
    assert_eq!(steps.expect("in time"), [1, 2, 3, 4, 5], "two of the cold start, then three");
    timeout(PATIENCE, actor).await.expect("in time").expect("no panic");
    let Running { directory, coordinator, .. } = running;
    timeout(PATIENCE, coordinator).await.expect("in time").expect("no panic");
    let run = directory.path().join("test");
    let effects: Vec<Effect> = records(&run).into_iter().flat_map(|one| one.2.effects).collect();
    let audited = effects.iter().filter_map(|effect| match &effect.effect {
        Some(effect::Effect::Audit(entry)) => Some(entry),
        _ => None,
    });
    let audited: Vec<_> = audited.collect();
    assert_eq!(audited.len(), 3, "refused ones too: {audited:?}");
    assert_eq!((audited[1].reason.as_str(), audited[1].refusal.as_str()), ("it forgets", ""));
    assert!(audited[1].what.contains("schedule.kind=adaptive"), "{audited:?}");
    assert!(audited[2].refusal.contains("based on revision 0"), "{audited:?}");
    let has_reason = |effect: &Effect| match &effect.effect {
        Some(effect::Effect::Decision(decision)) => !decision.reason.is_empty(),
        _ => false,
    };
    assert!(effects.iter().any(has_reason), "decisions have their reasons");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_dies_is_taken_up_again_where_it_was() {
    let first = Running::start().await;
    let actor = tokio::spawn(act(first.channel.clone(), "actor-0", 8));
    // Steps 1 and 2, the checkpoint of 2, step 3; then learner, actor and coordinator are gone.
    let steps = timeout(PATIENCE, learn(first.channel.clone(), 0, 1, 4)).await;
    assert_eq!(steps.expect("in time"), [1, 2, 3]);
    actor.abort();
    first.coordinator.abort();
    drop(first.coordinator.await);

    let again = Running::take_up(first.directory).await;
    let status = AdminClient::new(again.channel.clone()).status(StatusRequest {}).await;
    assert_eq!(status.expect("served").into_inner().step, 3);
    // A newer incarnation of the actor: what the older one ran is run again.
    let actor = tokio::spawn(act_as(again.channel.clone(), "actor-0", 2, 8));
    let steps = timeout(PATIENCE, learn(again.channel.clone(), 2, 2, usize::MAX)).await;
    assert_eq!(steps.expect("in time"), (3..=8).collect::<Vec<u64>>(), "step 3 again, then on");
    timeout(PATIENCE, actor).await.expect("in time").expect("no panic");
    timeout(PATIENCE, again.coordinator).await.expect("in time").expect("no panic");

    let run = again.directory.path().join("test");
    let report = check(&run);
    assert_eq!(report.violations, []);
    assert_eq!((report.step, report.in_flight, report.terms), (8, 0, 2));
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("written");
    assert_eq!(metrics.lines().count(), 8 + 3, "each line once: {metrics}");
    let over = Coordinator::build(config(again.directory.path()), false, &never()).await;
    let over = over.expect_err("the run is over").to_string();
    assert!(over.contains("--set run.name=NAME"), "{over}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_not_taken_up_with_other_settings() {
    let first = Running::start().await;
    first.coordinator.abort();
    drop(first.coordinator.await);
    let mut other = config(first.directory.path());
    other.rl.group_size = 16;
    other.learner.threads = 9;
    let refused =
        Coordinator::build(other, false, &never()).await.expect_err("refused").to_string();
    assert!(refused.contains("rl.group_size = 2 (now 16)"), "{refused}");
    assert!(!refused.contains("threads"), "how a process runs may differ: {refused}");
}

/// What one version of gRPC reflection lists; their messages are alike and of different types.
macro_rules! list_services {
    ($version:ident, $running:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = ServerReflectionClient::new($running.channel.clone())
            .server_reflection_info(tokio_stream::once(request))
            .await
            .expect("served")
            .into_inner();
        let answer = answers.message().await.expect("no fault").expect("an answer");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("not a list: {answer:?}");
        };
        list.service.into_iter().map(|service| service.name).collect::<Vec<String>>()
    }};
}

#[tokio::test]
async fn reflection_and_health_answer() {
    let running = Running::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(running.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = health.check(request).await.expect("served").into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    let services = [list_services!(v1, running), list_services!(v1alpha, running)];
    for names in services {
        for service in ["ballast.v1.Admin", "ballast.v1.Rollout", "ballast.v1.Training"] {
            assert!(names.iter().any(|name| name == service), "{names:?}");
        }
        assert!(!names.iter().any(|name| name == "ballast.v1.Weights"), "the learner's");
    }
}

#[tokio::test]
async fn an_older_generation_is_turned_away() {
    let running = Running::start().await;
    let hello = |generation| {
        let hello = ActorHello { actor_id: "a".into(), generation, slots: 1, ..Default::default() };
        ActorMessage { message: Some(actor_message::Message::Hello(hello)) }
    };
    let mut client = RolloutClient::new(running.channel.clone());
    // The streams stay open until the test ends.
    let (newer, newer_messages) = mpsc::channel(1);
    newer.send(hello(5)).await.expect("open");
    let opened = client.session(ReceiverStream::new(newer_messages)).await;
    let mut inbound = opened.expect("a session").into_inner();
    let welcome = inbound.message().await.expect("no fault").and_then(|one| one.message);
    assert!(matches!(welcome, Some(Message::Welcome(_))));

    let (older, older_messages) = mpsc::channel(1);
    older.send(hello(4)).await.expect("open");
    let opened = client.session(ReceiverStream::new(older_messages)).await;
    let refusal = opened.expect("a session").into_inner().message().await.expect_err("refused");
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{}", refusal.message());
}

#[tokio::test]
async fn listening_beyond_loopback_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(directory.path());
    config.coordinator.listen = "0.0.0.0:0".into();
    let error = Coordinator::build(config, false, &never()).await.expect_err("refused").to_string();
    assert!(error.contains("TLS and tokens come first"), "{error}");
}
