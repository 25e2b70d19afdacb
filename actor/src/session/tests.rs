use ballast_proto::{
    EpisodeId,
    v1::{
        Acknowledged, ActorMessage, ActorWelcome, CoordinatorMessage, Drain, EpisodeReturned, Mode,
        Trajectory, WeightSource, actor_message, coordinator_message,
        rollout_server::{Rollout, RolloutServer},
    },
};
use ballast_runtime::net::bind;
use tokio::{task::JoinHandle, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;
use crate::{
    engine::{Outcome, spawn},
    testing::{assignment, engine, plays, staged, wire},
};

/// A test that waits longer than this fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// One session as the coordinator sees it; the test plays the coordinator.
struct Seat {
    inbound: Streaming<ActorMessage>,
    outbound: mpsc::Sender<Result<CoordinatorMessage, Status>>,
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

impl Seat {
    async fn next(&mut self) -> Option<actor_message::Message> {
        let message = timeout(PATIENCE, self.inbound.message()).await.expect("a message");
        message.ok().flatten().and_then(|message| message.message)
    }

    /// Waits for a heartbeat that reports this many episodes.
    async fn runs(&mut self, episodes: u32) {
        loop {
            match self.next().await {
                Some(actor_message::Message::Heartbeat(beat)) => {
                    if beat.episodes_running == episodes {
                        return;
                    }
                }
                None => panic!("the actor left"),
                Some(_) => {}
            }
        }
    }

    /// The next message that is no heartbeat.
    async fn next_but_beats(&mut self) -> Option<actor_message::Message> {
        loop {
            let message = self.next().await;
            if !matches!(message, Some(actor_message::Message::Heartbeat(_))) {
                return message;
            }
        }
    }

    async fn say(&self, message: coordinator_message::Message) {
        let message = CoordinatorMessage { message: Some(message) };
        self.outbound.send(Ok(message)).await.expect("the session is open");
    }

    /// Welcomes the actor; returns its generation and the slots it offers.
    async fn welcome(&mut self) -> (u64, u32) {
        let Some(actor_message::Message::Hello(hello)) = self.next().await else {
            panic!("no hello")
        };
        assert_eq!(hello.actor_id, "actor-0");
        let welcome = ActorWelcome { heartbeat_interval_ms: 50, ..Default::default() };
        self.say(coordinator_message::Message::Welcome(welcome)).await;
        let Some(actor_message::Message::SlotsFree(free)) = self.next_but_beats().await else {
            panic!("no slots")
        };
        assert!(free.slots <= hello.slots);
        (hello.generation, free.slots)
    }

    async fn assign(&self, id: u64, min_policy_version: Option<u64>) {
        let mut assignment = wire(assignment(id, Mode::Explore));
        assignment.min_policy_version = min_policy_version;
        self.say(coordinator_message::Message::Assignment(assignment)).await;
    }

    /// The next trajectory; skips heartbeats and credits.
    async fn trajectory(&mut self) -> Trajectory {
        loop {
            match self.next().await {
                Some(actor_message::Message::Trajectory(trajectory)) => return trajectory,
                Some(
                    actor_message::Message::Heartbeat(_) | actor_message::Message::SlotsFree(_),
                ) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// An actor with two slots and a policy that answers "1", and the coordinator it talks to.
struct Pair {
    sessions: mpsc::Receiver<Seat>,
    actor: JoinHandle<Result<(), SessionError>>,
    cancelled: CancellationToken,
    weight_source: watch::Receiver<Option<String>>,
    engine: Arc<Mailbox>,
}

impl Pair {
    async fn start() -> Self {
        let handle = spawn(engine(plays(&["1"]), 2).0).expect("a thread");
        handle.mailbox.stage(staged(3));
        Self::with(handle.mailbox, handle.reports, handle.counters).await
    }

    async fn with(
        engine: Arc<Mailbox>,
        reports: mpsc::Receiver<Report>,
        counters: Arc<Counters>,
    ) -> Self {
        let (listener, address) = bind("127.0.0.1:0").await.expect("a free port");
        let (seats, sessions) = mpsc::channel(1);
        let server = Server::builder().add_service(RolloutServer::new(FakeCoordinator(seats)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (weight_source, source) = watch::channel(None);
        let cancelled = CancellationToken::new();
        let session = Session {
            actor_id: "actor-0".into(),
            coordinator: address.to_string(),
            slots: 2,
            engine: Arc::clone(&engine),
            reports,
            counters,
            weight_source,
            registered: watch::channel(false).0,
        };
        let actor = tokio::spawn(session.run(cancelled.clone()));
        Self { sessions, actor, cancelled, weight_source: source, engine }
    }

    async fn seat(&mut self) -> Seat {
        timeout(PATIENCE, self.sessions.recv()).await.expect("in time").expect("a session")
    }

    async fn ends(self) -> Result<(), SessionError> {
        let result = timeout(PATIENCE, self.actor).await.expect("in time").expect("no panic");
        self.engine.stop();
        result
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_acknowledgement_of_the_last_trajectory() {
    let mut pair = Pair::start().await;
    let mut seat = pair.seat().await;
    let (_, slots) = seat.welcome().await;
    assert_eq!(slots, 2);
    let source = WeightSource { address: "127.0.0.1:9".into() };
    seat.say(coordinator_message::Message::WeightSource(source)).await;
    seat.assign(7, Some(3)).await;
    let trajectory = seat.trajectory().await;
    assert_eq!((trajectory.episode_id, trajectory.answer.as_deref()), (7, Some("1")));
    assert_eq!(pair.weight_source.borrow().as_deref(), Some("127.0.0.1:9"));
    let freed = seat.next_but_beats().await;
    assert!(matches!(freed, Some(actor_message::Message::SlotsFree(free)) if free.slots == 1));

    seat.say(coordinator_message::Message::Drain(Drain {})).await;
    // A refusal shows that the drain was seen, a heartbeat after it that the actor is still there.
    seat.assign(8, None).await;
    let refused = seat.next_but_beats().await;
    assert!(
        matches!(&refused, Some(actor_message::Message::Returned(r)) if r.episode_id == 8),
        "{refused:?}"
    );
    assert!(matches!(seat.next().await, Some(actor_message::Message::Heartbeat(_))));
    let acknowledged = Acknowledged { episode_id: 7 };
    seat.say(coordinator_message::Message::Acknowledged(acknowledged)).await;
    assert_eq!(seat.next_but_beats().await, None);
    drop(seat);
    pair.ends().await.expect("drained");
}

#[tokio::test]
async fn a_new_session_starts_clean_under_a_newer_generation() {
    let mut pair = Pair::start().await;
    let mut first = pair.seat().await;
    let (generation, slots) = first.welcome().await;
    assert_eq!(slots, 2);
    // Both wait for a version that never comes, and hold both slots.
    first.assign(1, Some(99)).await;
    first.assign(2, Some(99)).await;
    first.runs(2).await;
    drop(first);

    let mut second = pair.seat().await;
    let (newer, slots) = second.welcome().await;
    assert!(newer > generation);
    assert_eq!(slots, 2);
    second.assign(3, None).await;
    assert_eq!(second.trajectory().await.episode_id, 3);
}

#[tokio::test]
async fn what_an_older_session_left_is_not_reported_to_the_next() {
    let (engine, reports) = mpsc::channel(4);
    let mut pair = Pair::with(Arc::new(Mailbox::new(2)), reports, Arc::default()).await;
    let mut seat = pair.seat().await;
    let (generation, _) = seat.welcome().await;
    for (generation, id) in [(generation - 1, 1), (generation, 2)] {
        let outcome = Outcome::Returned { episode_id: EpisodeId(id), reason: "test".into() };
        let report = Report { generation: Generation(generation), outcome };
        engine.send(report).await.expect("the session listens");
    }
    let returned = EpisodeReturned { episode_id: 2, reason: "test".into() };
    assert_eq!(seat.next_but_beats().await, Some(actor_message::Message::Returned(returned)));
    drop(engine);
    let error = pair.ends().await.expect_err("no engine");
    assert!(matches!(error, SessionError::EngineGone), "{error}");
}

#[tokio::test]
async fn a_signal_gives_back_what_has_not_started() {
    let mut pair = Pair::start().await;
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, Some(99)).await;
    seat.runs(1).await;
    pair.cancelled.cancel();
    let expected = EpisodeReturned { episode_id: 1, reason: "the actor drains".into() };
    assert_eq!(seat.next_but_beats().await, Some(actor_message::Message::Returned(expected)));
    assert_eq!(seat.next_but_beats().await, None);
    drop(seat);
    pair.ends().await.expect("drained");
}

#[tokio::test]
async fn a_refused_generation_ends_the_actor_with_the_remedy() {
    let mut pair = Pair::start().await;
    let seat = pair.seat().await;
    let status = Status::failed_precondition("generation 1 is older than 2");
    seat.outbound.send(Err(status)).await.expect("the session is open");
    drop(seat);
    let error = pair.ends().await.expect_err("refused").to_string();
    assert!(error.contains("older than 2") && error.contains("--actor-id"), "{error}");
}

#[tokio::test]
async fn a_coordinator_that_assigns_without_credit_loses_the_session() {
    let mut pair = Pair::start().await;
    let mut seat = pair.seat().await;
    seat.welcome().await;
    for id in 0..3 {
        seat.assign(id, Some(99)).await;
    }
    let mut again = pair.seat().await;
    assert_eq!(again.welcome().await.1, 2);
}

#[test]
fn a_generation_grows_even_when_the_clock_does_not() {
    let first = newer(Generation(0));
    assert!(newer(first) > first);
    assert_eq!(newer(Generation(u64::MAX - 1)), Generation(u64::MAX));
}
