//! The actor's side of `Rollout.Session`: hello, credits, assignments in, trajectories out,
//! heartbeats, drain, and connecting again.
//!
//! - `ledger`: which episodes this actor answers for; pure
//! - `work`: what goes on whatever becomes of the streams
//! - `stream`: one stream, from hello to its end
//!
//! Owns: what the actor and the coordinator owe each other. Does not know: how episodes run.
//! Invariants: episodes survive the stream they came over, and the next one claims them, so the death
//! of a coordinator loses no work; the actor has one generation from its start to its end.

mod ledger;
mod stream;
mod work;

use std::{
    pin::pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ballast_proto::{Generation, v1::ActorHello};
use ballast_runtime::leader::Search;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::{
    stream::{Ended, Live, Stream},
    work::Work,
};
use crate::{
    counters::Counters,
    engine::{Mailbox, Report},
};

/// Why an actor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
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
    /// Where the coordinator may be.
    pub coordinator: Search,
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
    /// Serves the coordinator, over as many streams as it takes, until the coordinator drains the
    /// actor or `cancelled` does; then running episodes are finished and reported first, as far as
    /// that is possible in time.
    ///
    /// # Errors
    /// The actor cannot go on; connecting again would not help.
    pub async fn run(self, cancelled: CancellationToken) -> Result<(), SessionError> {
        let Self { actor_id, mut coordinator, slots, engine, reports, .. } = self;
        let refused = |status: &Status| SessionError::Refused {
            actor_id: actor_id.clone(),
            reason: status.message().to_owned(),
        };
        let generation = generation_now().0;
        let mut work = Work::new(slots, engine, reports);
        loop {
            let hello = ActorHello {
                actor_id: actor_id.clone(),
                generation,
                slots,
                claims: work.ledger().claims(),
                run_id: work.ledger().run_id().to_owned(),
            };
            let stream = match reach(&mut coordinator, &hello, &mut work, &cancelled).await? {
                Reached::Welcome(stream) => stream,
                Reached::Refusal(status) => return Err(refused(&status)),
                Reached::NotInTime => return Ok(()),
            };
            tracing::info!(
                "joined the coordinator at {} with {} episodes",
                coordinator.address(),
                hello.claims.len()
            );
            work.on_welcome(&stream.run_id);
            self.registered.send_replace(true);
            let live = Live {
                work: &mut work,
                counters: &self.counters,
                weight_source: &self.weight_source,
            };
            let ended = live.serve(*stream, &cancelled).await;
            self.registered.send_replace(false);
            match ended? {
                Ended::Drained => return Ok(()),
                Ended::Refused(status) => return Err(refused(&status)),
                Ended::Lost(status) => {
                    coordinator.failed(&status);
                    work.on_stream_ended();
                }
            }
        }
    }
}

/// What came of the search for a coordinator.
enum Reached {
    Welcome(Box<Stream>),
    Refusal(Status),
    /// A drain was over before.
    NotInTime,
}

/// Looks for a coordinator that welcomes this actor, while the episodes go on. What they come to
/// meanwhile is claimed by `hello` all the same: it claims what runs.
async fn reach(
    coordinator: &mut Search,
    hello: &ActorHello,
    work: &mut Work,
    cancelled: &CancellationToken,
) -> Result<Reached, SessionError> {
    let mut opening = pin!(stream::open(coordinator, hello));
    while !work.is_over(false) {
        // Cancel-safe: `opening` goes on where it was.
        tokio::select! {
            biased;
            advanced = work.advance(cancelled) => advanced?,
            opened = &mut opening => {
                return Ok(match opened {
                    Ok(stream) => Reached::Welcome(Box::new(stream)),
                    Err(status) => Reached::Refusal(status),
                });
            }
        }
    }
    Ok(Reached::NotInTime)
}

/// The incarnation that starts now: Unix time in milliseconds.
fn generation_now() -> Generation {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Generation(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
