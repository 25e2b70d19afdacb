//! The actor's side of `Rollout.Session`: hello, credits, assignments in, trajectories out,
//! heartbeats, drain, and connecting again.
//!
//! Owns: which session the actor is in. Does not know: how episodes run.
//! Invariants: a session that ends takes its episodes with it (the coordinator cancels and
//! dispatches them again), so the next one, under a newer generation, starts clean; nothing is sent
//! under one generation that was assigned under another.

mod ledger;
mod live;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ballast_proto::Generation;
use ballast_runtime::{
    backoff::Backoff,
    net::{ConnectError, connect_with_retry},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::live::{Ended, Live};
use crate::{
    counters::Counters,
    engine::{Mailbox, Report},
};

const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why an actor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The coordinator's address is none.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator knows a newer actor of this name.
    #[error(
        "the coordinator refuses actor {actor_id}: {reason}; \
         if another actor runs under this name, give this one its own --actor-id"
    )]
    Refused {
        /// Name of this actor.
        actor_id: String,
        /// What the coordinator says.
        reason: String,
    },
    /// The engine's thread is gone.
    #[error("the engine stopped; its last words are in the log")]
    EngineGone,
}

/// An actor as the coordinator sees it.
#[derive(Debug)]
pub struct Session {
    /// Stable name of the actor.
    pub actor_id: String,
    /// host:port of the coordinator.
    pub coordinator: String,
    /// Episodes the actor runs at once.
    pub slots: u32,
    /// Where assignments go.
    pub engine: Arc<Mailbox>,
    /// What became of them.
    pub reports: mpsc::Receiver<Report>,
    /// What heartbeats tell.
    pub counters: Arc<Counters>,
    /// Receives the address of the weights.
    pub weight_source: watch::Sender<Option<String>>,
    /// True while the coordinator has welcomed the actor.
    pub registered: watch::Sender<bool>,
}

impl Session {
    /// Serves the coordinator, through as many connections as it takes, until the coordinator drains
    /// the actor or `cancelled` does; then running episodes are finished and reported first.
    ///
    /// # Errors
    /// The actor cannot go on; connecting again would not help.
    pub async fn run(mut self, cancelled: CancellationToken) -> Result<(), SessionError> {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, u64::from(std::process::id()));
        let mut generation = Generation(0);
        while !cancelled.is_cancelled() {
            generation = newer(generation);
            let connected =
                connect_with_retry(&self.coordinator, "the coordinator", &cancelled).await;
            let channel = match connected {
                Ok(channel) => channel,
                Err(ConnectError::Cancelled(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let ended = Live::run(&mut self, channel, generation, &cancelled).await;
            self.registered.send_replace(false);
            self.engine.abandon();
            match ended {
                Ended::Drained => return Ok(()),
                Ended::Failed(error) => return Err(error),
                Ended::Lost { welcomed, cause } => {
                    tracing::warn!("lost the coordinator at {}: {cause}", self.coordinator);
                    if welcomed {
                        backoff.reset();
                    }
                }
            }
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {}
                () = sleep(backoff.next_delay()) => {}
            }
        }
        Ok(())
    }
}

/// The next incarnation: Unix time in milliseconds, and newer than `last` whatever the clock does.
fn newer(last: Generation) -> Generation {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    Generation(now_ms).max(last.next())
}

#[cfg(test)]
mod tests;
