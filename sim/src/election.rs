//! Who may lead: a lease in a store that all coordinators can reach, and a term that grows with each
//! leader. A model of it; the real one is tested against a real etcd.

use std::time::Duration;

use crate::{agenda::Time, dice::Dice};

/// A leader that says nothing for this long leads no more.
const TTL: Duration = Duration::from_secs(6);
/// How often a coordinator asks.
pub(crate) const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// A process: which coordinator, and which incarnation of it.
type Candidate = (usize, u64);

/// What a coordinator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It leads, under this term.
    Leads(u64),
    /// Somebody else does.
    Follows,
    /// The store cannot be reached.
    Nothing,
}

/// The store's view.
#[derive(Debug)]
pub(crate) struct Election {
    holder: Option<Candidate>,
    term: u64,
    until: Time,
    /// Whether the one that leads cannot reach the store.
    away: bool,
    dice: Dice,
}

impl Election {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { holder: None, term: 0, until: Time::ZERO, away: false, dice }
    }

    pub(crate) fn set_away(&mut self, away: bool) {
        self.away = away;
    }

    /// The lease ends early, as when the store was without a quorum for a while.
    pub(crate) fn expire(&mut self) {
        self.until = Time::ZERO;
    }

    /// A coordinator asks, and says by it that it is alive.
    pub(crate) fn ask(&mut self, now: Time, candidate: Candidate) -> Answer {
        let holds = self.holder == Some(candidate);
        if holds && self.away {
            return Answer::Nothing;
        }
        if now < self.until && !holds {
            return Answer::Follows;
        }
        if holds && now >= self.until {
            // What it led ended with its lease.
            self.holder = None;
            return Answer::Follows;
        }
        if !holds {
            self.lead(candidate);
        }
        self.until = now + TTL;
        Answer::Leads(self.term)
    }

    /// Makes somebody lead at once. Returns its term.
    pub(crate) fn usurp(&mut self, now: Time, candidate: Candidate) -> u64 {
        self.lead(candidate);
        self.until = now + TTL;
        self.term
    }

    fn lead(&mut self, candidate: Candidate) {
        self.holder = Some(candidate);
        self.away = false;
        self.term += self.dice.between(1, 5);
    }
}
