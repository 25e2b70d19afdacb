//! Which episodes a session is responsible for, and how many more it may be given. Pure.

use std::collections::BTreeSet;

/// Trajectories that may wait for their acknowledgement, per slot. Beyond it no new credit is given,
/// so a journal that is behind slows the actor down instead of filling its memory.
const UNACKNOWLEDGED_PER_SLOT: u32 = 4;

/// Credits and episodes of one session.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: u32,
    /// Credits given and not used.
    granted: u32,
    running: BTreeSet<u64>,
    unacknowledged: BTreeSet<u64>,
    draining: bool,
}

/// Why an assignment is not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The actor takes nothing new.
    #[error("the actor drains")]
    Draining,
    /// The coordinator had no credit for it: it breaks the protocol.
    #[error("the coordinator assigned more episodes than it was offered slots")]
    NoCredit,
}

impl Ledger {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots,
            granted: 0,
            running: BTreeSet::new(),
            unacknowledged: BTreeSet::new(),
            draining: false,
        }
    }

    /// Credits to give now; they count as given from here on.
    pub(super) fn grant(&mut self) -> u32 {
        if self.draining {
            return 0;
        }
        let count = |episodes: &BTreeSet<u64>| u32::try_from(episodes.len()).unwrap_or(u32::MAX);
        let unacknowledged_max = self.slots.saturating_mul(UNACKNOWLEDGED_PER_SLOT);
        let room = unacknowledged_max.saturating_sub(count(&self.unacknowledged)).min(self.slots);
        let used = self.granted.saturating_add(count(&self.running));
        let due = room.saturating_sub(used);
        self.granted = self.granted.saturating_add(due);
        due
    }

    /// An assignment arrived; `Ok` makes it a running episode.
    pub(super) fn on_assignment(&mut self, episode_id: u64) -> Result<(), Refusal> {
        if self.granted == 0 {
            return Err(Refusal::NoCredit);
        }
        self.granted -= 1;
        if self.draining {
            return Err(Refusal::Draining);
        }
        self.running.insert(episode_id);
        Ok(())
    }

    /// An episode was given back.
    pub(super) fn on_returned(&mut self, episode_id: u64) {
        self.running.remove(&episode_id);
    }

    /// An episode's trajectory is on its way.
    pub(super) fn on_trajectory(&mut self, episode_id: u64) {
        self.running.remove(&episode_id);
        self.unacknowledged.insert(episode_id);
    }

    /// A trajectory is durable.
    pub(super) fn on_acknowledged(&mut self, episode_id: u64) {
        self.unacknowledged.remove(&episode_id);
    }

    /// Takes nothing new from here on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether nothing is left that the coordinator waits for.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.running.is_empty() && self.unacknowledged.is_empty()
    }

    /// Episodes running and trajectories waiting for their acknowledgement.
    pub(super) fn outstanding(&self) -> usize {
        self.running.len() + self.unacknowledged.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_follow_the_free_slots() {
        let mut ledger = Ledger::new(3);
        assert_eq!(ledger.grant(), 3);
        assert_eq!(ledger.grant(), 0);
        ledger.on_assignment(1).expect("a credit");
        ledger.on_assignment(2).expect("a credit");
        assert_eq!(ledger.grant(), 0);
        ledger.on_trajectory(1);
        assert_eq!(ledger.grant(), 1);
        ledger.on_returned(2);
        assert_eq!(ledger.grant(), 1);
    }

    #[test]
    fn an_assignment_without_a_credit_is_refused() {
        let mut ledger = Ledger::new(1);
        assert_eq!(ledger.on_assignment(1), Err(Refusal::NoCredit));
        assert_eq!(ledger.grant(), 1);
        assert_eq!(ledger.on_assignment(1), Ok(()));
        assert_eq!(ledger.on_assignment(2), Err(Refusal::NoCredit));
    }

    #[test]
    fn unacknowledged_trajectories_hold_back_credits() {
        let mut ledger = Ledger::new(2);
        let mut finished = 0;
        while ledger.grant() > 0 {
            for _ in 0..2 {
                finished += 1;
                if ledger.on_assignment(finished).is_ok() {
                    ledger.on_trajectory(finished);
                }
            }
            assert!(finished <= 100, "credits never stop");
        }
        assert_eq!(ledger.outstanding(), 8);
        ledger.on_acknowledged(1);
        assert_eq!(ledger.grant(), 1);
    }

    #[test]
    fn a_drain_ends_when_the_last_trajectory_is_acknowledged() {
        let mut ledger = Ledger::new(2);
        assert_eq!(ledger.grant(), 2);
        ledger.on_assignment(1).expect("a credit");
        ledger.drain();
        assert_eq!(ledger.on_assignment(2), Err(Refusal::Draining));
        assert_eq!(ledger.grant(), 0);
        assert!(!ledger.is_drained());
        ledger.on_trajectory(1);
        assert!(!ledger.is_drained());
        ledger.on_acknowledged(1);
        assert!(ledger.is_drained());
    }
}
