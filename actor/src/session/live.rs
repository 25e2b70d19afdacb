//! One connection to the coordinator, from hello to its end.

use std::{collections::VecDeque, time::Duration};

use ballast_proto::{
    Generation, MESSAGE_BYTES_MAX,
    v1::{
        self, ActorHello, ActorMessage, CoordinatorMessage, EpisodeReturned, Heartbeat, SlotsFree,
        actor_message, coordinator_message, rollout_client::RolloutClient,
    },
};
use ballast_runtime::memory::peak_rss_bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{
    Session, SessionError,
    ledger::{Ledger, Refusal},
};
use crate::{
    assignment::Assignment,
    engine::{Outcome, Report},
};

/// Time the coordinator has to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a drain may take before what still runs is left to the coordinator. Below the 30 s that
/// Kubernetes gives a pod by default.
const DRAIN_GRACE: Duration = Duration::from_secs(25);
/// Time the coordinator has to close its side after a drain.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages handed to the transport. When they are full, `pending` fills and reports wait.
const OUTBOUND_MAX: usize = 8;
/// Messages waiting for the transport. When they are full, the engine's reports are not taken.
const PENDING_MAX: usize = 64;
/// Bounds of the heartbeat interval the coordinator may ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// How a connection ended.
pub(super) enum Ended {
    /// In order: nothing is left to do.
    Drained,
    /// Connecting again may help.
    Lost {
        /// Whether the coordinator had welcomed the actor.
        welcomed: bool,
        /// What happened, for people.
        cause: String,
    },
    /// Connecting again will not help.
    Failed(SessionError),
}

/// State of one connection.
pub(super) struct Live<'a> {
    session: &'a mut Session,
    generation: Generation,
    ledger: Ledger,
    pending: VecDeque<actor_message::Message>,
    drain_until: Option<Instant>,
    last_beat: (Instant, Duration),
}

impl<'a> Live<'a> {
    /// Connects, says hello, and serves until the connection ends.
    pub(super) async fn run(
        session: &'a mut Session,
        channel: Channel,
        generation: Generation,
        cancelled: &CancellationToken,
    ) -> Ended {
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        let opened = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Ended::Drained,
            opened = open(session, channel, generation, &outbound, messages) => opened,
        };
        let (inbound, heartbeat_interval) = match opened {
            Ok(opened) => opened,
            Err(status) => return lost(session, &status, false),
        };
        tracing::info!("joined the coordinator at {} as {generation}", session.coordinator);
        session.registered.send_replace(true);
        let live = Live {
            ledger: Ledger::new(session.slots),
            last_beat: (Instant::now(), session.counters.idle()),
            session,
            generation,
            pending: VecDeque::new(),
            drain_until: None,
        };
        live.serve(inbound, outbound, heartbeat_interval, cancelled).await
    }

    async fn serve(
        mut self,
        mut inbound: Streaming<CoordinatorMessage>,
        outbound: mpsc::Sender<ActorMessage>,
        heartbeat_interval: Duration,
        cancelled: &CancellationToken,
    ) -> Ended {
        let mut heartbeat = interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.offer_slots();
            if self.ledger.is_drained() && self.pending.is_empty() {
                return close(inbound, outbound).await;
            }
            let drain_until = self.drain_until.unwrap_or_else(Instant::now);
            // Every arm is cancel-safe: a message, a permit or a report not taken stays where it is.
            tokio::select! {
                biased;
                () = cancelled.cancelled(), if self.drain_until.is_none() => self.drain(),
                () = sleep_until(drain_until), if self.drain_until.is_some() => {
                    let left = self.ledger.outstanding();
                    tracing::warn!("the drain ran out of time; {left} episodes are left behind");
                    return Ended::Drained;
                }
                message = inbound.message() => match message {
                    Ok(Some(message)) => if let Err(refusal) = self.on_message(message) {
                        return self.over(&Status::unavailable(refusal.to_string()));
                    },
                    Ok(None) => return self.over(&Status::unavailable("it closed the stream")),
                    Err(status) => return self.over(&status),
                },
                permit = outbound.reserve(), if !self.pending.is_empty() => {
                    let Ok(permit) = permit else {
                        return self.over(&Status::unavailable("the connection broke"));
                    };
                    permit.send(ActorMessage { message: self.pending.pop_front() });
                }
                _ = heartbeat.tick() => self.beat(),
                report = self.session.reports.recv(), if self.pending.len() < PENDING_MAX => {
                    match report {
                        Some(report) => self.on_report(report),
                        None => return Ended::Failed(SessionError::EngineGone),
                    }
                }
            }
        }
    }

    /// Takes one message; the error ends the session.
    fn on_message(&mut self, message: CoordinatorMessage) -> Result<(), Refusal> {
        use coordinator_message::Message;
        match message.message {
            Some(Message::Assignment(assignment)) => self.on_assignment(assignment)?,
            Some(Message::Acknowledged(ack)) => self.ledger.on_acknowledged(ack.episode_id),
            Some(Message::Drain(_)) => self.drain(),
            Some(Message::WeightSource(source)) => self.on_weight_source(source.address),
            // A second welcome, or a message of a newer coordinator: nothing this actor must do.
            Some(Message::Welcome(_) | Message::Discard(_)) | None => {}
        }
        Ok(())
    }

    fn on_assignment(&mut self, wire: v1::Assignment) -> Result<(), Refusal> {
        let episode_id = wire.episode_id;
        match self.ledger.on_assignment(episode_id) {
            Ok(()) => {}
            Err(refusal @ Refusal::Draining) => {
                self.give_back(episode_id, refusal.to_string());
                return Ok(());
            }
            Err(refusal @ Refusal::NoCredit) => return Err(refusal),
        }
        let accepted = Assignment::from_wire(wire).map_err(|error| error.to_string());
        let accepted = accepted.and_then(|assignment| {
            self.session.engine.assign(self.generation, assignment).map_err(|e| e.to_string())
        });
        if let Err(reason) = accepted {
            tracing::warn!("episode e{episode_id} is given back: {reason}");
            self.give_back(episode_id, reason);
        }
        Ok(())
    }

    fn on_weight_source(&mut self, address: String) {
        self.session.weight_source.send_if_modified(|source| {
            let changed = source.as_deref() != Some(address.as_str());
            if changed {
                tracing::info!("weights come from {address}");
                *source = Some(address);
            }
            changed
        });
    }

    fn on_report(&mut self, report: Report) {
        if report.generation != self.generation {
            return;
        }
        match report.outcome {
            Outcome::Finished(trajectory) => {
                self.ledger.on_trajectory(trajectory.episode_id);
                self.pending.push_back(actor_message::Message::Trajectory(*trajectory));
            }
            Outcome::Returned { episode_id, reason } => self.give_back(episode_id.0, reason),
        }
    }

    fn give_back(&mut self, episode_id: u64, reason: String) {
        self.ledger.on_returned(episode_id);
        let returned = EpisodeReturned { episode_id, reason };
        self.pending.push_back(actor_message::Message::Returned(returned));
    }

    fn drain(&mut self) {
        if self.drain_until.is_none() {
            tracing::info!("draining: {} episodes to finish", self.ledger.outstanding());
            self.drain_until = Some(Instant::now() + DRAIN_GRACE);
            self.ledger.drain();
            self.session.engine.drain();
        }
    }

    fn offer_slots(&mut self) {
        let slots = self.ledger.grant();
        if slots > 0 {
            self.pending.push_back(actor_message::Message::SlotsFree(SlotsFree { slots }));
        }
    }

    fn beat(&mut self) {
        if !self.pending.is_empty() {
            // The transport is full: this beat would only queue up behind what it cannot send.
            return;
        }
        let counters = &self.session.counters;
        let work = counters.decoder_work();
        let (now, idle) = (Instant::now(), counters.idle());
        let interval = now.duration_since(self.last_beat.0).as_secs_f32();
        let idle_in_interval = idle.saturating_sub(self.last_beat.1).as_secs_f32();
        self.last_beat = (now, idle);
        self.pending.push_back(actor_message::Message::Heartbeat(Heartbeat {
            policy_version: counters.policy_version(),
            episodes_running: counters.episodes_running(),
            tokens_sampled: counters.tokens_sampled(),
            tokens_processed: counters.tokens_processed(),
            prefill_tokens_computed: work.prefill_computed,
            prefill_tokens_saved: work.prefill_saved,
            kv_evictions: work.evictions,
            idle_share: if interval > 0.0 { (idle_in_interval / interval).min(1.0) } else { 0.0 },
            peak_rss_bytes: peak_rss_bytes(),
        }));
    }

    fn over(&self, status: &Status) -> Ended {
        if self.ledger.is_draining() {
            return Ended::Drained;
        }
        lost(self.session, status, true)
    }
}

/// Opens the stream; returns it with the heartbeat interval of the welcome.
async fn open(
    session: &Session,
    channel: Channel,
    generation: Generation,
    outbound: &mpsc::Sender<ActorMessage>,
    messages: mpsc::Receiver<ActorMessage>,
) -> Result<(Streaming<CoordinatorMessage>, Duration), Status> {
    let hello = ActorHello {
        actor_id: session.actor_id.clone(),
        generation: generation.0,
        slots: session.slots,
        ..Default::default()
    };
    let hello = ActorMessage { message: Some(actor_message::Message::Hello(hello)) };
    let broken = |_| Status::unavailable("the connection broke");
    outbound.send(hello).await.map_err(broken)?;
    let mut client = RolloutClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let welcomed = timeout(WELCOME_TIMEOUT, async {
        let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let first = inbound.message().await?.and_then(|message| message.message);
        let Some(coordinator_message::Message::Welcome(welcome)) = first else {
            return Err(Status::unavailable("it did not answer the hello with a welcome"));
        };
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms);
        Ok((inbound, interval.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)))
    });
    welcomed.await.unwrap_or_else(|_| Err(Status::unavailable("it did not answer the hello")))
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

fn lost(session: &Session, status: &Status, welcomed: bool) -> Ended {
    if status.code() == Code::FailedPrecondition {
        return Ended::Failed(SessionError::Refused {
            actor_id: session.actor_id.clone(),
            reason: status.message().to_owned(),
        });
    }
    Ended::Lost { welcomed, cause: status.message().to_owned() }
}
