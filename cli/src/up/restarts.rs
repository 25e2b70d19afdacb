//! Whether, and when, a process that died is started again. Pure: no clock, no process.

use std::time::Duration;

use ballast_runtime::backoff::Backoff;

/// Deaths in a row, none after a healthy life, after which a process is given up.
pub(super) const RESTARTS_MAX: u32 = 5;
/// A process that lived this long was healthy: its death starts a new row.
const HEALTHY: Duration = Duration::from_secs(30);
const DELAY_INITIAL: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(10);

/// The restarts of one process.
#[derive(Debug)]
pub(super) struct Restarts {
    backoff: Backoff,
    /// Restarts since the process was last healthy.
    row: u32,
    /// Restarts of the whole run.
    total: u32,
}

/// What a process had done when it died.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// From its start to its death.
    pub(super) lasted: Duration,
    /// Optimizer steps the run made meanwhile that it could not have made without this process. They
    /// bound the restarts: a process that dies often and still gets the run on is worth its restarts.
    pub(super) steps: u64,
}

impl Life {
    fn was_healthy(self) -> bool {
        self.lasted >= HEALTHY || self.steps > 0
    }
}

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start again after `delay`; the `attempt`-th of [`RESTARTS_MAX`].
    Restart {
        /// Time to wait.
        delay: Duration,
        /// 1 to [`RESTARTS_MAX`].
        attempt: u32,
    },
    /// It keeps dying.
    GiveUp,
}

impl Restarts {
    /// `seed` spreads the delays of processes that die together.
    pub(super) fn new(seed: u64) -> Self {
        Self { backoff: Backoff::new(DELAY_INITIAL, DELAY_MAX, seed), row: 0, total: 0 }
    }

    /// Decides about a process that died after such a life.
    pub(super) fn on_death(&mut self, life: Life) -> Decision {
        if life.was_healthy() {
            self.row = 0;
            self.backoff.reset();
        }
        if self.row == RESTARTS_MAX {
            return Decision::GiveUp;
        }
        self.row += 1;
        self.total += 1;
        Decision::Restart { delay: self.backoff.next_delay(), attempt: self.row }
    }

    /// Restarts decided so far.
    pub(super) fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Life = Life { lasted: Duration::from_secs(1), steps: 0 };

    #[test]
    fn a_process_that_keeps_dying_is_given_up() {
        let mut restarts = Restarts::new(0);
        for expected in 1..=RESTARTS_MAX {
            let decision = restarts.on_death(SHORT);
            let Decision::Restart { delay, attempt } = decision else { panic!("{decision:?}") };
            assert!(attempt == expected && delay <= DELAY_MAX);
        }
        assert_eq!(restarts.on_death(SHORT), Decision::GiveUp);
        assert_eq!(restarts.total(), RESTARTS_MAX);
    }

    #[test]
    fn a_healthy_life_starts_a_new_row() {
        for healthy in [Life { lasted: HEALTHY, ..SHORT }, Life { steps: 1, ..SHORT }] {
            let mut restarts = Restarts::new(0);
            for _ in 0..RESTARTS_MAX {
                restarts.on_death(SHORT);
            }
            for _ in 0..3 * RESTARTS_MAX {
                let decision = restarts.on_death(healthy);
                let Decision::Restart { delay, attempt } = decision else { panic!("{decision:?}") };
                assert!(attempt == 1 && delay <= DELAY_INITIAL);
            }
            assert_eq!(restarts.total(), 4 * RESTARTS_MAX);
        }
    }
}
