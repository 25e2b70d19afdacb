//! The actor's side of the contract in `rollout.proto`: which episodes it answers for, what is to be
//! said about them, how many more it may be given. A model of the real actor's `session::ledger`, with
//! the same states and the same names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ballast_proto::v1::{EpisodeReturned, SlotsFree, Trajectory, actor_message::Message};

/// Trajectories that may wait for their acknowledgement, per slot.
pub(super) const UNACKNOWLEDGED_PER_SLOT: u32 = 4;

/// Credits and episodes of an actor.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: u32,
    /// Run of all that follows; empty before the first welcome.
    run_id: String,
    /// Credits given over this stream and not used.
    granted: u32,
    running: BTreeSet<u64>,
    /// Still runs, but nobody waits for it.
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

    pub(super) fn run_id(&self) -> &str {
        if self.outstanding() == 0 { "" } else { &self.run_id }
    }

    /// Episodes that run and those not confirmed.
    pub(super) fn claims(&self) -> Vec<u64> {
        let mut claims: Vec<u64> = self.running.iter().chain(self.done.keys()).copied().collect();
        claims.sort_unstable();
        claims
    }

    /// Credits are void, and what the stream may have lost is to be sent again.
    pub(super) fn on_stream_ended(&mut self) {
        self.granted = 0;
        self.unsent = self.done.keys().copied().collect();
    }

    pub(super) fn on_welcome(&mut self, run_id: &str) {
        if self.run_id != run_id {
            let draining = self.draining;
            *self = Self { run_id: run_id.to_owned(), draining, ..Self::new(self.slots) };
        }
    }

    /// Returns whether the episode is to be run; nothing if the coordinator breaks the protocol.
    pub(super) fn on_assignment(&mut self, episode: u64) -> Option<bool> {
        let held = self.running.contains(&episode)
            || self.stopping.contains(&episode)
            || self.done.contains_key(&episode);
        if held {
            return None;
        }
        self.granted = self.granted.checked_sub(1)?;
        self.running.insert(episode);
        if self.draining {
            self.on_returned(episode, "the actor drains".into(), 0);
        }
        Some(!self.draining)
    }

    /// The coordinator does not wait for an episode any more.
    pub(super) fn forget(&mut self, episode: u64) {
        self.done.remove(&episode);
        if self.running.remove(&episode) {
            self.stopping.insert(episode);
        }
    }

    pub(super) fn on_finished(&mut self, episode: u64, trajectory: Box<Trajectory>) {
        self.settle(episode, Done::Finished(trajectory));
    }

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

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether an episode runs and somebody waits for it.
    pub(super) fn runs(&self, episode: u64) -> bool {
        self.running.contains(&episode)
    }

    pub(super) fn running(&self) -> Vec<u64> {
        self.running.iter().copied().collect()
    }

    /// Episodes that take a slot.
    pub(super) fn in_engine(&self) -> usize {
        self.running.len() + self.stopping.len()
    }

    /// Episodes that the coordinator waits for.
    pub(super) fn outstanding(&self) -> usize {
        self.running.len() + self.done.len()
    }

    /// Trajectories that wait for an acknowledgement.
    pub(super) fn unacknowledged(&self) -> usize {
        self.done.len()
    }

    /// What to send next; it counts as sent from here on. What became of episodes goes before the
    /// credits for their slots.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        while let Some(episode_id) = self.unsent.pop_front() {
            match self.done.get(&episode_id) {
                Some(Done::Finished(trajectory)) => {
                    return Some(Message::Trajectory((**trajectory).clone()));
                }
                Some(Done::Returned { reason, tokens }) => {
                    let (reason, tokens) = (reason.clone(), *tokens);
                    self.done.remove(&episode_id);
                    return Some(Message::Returned(EpisodeReturned { episode_id, reason, tokens }));
                }
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
        let done_max = self.slots * UNACKNOWLEDGED_PER_SLOT;
        let room = done_max.saturating_sub(self.done.len() as u32).min(self.slots);
        room.saturating_sub(self.granted + self.in_engine() as u32)
    }
}
