//! The session against a coordinator that the test plays.

mod streams;

use std::time::Duration;

use ballast_proto::{
    EpisodeId,
    v1::{
        Acknowledged, ActorMessage, ActorWelcome, Assignment, CoordinatorMessage, Discard, Drain,
        EpisodeReturned, Mode, Trajectory, WeightSource, actor_message, coordinator_message,
        rollout_server::{Rollout, RolloutServer},
    },
};
use ballast_runtime::net::bind;
use tokio::{task::JoinHandle, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;
use crate::{
    engine::{Outcome, RunIndex, spawn},
    testing::{assignment, engine, plays, staged, wire},
};

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);
/// Version that no assignment finds adopted before the test stages it.
const LATER: u64 = 99;

/// One session as the coordinator sees it; the test plays the coordinator.
struct Seat {
    inbound: Streaming<ActorMessage>,
    outbound: mpsc::Sender<Result<CoordinatorMessage, Status>>,
}

/// A process that may be the coordinator.
struct Candidate {
    address: String,
    sessions: mpsc::Receiver<Seat>,
    /// There until it is killed.
    server: Option<tokio::runtime::Runtime>,
}

struct FakeCoordinator(mpsc::Sender<Seat>);

#[tonic::async_trait]
impl Rollout for FakeCoordinator {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ActorMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(16);
        let seat = Seat { inbound: request.into_inner(), outbound };
        self.0.send(seat).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl Candidate {
    fn start() -> Self {
        let (seats, sessions) = mpsc::channel(1);
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (bound, binding) = std::sync::mpsc::channel();
        server.spawn(async move {
            let (listener, address) = bind("127.0.0.1:0").await.expect("a free port");
            bound.send(address.to_string()).expect("the test listens");
            let server = Server::builder().add_service(RolloutServer::new(FakeCoordinator(seats)));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        });
        Self { address: binding.recv().expect("an address"), sessions, server: Some(server) }
    }

    async fn seat(&mut self) -> Seat {
        timeout(PATIENCE, self.sessions.recv()).await.expect("in time").expect("a session")
    }
}

/// Ends as a killed process does: its sockets close, and it says nothing.
impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

impl Seat {
    async fn next(&mut self) -> Option<actor_message::Message> {
        let message = self.inbound.message().await;
        message.ok().flatten().and_then(|message| message.message)
    }

    /// The next message that `wanted` says something about.
    async fn await_that<T>(
        &mut self,
        wanted: impl Fn(Option<actor_message::Message>) -> Option<T>,
    ) -> T {
        let heard = async {
            loop {
                if let Some(heard) = wanted(self.next().await) {
                    return heard;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("in time")
    }

    /// Waits for a heartbeat that reports this many episodes.
    async fn runs(&mut self, episodes: u32) {
        let reports = |message| match message {
            Some(actor_message::Message::Heartbeat(beat)) => {
                (beat.episodes_running == episodes).then_some(())
            }
            None => panic!("the actor left"),
            Some(_) => None,
        };
        self.await_that(reports).await;
    }

    /// The next message that is no heartbeat.
    async fn next_but_beats(&mut self) -> Option<actor_message::Message> {
        let is_beat = |message: &Option<actor_message::Message>| {
            matches!(message, Some(actor_message::Message::Heartbeat(_)))
        };
        self.await_that(|message| (!is_beat(&message)).then_some(message)).await
    }

    async fn say(&self, message: coordinator_message::Message) {
        let message = CoordinatorMessage { message: Some(message) };
        self.outbound.send(Ok(message)).await.expect("the session is open");
    }

    async fn hello(&mut self) -> ActorHello {
        let Some(actor_message::Message::Hello(hello)) = self.next().await else {
            panic!("no hello")
        };
        assert_eq!(hello.actor_id, "actor-0");
        hello
    }

    async fn welcome_to(&mut self, run_id: &str) {
        let welcome = ActorWelcome { heartbeat_interval_ms: 50, run_id: run_id.into() };
        self.say(coordinator_message::Message::Welcome(welcome)).await;
    }

    /// Welcomes an actor without episodes to run "one"; returns its generation.
    async fn welcome(&mut self) -> u64 {
        let hello = self.hello().await;
        assert_eq!((&*hello.claims, &*hello.run_id), (&[][..], ""));
        self.welcome_to("one").await;
        assert_eq!(self.slots().await, hello.slots);
        hello.generation
    }

    /// The slots that the next message, heartbeats aside, offers.
    async fn slots(&mut self) -> u32 {
        match self.next_but_beats().await {
            Some(actor_message::Message::SlotsFree(free)) => free.slots,
            other => panic!("{other:?}"),
        }
    }

    async fn assign(&self, id: u64, min_policy_version: Option<u64>) {
        let mut assignment = wire(assignment(id, Mode::Explore));
        assignment.min_policy_version = min_policy_version;
        self.say(coordinator_message::Message::Assignment(assignment)).await;
    }

    async fn acknowledge(&self, episode_id: u64) {
        self.say(coordinator_message::Message::Acknowledged(Acknowledged { episode_id })).await;
    }

    async fn discard(&self, episode_id: u64) {
        self.say(coordinator_message::Message::Discard(Discard { episode_id })).await;
    }

    /// The next trajectory; skips heartbeats and credits.
    async fn trajectory(&mut self) -> Trajectory {
        loop {
            match self.next_but_beats().await {
                Some(actor_message::Message::Trajectory(trajectory)) => return trajectory,
                Some(actor_message::Message::SlotsFree(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Ends the stream as a coordinator does that stops leading.
    async fn abort(self, status: Status) {
        self.outbound.send(Err(status)).await.expect("the session is open");
    }
}

/// An actor with two slots and a policy that answers "1", and the coordinator it talks to.
struct Pair {
    coordinator: Candidate,
    actor: JoinHandle<Result<(), SessionError>>,
    cancelled: CancellationToken,
    weight_source: watch::Receiver<Option<String>>,
    engine: Arc<Mailbox>,
    counters: Arc<Counters>,
}

impl Pair {
    fn start() -> Self {
        Self::among(Candidate::start(), "")
    }

    /// The same, with more addresses to try.
    fn among(coordinator: Candidate, others: &str) -> Self {
        let handle = spawn(engine(plays(&["1"]), 2).0).expect("a thread");
        handle.mailbox.stage(staged(3));
        let addresses = format!("{}{others}", coordinator.address);
        Self::with(coordinator, &addresses, handle.mailbox, handle.reports, handle.counters)
    }

    fn with(
        coordinator: Candidate,
        addresses: &str,
        engine: Arc<Mailbox>,
        reports: mpsc::Receiver<Report>,
        counters: Arc<Counters>,
    ) -> Self {
        let (weight_source, source) = watch::channel(None);
        let cancelled = CancellationToken::new();
        let session = Session {
            actor_id: "actor-0".into(),
            coordinator: Search::new(addresses, "the coordinator").expect("addresses"),
            slots: 2,
            engine: Arc::clone(&engine),
            reports,
            counters: Arc::clone(&counters),
            weight_source,
            registered: watch::channel(false).0,
        };
        let actor = tokio::spawn(session.run(cancelled.clone()));
        Self { coordinator, actor, cancelled, weight_source: source, engine, counters }
    }

    async fn seat(&mut self) -> Seat {
        self.coordinator.seat().await
    }

    /// Lets the episodes go on that were assigned with the version [`LATER`].
    fn release(&self) {
        self.engine.stage(staged(LATER));
    }

    /// Waits until the engine has no episode.
    async fn idles(&self) {
        let idle = async {
            while self.counters.episodes_running() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, idle).await.expect("in time");
    }

    async fn ends(self) -> Result<(), SessionError> {
        let result = timeout(PATIENCE, self.actor).await.expect("in time").expect("no panic");
        self.engine.stop();
        result
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_acknowledgement_of_the_last_trajectory() {
    let mut pair = Pair::start();
    let mut seat = pair.seat().await;
    seat.welcome().await;
    let source = WeightSource { address: "127.0.0.1:9".into() };
    seat.say(coordinator_message::Message::WeightSource(source)).await;
    seat.assign(7, Some(3)).await;
    let trajectory = seat.trajectory().await;
    assert_eq!((trajectory.episode_id, trajectory.answer.as_deref()), (7, Some("1")));
    assert_eq!(pair.weight_source.borrow().as_deref(), Some("127.0.0.1:9"));
    assert_eq!(seat.slots().await, 1);

    seat.say(coordinator_message::Message::Drain(Drain {})).await;
    // A refusal shows that the drain was seen, a heartbeat after it that the actor is still there.
    seat.assign(8, None).await;
    let refused = seat.next_but_beats().await;
    assert!(
        matches!(&refused, Some(actor_message::Message::Returned(r)) if r.episode_id == 8),
        "{refused:?}"
    );
    assert!(matches!(seat.next().await, Some(actor_message::Message::Heartbeat(_))));
    seat.acknowledge(7).await;
    assert_eq!(seat.next_but_beats().await, None);
    drop(seat);
    pair.ends().await.expect("drained");
}

#[tokio::test]
async fn what_another_run_left_is_not_reported() {
    let (engine, reports) = mpsc::channel(4);
    let (coordinator, mailbox) = (Candidate::start(), Arc::new(Mailbox::new(2)));
    let address = coordinator.address.clone();
    let mut pair = Pair::with(coordinator, &address, mailbox, reports, Arc::default());
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, None).await;
    // What cannot be run is given back at once, so that the one before it was taken.
    let nonsense = Assignment { episode_id: 2, ..Assignment::default() };
    seat.say(coordinator_message::Message::Assignment(nonsense)).await;
    let returned = seat.next_but_beats().await;
    assert!(matches!(returned, Some(actor_message::Message::Returned(r)) if r.episode_id == 2));
    assert_eq!(seat.slots().await, 1);
    // The welcome made it the first run; what is of the one before, or unknown, is nobody's.
    for (run, id, tokens) in [(0, 1, 3), (1, 3, 4), (1, 1, 5)] {
        let outcome =
            Outcome::Returned { episode_id: EpisodeId(id), reason: "test".into(), tokens };
        let report = Report { run: RunIndex(run), outcome };
        engine.send(report).await.expect("the session listens");
    }
    let returned = EpisodeReturned { episode_id: 1, reason: "test".into(), tokens: 5 };
    assert_eq!(seat.next_but_beats().await, Some(actor_message::Message::Returned(returned)));
    assert_eq!(seat.slots().await, 1);
    drop(engine);
    let error = pair.ends().await.expect_err("no engine");
    assert!(matches!(error, SessionError::EngineGone), "{error}");
}

#[tokio::test]
async fn a_signal_gives_back_what_has_not_started() {
    let mut pair = Pair::start();
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, Some(LATER)).await;
    seat.runs(1).await;
    pair.cancelled.cancel();
    let reason = "the actor drains".into();
    let expected = EpisodeReturned { episode_id: 1, reason, tokens: 0 };
    assert_eq!(seat.next_but_beats().await, Some(actor_message::Message::Returned(expected)));
    assert_eq!(seat.next_but_beats().await, None);
    drop(seat);
    pair.ends().await.expect("drained");
}

#[tokio::test]
async fn a_refused_generation_ends_the_actor_with_the_remedy() {
    let mut pair = Pair::start();
    let seat = pair.seat().await;
    seat.abort(Status::failed_precondition("generation 1 is older than 2")).await;
    let error = pair.ends().await.expect_err("refused").to_string();
    assert!(error.contains("older than 2") && error.contains("--actor-id"), "{error}");
}

#[tokio::test]
async fn a_coordinator_that_assigns_without_credit_loses_the_stream() {
    let mut pair = Pair::start();
    let mut seat = pair.seat().await;
    seat.welcome().await;
    for id in 0..3 {
        seat.assign(id, Some(LATER)).await;
    }
    let mut again = pair.seat().await;
    assert_eq!(again.hello().await.claims, [0, 1]);
}
