//! Saying in the log that a store does not answer, and when it does again: once in a while.

use std::fmt::Display;

/// Failures between two lines of the log.
const FAILURES_PER_REPORT: u32 = 20;

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u32,
}

impl Outage {
    /// Another one, while doing `what`.
    pub(super) fn failed(&mut self, what: &str, cause: impl Display) {
        if self.failures.is_multiple_of(FAILURES_PER_REPORT) {
            tracing::warn!("{what}: {cause}");
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// It answers.
    pub(super) fn over(&mut self, what: &str) {
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("{what}: the store answers again");
        }
    }
}
