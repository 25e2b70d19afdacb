//! What goes on whatever becomes of the streams: the episodes, their reports, the drain.
//!
//! Owns: the ledger and the way to the engine. Does not know: streams, addresses.
//! Invariant: everything this waits for while the coordinator is away is bounded: no episode starts,
//! and a drain ends in time.

use std::{sync::Arc, time::Duration};

use ballast_proto::{EpisodeId, v1};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    SessionError,
    ledger::{Ledger, Violation},
};
use crate::{
    assignment::Assignment,
    engine::{Mailbox, Outcome, Report, RunIndex},
};

/// Time a drain gives episodes to finish. What runs then is given back. Together with the times
/// below and what the engine's step takes, it is below the 30 s that Kubernetes gives a pod.
const DRAIN_GRACE: Duration = Duration::from_secs(20);
/// Time to tell the coordinator what is given back.
const LEAVE_GRACE: Duration = Duration::from_secs(2);

/// Episodes of this actor, over one stream after another.
#[derive(Debug)]
pub(super) struct Work {
    engine: Arc<Mailbox>,
    reports: mpsc::Receiver<Report>,
    ledger: Ledger,
    run: RunIndex,
    drain: Drain,
}

/// How far a drain has come, and until when it stays there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// Not asked for.
    No,
    /// What runs is finished.
    Finishing { until: Instant },
    /// What still runs is given back, and the coordinator told.
    Leaving { until: Instant },
    /// Out of time.
    Left,
}

impl Work {
    pub(super) fn new(slots: u32, engine: Arc<Mailbox>, reports: mpsc::Receiver<Report>) -> Self {
        let (ledger, run) = (Ledger::new(slots), RunIndex::default());
        Self { engine, reports, ledger, run, drain: Drain::No }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What to send next over the stream of the moment.
    pub(super) fn next_message(&mut self) -> Option<v1::actor_message::Message> {
        self.ledger.next_message()
    }

    /// Waits for whatever concerns the episodes themselves, and acts on it. Cancel-safe.
    ///
    /// # Errors
    /// The engine is gone.
    pub(super) async fn advance(
        &mut self,
        cancelled: &CancellationToken,
    ) -> Result<(), SessionError> {
        let (asked, until) = match self.drain {
            Drain::No => (false, None),
            Drain::Finishing { until } | Drain::Leaving { until } => (true, Some(until)),
            Drain::Left => (true, None),
        };
        // Every arm is cancel-safe: a report not taken stays where it is.
        tokio::select! {
            biased;
            () = cancelled.cancelled(), if !asked => self.drain(),
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                self.on_drain_timeout();
            }
            report = self.reports.recv() => match report {
                Some(report) => self.on_report(report),
                None => return Err(SessionError::EngineGone),
            },
        }
        Ok(())
    }

    /// The coordinator welcomes this actor to a run.
    pub(super) fn on_welcome(&mut self, run_id: &str) {
        let held = self.ledger.outstanding();
        if self.ledger.on_welcome(run_id) {
            if held > 0 {
                tracing::warn!("another run than before: its {held} episodes are dropped");
            }
            self.run.0 += 1;
            self.engine.abandon();
        }
    }

    /// The stream ended.
    pub(super) fn on_stream_ended(&mut self) {
        self.ledger.on_stream_ended();
    }

    /// # Errors
    /// The coordinator breaks the protocol.
    pub(super) fn on_assignment(&mut self, wire: v1::Assignment) -> Result<(), Violation> {
        let episode_id = wire.episode_id;
        if !self.ledger.on_assignment(episode_id)? {
            return Ok(());
        }
        let accepted = Assignment::from_wire(wire).map_err(|error| error.to_string());
        let accepted = accepted.and_then(|assignment| {
            self.engine.assign(self.run, assignment).map_err(|error| error.to_string())
        });
        if let Err(reason) = accepted {
            tracing::warn!("episode e{episode_id} is given back: {reason}");
            self.ledger.on_returned(episode_id, reason, 0);
        }
        Ok(())
    }

    /// The coordinator does not wait for this episode any more.
    pub(super) fn forget(&mut self, episode: u64) {
        if self.ledger.forget(episode) {
            self.stop(episode);
        }
    }

    /// Finishes what runs, within bounds, and takes nothing new.
    pub(super) fn drain(&mut self) {
        if self.drain == Drain::No {
            tracing::info!("draining: {} episodes to finish", self.ledger.outstanding());
            self.drain = Drain::Finishing { until: Instant::now() + DRAIN_GRACE };
            self.ledger.drain();
            self.engine.drain();
        }
    }

    /// Whether a drain has nothing more to do. Without a coordinator nothing can be given back.
    pub(super) fn is_over(&self, connected: bool) -> bool {
        match self.drain {
            Drain::No => false,
            Drain::Finishing { .. } => self.ledger.is_drained(),
            Drain::Leaving { .. } => {
                let told = self.ledger.running().next().is_none() && !self.ledger.has_message();
                told || !connected
            }
            Drain::Left => true,
        }
    }

    fn on_drain_timeout(&mut self) {
        if let Drain::Finishing { .. } = self.drain {
            let left = self.ledger.outstanding();
            tracing::warn!("the drain is out of time; {left} episodes are left behind");
            self.drain = Drain::Leaving { until: Instant::now() + LEAVE_GRACE };
            for episode in self.ledger.running() {
                self.stop(episode);
            }
        } else {
            self.drain = Drain::Left;
        }
    }

    fn on_report(&mut self, report: Report) {
        if report.run != self.run {
            return;
        }
        match report.outcome {
            Outcome::Finished(trajectory) => self.ledger.on_finished(trajectory),
            Outcome::Returned { episode_id, reason, tokens } => {
                let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                self.ledger.on_returned(episode_id.0, reason, tokens);
            }
        }
    }

    /// Has the engine stop an episode; it reports it as returned.
    fn stop(&self, episode: u64) {
        if self.engine.cancel(EpisodeId(episode)).is_err() {
            // It then runs to its end, holding its slot, and comes to the same.
            tracing::debug!("episode e{episode} is not stopped: the engine is behind");
        }
    }
}

#[cfg(test)]
mod tests;
