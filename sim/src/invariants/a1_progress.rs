//! A1: after all faults are over, the run comes to its end within this time. The world keeps the
//! deadline; this says how long it is.

use std::time::Duration;

/// An honest rest of a run takes about five minutes: some steps, each of which waits for the slowest
/// of its episodes, up to a minute and a half.
pub(crate) const BOUND: Duration = Duration::from_secs(30 * 60);
