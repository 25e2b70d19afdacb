//! `Rollout.Session`: one stream per actor incarnation.

use std::{sync::Arc, time::Duration};

use ballast_proto::{
    ActorId, CLAIMS_PER_SLOT_MAX, EpisodeId, Generation,
    v1::{self, ActorHello, ActorMessage, CoordinatorMessage, actor_message::Message},
    verify_trajectory,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Handle, flood::Flood};
use crate::{
    engine::{Event, Hello, SessionId, summarize},
    inputs::{Input, Payload, SessionOutbox},
};

/// Time an actor has to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Episodes one actor may run at once.
const SLOTS_MAX: u32 = 4096;
/// Longest name of an actor, bytes.
const ACTOR_ID_BYTES_MAX: usize = 256;
/// Messages that wait for an actor beside one assignment and one acknowledgement per slot: a
/// welcome, weight sources, a drain. An actor that lets them pile up is closed.
const CONTROL_MESSAGES_MAX: usize = 64;
/// Characters of an actor's reason that are kept.
const REASON_CHARS_MAX: usize = 512;

#[derive(Debug)]
pub(super) struct Rollout {
    handle: Handle,
}

impl Rollout {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

#[tonic::async_trait]
impl v1::rollout_server::Rollout for Rollout {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ActorMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        // The slots are not known before the hello, so there is room for the largest actor.
        let (outbox, messages) = mpsc::channel(2 * SLOTS_MAX as usize + CONTROL_MESSAGES_MAX);
        let session = Session { handle: self.handle.clone(), id: SessionId(self.handle.id()) };
        tokio::spawn(session.run(request.into_inner(), outbox));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// The reading side of a stream.
struct Session {
    handle: Handle,
    id: SessionId,
}

impl Session {
    /// Reads the stream to its end, which it reports whatever the reason.
    async fn run(
        self,
        mut inbound: Streaming<ActorMessage>,
        outbox: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    ) {
        let hello = match receive_hello(&mut inbound).await {
            Ok(hello) => hello,
            Err(status) => {
                // The actor may be gone already.
                drop(outbox.try_send(Err(status)));
                return;
            }
        };
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let flood = Flood::new(hello.slots);
        let event = Event::ActorConnected { session: self.id, hello: self.hello(hello).await };
        let outbox = SessionOutbox { messages: outbox, guard };
        if self.handle.send(Input::Session(self.id, event, outbox)).await.is_err() {
            return;
        }
        // Cancel-safe: what is dropped is a stream that the coordinator has given up.
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            read = self.read(&mut inbound, flood) => {
                if let Err(status) = read {
                    tracing::debug!("an actor's stream broke: {}", status.message());
                }
            }
        }
        let event = Event::ActorDisconnected { session: self.id };
        // When the loop has ended nobody needs to know.
        drop(self.handle.send(Input::Event(event)).await);
    }

    /// Claims of another run are worth nothing here: the welcome says which run this is.
    async fn hello(&self, hello: ActorHello) -> Hello {
        let run_id = self.handle.ask(|view| view.engine.run_id().to_owned()).await;
        let is_ours = run_id.is_ok_and(|run_id| run_id == hello.run_id);
        let claims = if is_ours { hello.claims } else { Vec::new() };
        Hello {
            actor: ActorId(hello.actor_id),
            generation: Generation(hello.generation),
            slots: hello.slots,
            claims: claims.into_iter().map(EpisodeId).collect(),
        }
    }

    async fn read(
        &self,
        inbound: &mut Streaming<ActorMessage>,
        mut flood: Flood,
    ) -> Result<(), Status> {
        while let Some(message) = inbound.message().await? {
            let Some(message) = message.message else { continue };
            if !flood.admits(Instant::now()) {
                return Err(Status::resource_exhausted(
                    "the actor sends more than it can have done",
                ));
            }
            self.take(message).await?;
        }
        Ok(())
    }

    async fn take(&self, message: Message) -> Result<(), Status> {
        let session = self.id;
        let event = match message {
            Message::Hello(_) => return Err(Status::invalid_argument("hello was said already")),
            Message::SlotsFree(free) => Event::SlotsFreed { session, slots: free.slots },
            Message::Heartbeat(heartbeat) => {
                return self.handle.send(Input::Heartbeat(session, heartbeat)).await;
            }
            Message::Returned(returned) => Event::EpisodeGivenBack {
                session,
                episode: EpisodeId(returned.episode_id),
                reason: returned.reason.chars().take(REASON_CHARS_MAX).collect(),
                tokens: returned.tokens,
            },
            Message::Trajectory(trajectory) => return self.take_trajectory(trajectory).await,
        };
        self.handle.send(Input::Event(event)).await
    }

    async fn take_trajectory(&self, trajectory: v1::Trajectory) -> Result<(), Status> {
        let session = self.id;
        let event = match verify_trajectory(&trajectory) {
            Ok(()) => {
                Event::TrajectoryReported { session, trajectory: Arc::new(summarize(&trajectory)) }
            }
            Err(fault) => {
                let episode = EpisodeId(trajectory.episode_id);
                Event::TrajectoryInvalid { session, episode, fault: fault.to_string() }
            }
        };
        let bytes = Bytes::from(trajectory.encode_to_vec());
        // Waiting here stops the reading of this stream: the journal sets the pace.
        let permit = self.handle.intake.reserve(bytes.len()).await;
        let permit = permit.ok_or_else(|| Status::unavailable("the run is over"))?;
        let payload = Payload { bytes, permit };
        self.handle.send(Input::Trajectory(session, event, payload)).await
    }
}

async fn receive_hello(inbound: &mut Streaming<ActorMessage>) -> Result<ActorHello, Status> {
    let first = timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello came"))??;
    let Some(ActorMessage { message: Some(Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be a hello"));
    };
    if hello.actor_id.is_empty() || hello.actor_id.len() > ACTOR_ID_BYTES_MAX {
        let text = format!("actor_id must have 1 to {ACTOR_ID_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(text));
    }
    if hello.slots == 0 || hello.slots > SLOTS_MAX {
        return Err(Status::invalid_argument(format!("slots must be 1 to {SLOTS_MAX}")));
    }
    let claims_max = CLAIMS_PER_SLOT_MAX * hello.slots as usize;
    if hello.claims.len() > claims_max {
        let text = format!("{} claims; at most {claims_max} for its slots", hello.claims.len());
        return Err(Status::invalid_argument(text));
    }
    Ok(hello)
}
