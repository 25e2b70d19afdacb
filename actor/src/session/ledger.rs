//! Which episodes this actor answers for, what is to be said about them, and how many more it may be
//! given. Pure; it outlives the streams.
//!
//! ```text
//!   assigned --> Running --finished----> Finished --acknowledged or discarded--> forgotten
//!                  | |
//!                  | +------given back-> Returned --sent, or nobody waits------> forgotten
//!                  |
//!                  +--nobody waits-----> Stopping --the engine let go of it----> forgotten
//! ```
//! Invariants: an episode is in one state; `granted + running + stopping` is at most the slots, and
//! with what is finished or returned at most `UNACKNOWLEDGED_PER_SLOT` per slot, however long the
//! coordinator is away; an id in a state is never run again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ballast_proto::{
    CLAIMS_PER_SLOT_MAX,
    v1::{EpisodeReturned, SlotsFree, Trajectory, actor_message::Message},
};

/// Trajectories that may wait for their acknowledgement, per slot. Beyond it no new credit is given,
/// so a journal that is behind slows the actor down instead of filling its memory.
const UNACKNOWLEDGED_PER_SLOT: u32 = 4;

// What runs and what waits can be claimed.
const _: () = assert!(UNACKNOWLEDGED_PER_SLOT as usize <= CLAIMS_PER_SLOT_MAX);

/// Credits and episodes of an actor.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: u32,
    /// Run of all that follows; empty before the first welcome.
    run_id: String,
    /// Credits given over this stream and not used.
    granted: u32,
    running: BTreeSet<u64>,
    /// Still in the engine, but nobody waits for them.
    stopping: BTreeSet<u64>,
    done: BTreeMap<u64, Done>,
    /// Ids of `done` not yet sent over this stream, and of some that are forgotten since.
    unsent: VecDeque<u64>,
    draining: bool,
}

/// An episode that does not run any more.
#[derive(Debug)]
enum Done {
    /// Not acknowledged.
    Finished(Box<Trajectory>),
    /// Not sent.
    Returned { reason: String, tokens: u32 },
}

/// The coordinator breaks the protocol; the stream is not to be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// An assignment without a credit for it.
    #[error("the coordinator assigned more episodes than it was offered slots")]
    NoCredit,
    /// An assignment of what is here already.
    #[error("the coordinator assigned episode e{0}, which is here already")]
    Held(u64),
}

impl Ledger {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots,
            run_id: String::new(),
            granted: 0,
            running: BTreeSet::new(),
            stopping: BTreeSet::new(),
            done: BTreeMap::new(),
            unsent: VecDeque::new(),
            draining: false,
        }
    }

    /// Run that the claims belong to; empty without claims.
    pub(super) fn run_id(&self) -> &str {
        if self.outstanding() == 0 { "" } else { &self.run_id }
    }

    /// Episodes to claim from the coordinator: those that run and those it has not confirmed.
    pub(super) fn claims(&self) -> Vec<u64> {
        let mut claims: Vec<u64> = self.running.iter().chain(self.done.keys()).copied().collect();
        claims.sort_unstable();
        claims
    }

    /// A stream ended: its credits are void, and what it may have lost is to be sent again.
    pub(super) fn on_stream_ended(&mut self) {
        self.granted = 0;
        self.unsent = self.done.keys().copied().collect();
    }

    /// The coordinator welcomes this actor to a run. Returns whether it is another one than before;
    /// then nothing is left of the old.
    pub(super) fn on_welcome(&mut self, run_id: &str) -> bool {
        if self.run_id == run_id {
            return false;
        }
        let draining = self.draining;
        *self = Self { run_id: run_id.to_owned(), draining, ..Self::new(self.slots) };
        true
    }

    /// An assignment arrived. Returns whether it is to be run; otherwise it is given back.
    ///
    /// # Errors
    /// The coordinator breaks the protocol; nothing changed.
    pub(super) fn on_assignment(&mut self, episode: u64) -> Result<bool, Violation> {
        let held = self.running.contains(&episode)
            || self.stopping.contains(&episode)
            || self.done.contains_key(&episode);
        if held {
            return Err(Violation::Held(episode));
        }
        self.granted = self.granted.checked_sub(1).ok_or(Violation::NoCredit)?;
        self.running.insert(episode);
        if self.draining {
            self.on_returned(episode, "the actor drains".into(), 0);
        }
        Ok(!self.draining)
    }

    /// The coordinator does not wait for an episode any more: its trajectory is durable, or nobody
    /// wants it. Returns whether the engine is to stop it.
    pub(super) fn forget(&mut self, episode: u64) -> bool {
        self.done.remove(&episode);
        let runs = self.running.remove(&episode);
        if runs {
            self.stopping.insert(episode);
        }
        runs
    }

    /// The engine finished an episode.
    pub(super) fn on_finished(&mut self, trajectory: Box<Trajectory>) {
        self.settle(trajectory.episode_id, Done::Finished(trajectory));
    }

    /// The engine gave an episode back.
    pub(super) fn on_returned(&mut self, episode: u64, reason: String, tokens: u32) {
        self.settle(episode, Done::Returned { reason, tokens });
    }

    fn settle(&mut self, episode: u64, done: Done) {
        self.stopping.remove(&episode);
        if self.running.remove(&episode) {
            self.done.insert(episode, done);
            self.unsent.push_back(episode);
        }
    }

    /// Takes nothing new from here on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing is left that the coordinator waits for.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.outstanding() == 0
    }

    /// Episodes that run, oldest first.
    pub(super) fn running(&self) -> impl Iterator<Item = u64> {
        self.running.iter().copied()
    }

    /// Episodes that the coordinator waits for.
    pub(super) fn outstanding(&self) -> usize {
        self.running.len() + self.done.len()
    }

    /// Whether [`Self::next_message`] may have one.
    pub(super) fn has_message(&self) -> bool {
        !self.unsent.is_empty() || self.credits_due() > 0
    }

    /// What to send next over this stream; it counts as sent from here on. What became of episodes
    /// goes before the credits for their slots.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        while let Some(episode_id) = self.unsent.pop_front() {
            match self.done.get(&episode_id) {
                Some(Done::Finished(trajectory)) => {
                    return Some(Message::Trajectory((**trajectory).clone()));
                }
                Some(Done::Returned { reason, tokens }) => {
                    let (reason, tokens) = (reason.clone(), *tokens);
                    self.done.remove(&episode_id);
                    let returned = EpisodeReturned { episode_id, reason, tokens };
                    return Some(Message::Returned(returned));
                }
                // Forgotten before its turn came.
                None => {}
            }
        }
        let slots = self.credits_due();
        self.granted += slots;
        (slots > 0).then_some(Message::SlotsFree(SlotsFree { slots }))
    }

    fn credits_due(&self) -> u32 {
        if self.draining {
            return 0;
        }
        let count = |episodes: usize| u32::try_from(episodes).unwrap_or(u32::MAX);
        let done_max = self.slots.saturating_mul(UNACKNOWLEDGED_PER_SLOT);
        let room = done_max.saturating_sub(count(self.done.len())).min(self.slots);
        let in_engine = count(self.running.len() + self.stopping.len());
        room.saturating_sub(self.granted.saturating_add(in_engine))
    }
}

#[cfg(test)]
mod tests;
