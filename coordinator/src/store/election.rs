//! Who leads: what one candidate does, from its wish to lead to the end of its leadership. Pure.
//!
//! The leader is whoever created the leader's key; the key is under its creator's lease, and the
//! revision of its creation is the term. Owns: when to try, when to keep the lease alive, when to
//! stop. Does not know: the store, time beyond what it is told.
//!
//! Invariants
//! - It leads from the answer to its creation of the key to the first sign that the key may be gone,
//!   and never past [`LeaseClock::held_until`].
//! - At most one question is under way; a new one replaces it, and its answer is never heard.
//! - What was heard late is known to be late, by its revision.

use std::time::Duration;

use ballast_runtime::backoff::Backoff;

use super::{
    entry::{LeaseId, Revision},
    lease::LeaseClock,
};

const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The watch tells what stands under the leader's key.
    Heard(Sighting),
    /// The time of [`Election::deadline`] has come.
    Deadline,
    /// The lease asked for at `asked`.
    Granted { lease: LeaseId, ttl: Option<Duration>, asked: Duration },
    /// The key was created, at this revision.
    Created(Revision),
    /// The key was not created: one stands there.
    Taken(Sighting),
    /// The lease was kept alive by the request sent at `asked`.
    Kept { asked: Duration },
    /// The lease is not there any more.
    LeaseGone,
    /// The lease is revoked, the key is gone.
    Revoked,
    /// No answer. What was asked for may or may not have been done.
    Failed,
    /// The store will never do it.
    Refused,
    /// Whoever wanted to lead does not want to any more.
    Abandoned,
}

/// What is known of the leader's key as of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) revision: Revision,
    /// `None`: nobody leads.
    pub(super) key: Option<LeaderKey>,
}

/// The leader's key: when it was created, and under which lease it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaderKey {
    pub(super) created: Revision,
    pub(super) lease: Option<LeaseId>,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Ask the store; forget what was asked before.
    Ask(Question),
    /// Leadership has begun.
    Lead(Revision),
    /// Leadership is over, this instant.
    Stop(Reason),
    /// The store refused before there was a leadership.
    GiveUp,
    /// There is nothing more to do.
    End,
}

/// What a candidate asks of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Grant,
    /// Create the key under this lease, if it is not there.
    Create(LeaseId),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
}

/// Why a leadership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// By wish.
    Resigned,
    /// The store has not answered for so long that it may drop the lease soon.
    Unanswered,
    /// The store has dropped the lease.
    LeaseGone,
    /// The key is gone, or is somebody else's.
    KeyGone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Somebody leads, or it is not known yet.
    Standby,
    /// Nobody leads: a candidate from `at` on.
    Waiting {
        at: Duration,
    },
    /// A candidate that asks for a lease.
    Granting,
    /// A candidate that tries to create the key. `retry_at` is `None` while the question is under way.
    Creating {
        clock: LeaseClock,
        retry_at: Option<Duration>,
    },
    Leader {
        clock: LeaseClock,
        term: Revision,
    },
    /// Gives the lease back, until that is done or no use any more. `retry_at` is `None` while the
    /// question is under way.
    SteppingDown {
        lease: LeaseId,
        retry_at: Option<Duration>,
        until: Duration,
    },
    Over,
}

/// What differs between candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// Time to live that leases are asked for with.
    pub(super) ttl: Duration,
    /// How long this candidate waits when the key is gone, so that not all come at once.
    pub(super) jitter: Duration,
    /// Of the pauses between attempts.
    pub(super) seed: u64,
}

/// One candidate.
#[derive(Debug)]
pub(super) struct Election {
    timing: Timing,
    state: State,
    /// The newest that is known of the key.
    seen: Sighting,
    backoff: Backoff,
}

impl Election {
    pub(super) fn new(timing: Timing) -> Self {
        // At revision 0 there is nothing to be known yet, so that the first news are news.
        let seen = Sighting { revision: Revision(0), key: None };
        let backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, timing.seed);
        Self { timing, state: State::Standby, seen, backoff }
    }

    /// When [`Event::Deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let earlier = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        match self.state {
            State::Standby | State::Granting | State::Over => None,
            State::Waiting { at } => Some(at),
            State::Creating { clock, retry_at } => earlier(retry_at, clock.held_until()),
            State::Leader { clock, .. } => earlier(clock.keep_at(), clock.held_until()),
            State::SteppingDown { retry_at, until, .. } => earlier(retry_at, Some(until)),
        }
    }

    /// How long the leadership stands without another answer; `None`: it stands until it is given up,
    /// or there is none.
    pub(super) fn held_until(&self) -> Option<Duration> {
        match self.state {
            State::Leader { clock, .. } => clock.held_until(),
            _ => None,
        }
    }

    /// Takes an event, and returns what to do about it, in order.
    pub(super) fn handle(&mut self, now: Duration, event: Event) -> Vec<Command> {
        // A process that was stopped may hear of other things first.
        if matches!(self.state, State::Leader { clock, .. } if !clock.is_held(now)) {
            return self.on_deadline(now);
        }
        match event {
            Event::Heard(sighting) => self.on_heard(now, sighting),
            Event::Deadline => self.on_deadline(now),
            Event::Granted { lease, ttl, asked } => {
                self.on_granted(LeaseClock::new(lease, ttl, asked))
            }
            Event::Created(term) => self.on_created(now, term),
            Event::Taken(sighting) => self.on_taken(now, sighting),
            Event::Kept { asked } => self.on_kept(asked),
            Event::LeaseGone => self.on_lease_gone(now),
            Event::Revoked => self.on_revoked(),
            Event::Failed => self.on_failed(now),
            Event::Refused => self.on_refused(now),
            Event::Abandoned => self.on_abandoned(now),
        }
    }

    fn on_heard(&mut self, now: Duration, sighting: Sighting) -> Vec<Command> {
        if sighting.revision < self.seen.revision {
            return Vec::new();
        }
        // At the first look there is nobody who has just gone, and whom all others want to replace.
        let is_first = self.seen.revision == Revision(0);
        let jitter = if is_first { Duration::ZERO } else { self.timing.jitter };
        self.seen = sighting;
        match self.state {
            State::Leader { clock, term } if sighting.key.is_none_or(|key| key.created != term) => {
                self.stop(now, clock.lease, Reason::KeyGone)
            }
            State::Waiting { .. } | State::Granting if sighting.key.is_some() => {
                self.stand_by(now + jitter)
            }
            State::Standby => self.stand_by(now + jitter),
            // The key that is heard of while one is created may be that one; the answer will tell.
            _ => Vec::new(),
        }
    }

    fn on_deadline(&mut self, now: Duration) -> Vec<Command> {
        match &mut self.state {
            State::Waiting { at } if now >= *at => {
                self.state = State::Granting;
                vec![Command::Ask(Question::Grant)]
            }
            // What is left of the lease is too little to lead with.
            State::Creating { clock, .. } if !clock.is_held(now) => self.retry(now),
            State::Creating { clock, retry_at } if retry_at.is_some_and(|at| now >= at) => {
                *retry_at = None;
                vec![Command::Ask(Question::Create(clock.lease))]
            }
            State::Leader { clock, .. } if !clock.is_held(now) => {
                let lease = clock.lease;
                self.stop(now, lease, Reason::Unanswered)
            }
            State::Leader { clock, .. } if clock.keep_at().is_some_and(|at| now >= at) => {
                clock.on_asked();
                vec![Command::Ask(Question::KeepAlive(clock.lease))]
            }
            State::SteppingDown { until, .. } if now >= *until => self.end(),
            State::SteppingDown { lease, retry_at, .. } if retry_at.is_some_and(|at| now >= at) => {
                *retry_at = None;
                vec![Command::Ask(Question::Revoke(*lease))]
            }
            _ => Vec::new(),
        }
    }

    fn on_granted(&mut self, clock: LeaseClock) -> Vec<Command> {
        match self.state {
            State::Granting => {
                self.state = State::Creating { clock, retry_at: None };
                vec![Command::Ask(Question::Create(clock.lease))]
            }
            // Somebody was faster: the lease is not needed.
            State::Standby | State::Waiting { .. } => {
                vec![Command::Ask(Question::Revoke(clock.lease))]
            }
            _ => Vec::new(),
        }
    }

    fn on_created(&mut self, now: Duration, term: Revision) -> Vec<Command> {
        let State::Creating { clock, .. } = self.state else { return Vec::new() };
        let key = LeaderKey { created: term, lease: Some(clock.lease) };
        self.seen = Sighting { revision: term, key: Some(key) };
        self.backoff.reset();
        // The answer may come so late that there is nothing left of the lease.
        if !clock.is_held(now) {
            let mut commands = self.retry(now);
            commands.push(Command::Ask(Question::Revoke(clock.lease)));
            return commands;
        }
        self.state = State::Leader { clock, term };
        vec![Command::Lead(term)]
    }

    fn on_taken(&mut self, now: Duration, sighting: Sighting) -> Vec<Command> {
        let State::Creating { clock, .. } = self.state else { return Vec::new() };
        // An earlier attempt did create it, and its answer was lost.
        if let Some(key) = sighting.key.filter(|key| key.lease == Some(clock.lease)) {
            return self.on_created(now, key.created);
        }
        if sighting.revision >= self.seen.revision {
            self.seen = sighting;
        }
        let mut commands = self.stand_by(now + self.timing.jitter);
        commands.push(Command::Ask(Question::Revoke(clock.lease)));
        commands
    }

    fn on_kept(&mut self, asked: Duration) -> Vec<Command> {
        if let State::Leader { clock, .. } = &mut self.state {
            clock.on_kept(asked);
        }
        Vec::new()
    }

    fn on_lease_gone(&mut self, now: Duration) -> Vec<Command> {
        match self.state {
            // It ran out between the grant and the creation.
            State::Creating { .. } => self.retry(now),
            State::Leader { .. } => {
                let mut commands = vec![Command::Stop(Reason::LeaseGone)];
                commands.extend(self.end());
                commands
            }
            State::SteppingDown { .. } => self.end(),
            _ => Vec::new(),
        }
    }

    fn on_revoked(&mut self) -> Vec<Command> {
        match self.state {
            State::SteppingDown { .. } => self.end(),
            _ => Vec::new(),
        }
    }

    fn on_failed(&mut self, now: Duration) -> Vec<Command> {
        match &mut self.state {
            State::Granting => self.retry(now),
            // The key may have been created: whoever asks again under the same lease finds out.
            State::Creating { retry_at, .. } | State::SteppingDown { retry_at, .. } => {
                *retry_at = Some(now + self.backoff.next_delay());
                Vec::new()
            }
            State::Leader { clock, .. } => {
                clock.on_failed(now);
                Vec::new()
            }
            State::Standby | State::Waiting { .. } | State::Over => Vec::new(),
        }
    }

    fn on_refused(&mut self, now: Duration) -> Vec<Command> {
        match self.state {
            State::Standby | State::Waiting { .. } | State::Granting | State::Creating { .. } => {
                let mut commands = vec![Command::GiveUp];
                commands.extend(self.end());
                commands
            }
            // It leads as long as its lease stands.
            State::Leader { .. } => self.on_failed(now),
            State::SteppingDown { .. } => self.end(),
            State::Over => Vec::new(),
        }
    }

    fn on_abandoned(&mut self, now: Duration) -> Vec<Command> {
        match self.state {
            State::Standby | State::Waiting { .. } | State::Granting => self.end(),
            State::Creating { clock, .. } => self.step_down(now, clock.lease),
            State::Leader { clock, .. } => self.stop(now, clock.lease, Reason::Resigned),
            State::SteppingDown { .. } | State::Over => Vec::new(),
        }
    }

    /// Waits for the key to go, or until `at` if it is gone.
    fn stand_by(&mut self, at: Duration) -> Vec<Command> {
        self.state = match self.seen.key {
            Some(_) => State::Standby,
            None => State::Waiting { at },
        };
        Vec::new()
    }

    fn retry(&mut self, now: Duration) -> Vec<Command> {
        self.state = State::Waiting { at: now + self.backoff.next_delay() };
        Vec::new()
    }

    fn stop(&mut self, now: Duration, lease: LeaseId, reason: Reason) -> Vec<Command> {
        let mut commands = vec![Command::Stop(reason)];
        commands.extend(self.step_down(now, lease));
        commands
    }

    /// Gives the lease back, so that another need not wait for its end.
    fn step_down(&mut self, now: Duration, lease: LeaseId) -> Vec<Command> {
        let until = now + self.timing.ttl;
        self.state = State::SteppingDown { lease, retry_at: None, until };
        vec![Command::Ask(Question::Revoke(lease))]
    }

    fn end(&mut self) -> Vec<Command> {
        self.state = State::Over;
        vec![Command::End]
    }
}

#[cfg(test)]
#[path = "election_test.rs"]
mod tests;
