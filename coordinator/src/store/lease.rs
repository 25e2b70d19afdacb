//! Until when the holder of a lease may count on it, by its own clock. Pure.

use std::time::Duration;

use super::entry::LeaseId;

/// A lease is kept alive every third of its time to live.
const KEEP_ALIVES_PER_TTL: u32 = 3;
/// The holder stops this part of the time to live before the store may drop the lease: for what is
/// under way when it stops, and for clocks of which one runs faster.
const MARGIN_PER_TTL: u32 = 6;
/// An attempt that failed is repeated after this, or at once when less is left.
const KEEP_RETRY: Duration = Duration::from_millis(100);

/// When a lease is kept alive, and when its holder stops.
///
/// The store starts the time to live when it handles a request, which is after the request was sent.
/// So the lease stands at least until the time to live after `asked`: no answer needs to say when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseClock {
    pub(super) lease: LeaseId,
    /// `None`: it stands until it is revoked.
    ttl: Option<Duration>,
    /// When the last request that was answered was sent.
    asked: Duration,
    /// When the next one is sent.
    keep_at: Option<Duration>,
}

impl LeaseClock {
    /// A lease asked for at `asked`.
    pub(super) fn new(lease: LeaseId, ttl: Option<Duration>, asked: Duration) -> Self {
        let keep_at = ttl.map(|ttl| asked + ttl / KEEP_ALIVES_PER_TTL);
        Self { lease, ttl, asked, keep_at }
    }

    /// The holder stops at this time; `None`: never.
    pub(super) fn held_until(&self) -> Option<Duration> {
        self.ttl.map(|ttl| self.asked + ttl - ttl / MARGIN_PER_TTL)
    }

    /// Whether the holder may still act.
    pub(super) fn is_held(&self, now: Duration) -> bool {
        self.held_until().is_none_or(|until| now < until)
    }

    /// When to keep it alive; `None` while that is under way, or never.
    pub(super) fn keep_at(&self) -> Option<Duration> {
        self.keep_at
    }

    /// A request to keep it alive is sent.
    pub(super) fn on_asked(&mut self) {
        self.keep_at = None;
    }

    /// The request sent at `asked` was answered.
    pub(super) fn on_kept(&mut self, asked: Duration) {
        *self = Self::new(self.lease, self.ttl, self.asked.max(asked));
    }

    /// The request was not answered, or not in time.
    pub(super) fn on_failed(&mut self, now: Duration) {
        self.keep_at = self.ttl.map(|_| now + KEEP_RETRY);
    }
}

/// Longest wait for an answer to one attempt, so that several fit between two deadlines.
pub(super) fn attempt_max(ttl: Duration) -> Duration {
    ttl / (2 * KEEP_ALIVES_PER_TTL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(6);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_holder_stops_before_the_store_can() {
        let clock = LeaseClock::new(LeaseId(1), Some(TTL), seconds(100));
        assert_eq!(clock.keep_at(), Some(seconds(102)));
        assert_eq!(clock.held_until(), Some(seconds(105)));
        assert!(clock.is_held(seconds(104)));
        assert!(!clock.is_held(seconds(105)));
        assert!(clock.held_until().expect("it has a time to live") < seconds(100) + TTL);
    }

    #[test]
    fn time_counts_from_the_question_not_from_the_answer() {
        let mut clock = LeaseClock::new(LeaseId(1), Some(TTL), seconds(100));
        clock.on_asked();
        assert_eq!(clock.keep_at(), None);
        // Sent at 102, answered whenever: what counts is 102.
        clock.on_kept(seconds(102));
        assert_eq!(clock.held_until(), Some(seconds(107)));
        assert_eq!(clock.keep_at(), Some(seconds(104)));
    }

    #[test]
    fn an_answer_to_an_older_question_takes_nothing_back() {
        let mut clock = LeaseClock::new(LeaseId(1), Some(TTL), seconds(100));
        clock.on_kept(seconds(103));
        clock.on_kept(seconds(102));
        assert_eq!(clock.held_until(), Some(seconds(108)));
    }

    #[test]
    fn a_failed_attempt_is_repeated_and_prolongs_nothing() {
        let mut clock = LeaseClock::new(LeaseId(1), Some(TTL), seconds(100));
        clock.on_asked();
        clock.on_failed(seconds(103));
        assert_eq!(clock.keep_at(), Some(seconds(103) + KEEP_RETRY));
        assert_eq!(clock.held_until(), Some(seconds(105)));
    }

    #[test]
    fn several_attempts_fit_before_the_end() {
        let first = TTL / KEEP_ALIVES_PER_TTL;
        let end = TTL - TTL / MARGIN_PER_TTL;
        assert!(first + 2 * (attempt_max(TTL) + KEEP_RETRY) < end);
    }

    #[test]
    fn a_lease_without_an_end_is_held_for_ever() {
        let mut clock = LeaseClock::new(LeaseId(1), None, seconds(100));
        assert_eq!((clock.keep_at(), clock.held_until()), (None, None));
        clock.on_failed(seconds(103));
        assert_eq!(clock.keep_at(), None);
        assert!(clock.is_held(seconds(1 << 30)));
    }
}
