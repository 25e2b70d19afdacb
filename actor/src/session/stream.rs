//! One stream to the coordinator, from hello to its end.

use std::time::Duration;

use ballast_proto::{
    MESSAGE_BYTES_MAX,
    v1::{
        ActorHello, ActorMessage, CoordinatorMessage, Heartbeat, actor_message,
        coordinator_message, rollout_client::RolloutClient,
    },
};
use ballast_runtime::{leader::Search, memory::peak_rss_bytes};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{SessionError, ledger::Violation, work::Work};
use crate::counters::Counters;

/// Time the coordinator has to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Time the coordinator has to close its side after a drain.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages handed to the transport. When they are full, everything waits where it is kept.
const OUTBOUND_MAX: usize = 8;
/// Bounds of the heartbeat interval the coordinator may ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// A stream on which the coordinator has welcomed this actor.
pub(super) struct Stream {
    inbound: Streaming<CoordinatorMessage>,
    outbound: mpsc::Sender<ActorMessage>,
    heartbeat_interval: Duration,
    /// Run the coordinator has.
    pub(super) run_id: String,
}

/// How a stream ended.
pub(super) enum Ended {
    /// In order: nothing is left to do.
    Drained,
    /// Connecting again may help.
    Lost(Status),
    /// Connecting again will not help, says the coordinator.
    Refused(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        if is_refusal(&status) { Self::Refused(status) } else { Self::Lost(status) }
    }
}

/// Whether a newer incarnation of this actor is known.
fn is_refusal(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition
}

/// Says hello to one coordinator after another until one welcomes this actor. Cancel-safe: a stream
/// that is dropped half open is one that the coordinator gives up.
///
/// # Errors
/// The refusal of a coordinator, which is final.
pub(super) async fn open(search: &mut Search, hello: &ActorHello) -> Result<Stream, Status> {
    loop {
        let channel = search.connect().await;
        let welcome = timeout(WELCOME_TIMEOUT, say_hello(channel, hello.clone())).await;
        let answer =
            welcome.unwrap_or_else(|_| Err(Status::unavailable("it did not answer the hello")));
        match answer {
            Ok(stream) => {
                search.welcomed();
                return Ok(stream);
            }
            Err(status) if is_refusal(&status) => return Err(status),
            Err(status) => search.failed(&status),
        }
    }
}

async fn say_hello(channel: Channel, hello: ActorHello) -> Result<Stream, Status> {
    let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
    let hello = ActorMessage { message: Some(actor_message::Message::Hello(hello)) };
    outbound.send(hello).await.map_err(|_| broken())?;
    let mut client = RolloutClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
    let first = inbound.message().await?.and_then(|message| message.message);
    let Some(coordinator_message::Message::Welcome(welcome)) = first else {
        return Err(Status::unavailable("it did not answer the hello with a welcome"));
    };
    let interval = Duration::from_millis(welcome.heartbeat_interval_ms);
    let heartbeat_interval = interval.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
    Ok(Stream { inbound, outbound, heartbeat_interval, run_id: welcome.run_id })
}

fn broken() -> Status {
    Status::unavailable("the connection broke")
}

/// What is said and heard over one stream.
pub(super) struct Live<'a> {
    pub(super) work: &'a mut Work,
    pub(super) counters: &'a Counters,
    pub(super) weight_source: &'a watch::Sender<Option<String>>,
}

impl Live<'_> {
    /// Serves the coordinator until the stream ends.
    ///
    /// # Errors
    /// The engine is gone.
    pub(super) async fn serve(
        mut self,
        stream: Stream,
        cancelled: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        let Stream { mut inbound, outbound, heartbeat_interval, .. } = stream;
        let mut heartbeat = interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_beat = (Instant::now(), self.counters.idle());
        let (mut beat_due, mut dismissed) = (false, false);
        loop {
            if self.work.is_over(true) {
                return Ok(close(inbound, outbound).await);
            }
            let speaks = beat_due || self.work.ledger().has_message();
            // Every arm is cancel-safe: a message or a permit not taken stays where it is.
            tokio::select! {
                biased;
                advanced = self.work.advance(cancelled) => advanced?,
                message = inbound.message() => match message {
                    Ok(Some(CoordinatorMessage { message: Some(message) })) => {
                        dismissed |= matches!(message, coordinator_message::Message::Drain(_));
                        if let Err(violation) = self.on_message(message) {
                            return Ok(Status::unavailable(violation.to_string()).into());
                        }
                    }
                    // Of a coordinator newer than this actor.
                    Ok(Some(CoordinatorMessage { message: None })) => {}
                    // It sent the actor away and has nothing to add.
                    Ok(None) if dismissed => return Ok(Ended::Drained),
                    Ok(None) => return Ok(Status::unavailable("it closed the stream").into()),
                    Err(status) => return Ok(status.into()),
                },
                permit = outbound.reserve(), if speaks => {
                    let Ok(permit) = permit else { return Ok(broken().into()) };
                    let message = self.work.next_message();
                    if message.is_some() {
                        permit.send(ActorMessage { message });
                    } else if std::mem::take(&mut beat_due) {
                        let message = Some(self.beat(&mut last_beat));
                        permit.send(ActorMessage { message });
                    }
                }
                _ = heartbeat.tick(), if !beat_due => beat_due = true,
            }
        }
    }

    /// Takes one message; the error ends the stream.
    fn on_message(&mut self, message: coordinator_message::Message) -> Result<(), Violation> {
        use coordinator_message::Message;
        match message {
            Message::Assignment(assignment) => self.work.on_assignment(assignment)?,
            Message::Acknowledged(acknowledged) => {
                tracing::debug!("e{} is acknowledged", acknowledged.episode_id);
                self.work.forget(acknowledged.episode_id);
            }
            Message::Discard(discard) => self.work.forget(discard.episode_id),
            Message::Drain(_) => self.work.drain(),
            Message::WeightSource(source) => self.on_weight_source(source.address),
            // A second welcome: nothing this actor must do.
            Message::Welcome(_) => {}
        }
        Ok(())
    }

    fn on_weight_source(&self, address: String) {
        self.weight_source.send_if_modified(|source| {
            let changed = source.as_deref() != Some(address.as_str());
            if changed {
                tracing::info!("weights come from {address}");
                *source = Some(address);
            }
            changed
        });
    }

    /// A heartbeat about the time since `last`.
    fn beat(&self, last: &mut (Instant, Duration)) -> actor_message::Message {
        let counters = self.counters;
        let work = counters.decoder_work();
        let (now, idle) = (Instant::now(), counters.idle());
        let interval = now.duration_since(last.0).as_secs_f32();
        let idle_in_interval = idle.saturating_sub(last.1).as_secs_f32();
        *last = (now, idle);
        actor_message::Message::Heartbeat(Heartbeat {
            policy_version: counters.policy_version(),
            episodes_running: counters.episodes_running(),
            tokens_sampled: counters.tokens_sampled(),
            tokens_processed: counters.tokens_processed(),
            prefill_tokens_computed: work.prefill_computed,
            prefill_tokens_saved: work.prefill_saved,
            kv_evictions: work.evictions,
            idle_share: if interval > 0.0 { (idle_in_interval / interval).min(1.0) } else { 0.0 },
            peak_rss_bytes: peak_rss_bytes(),
        })
    }
}

/// Ends the stream from this side and lets the coordinator end its own, so that nothing this actor
/// sent is cut off.
async fn close(
    mut inbound: Streaming<CoordinatorMessage>,
    outbound: mpsc::Sender<ActorMessage>,
) -> Ended {
    drop(outbound);
    let ended = async { while let Ok(Some(_)) = inbound.message().await {} };
    if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
        tracing::debug!("the coordinator kept the stream open after the drain");
    }
    Ended::Drained
}
