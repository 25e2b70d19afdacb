//! A bound on how often one actor may say something that costs a record in the journal.

use std::time::Duration;

use tokio::time::Instant;

/// Messages a second per slot, and for the actor itself. An episode takes many model steps, so an
/// honest actor stays far below.
const PER_SLOT: f64 = 50.0;
const PER_ACTOR: f64 = 100.0;
/// Seconds of that which may come at once.
const BURST: f64 = 10.0;

/// A bucket that fills with time and empties with messages.
#[derive(Debug)]
pub(super) struct Flood {
    rate: f64,
    room: f64,
    at: Instant,
}

impl Flood {
    pub(super) fn new(slots: u32) -> Self {
        let rate = PER_ACTOR + PER_SLOT * f64::from(slots);
        Self { rate, room: rate * BURST, at: Instant::now() }
    }

    /// Takes note of a message. Returns false when there are too many.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).max(Duration::ZERO).as_secs_f64();
        self.room = (self.room + passed * self.rate).min(self.rate * BURST) - 1.0;
        self.at = now;
        self.room >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_admitted_and_a_flood_is_not() {
        let mut flood = Flood::new(1);
        let start = flood.at;
        assert!((0..1500).all(|_| flood.admits(start)));
        assert!(!flood.admits(start));
        assert!(flood.admits(start + Duration::from_secs(1)));
    }
}
