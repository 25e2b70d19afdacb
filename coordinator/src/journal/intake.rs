//! Room for records between whoever brings them and the disk.
//!
//! Who blocks whom: an actor's stream waits for room before it is read on (HTTP/2 flow control does
//! the rest), and room comes back when a record is durable. Nobody else waits for the disk.

use std::sync::Arc;

use ballast_proto::MESSAGE_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Records that hold room at a time.
pub const INTAKE_RECORDS_MAX: usize = 1024;
/// Their bytes. Four of the largest messages: one is never too large to get in.
pub const INTAKE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// Room in the intake, held by a record until it is durable.
#[derive(Debug)]
pub struct Permit {
    _count: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// The room of the intake. Clones share it.
#[derive(Clone, Debug)]
pub struct Intake {
    count: Arc<Semaphore>,
    /// In KiB, because a semaphore counts no further than 2^29 on small machines.
    kibibytes: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            count: Arc::new(Semaphore::new(INTAKE_RECORDS_MAX)),
            kibibytes: Arc::new(Semaphore::new(INTAKE_BYTES_MAX >> 10)),
        }
    }
}

impl Intake {
    /// Waits for room for a record of this size. `None` when the process is going down.
    pub async fn reserve(&self, bytes: usize) -> Option<Permit> {
        let kibibytes = (bytes.min(INTAKE_BYTES_MAX) >> 10).max(1) as u32;
        let count = Arc::clone(&self.count).acquire_owned().await.ok()?;
        let room = Arc::clone(&self.kibibytes).acquire_many_owned(kibibytes).await.ok()?;
        Some(Permit { _count: count, _bytes: room })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_full_intake_makes_the_next_record_wait() {
        let intake = Intake::default();
        let held = intake.reserve(INTAKE_BYTES_MAX).await.expect("open");
        let mut next = Box::pin(intake.reserve(1));
        assert!(next.as_mut().now_or_never().is_none());
        drop(held);
        assert!(next.await.is_some());
    }

    /// Outside of a runtime, which would make a task that takes much at once wait its turn.
    #[test]
    fn the_number_of_records_is_bounded_too() {
        let intake = Intake::default();
        let reserve = || intake.reserve(1).now_or_never().flatten();
        let mut held: Vec<_> = (0..INTAKE_RECORDS_MAX).map(|_| reserve().expect("room")).collect();
        assert!(reserve().is_none());
        held.pop();
        assert!(reserve().is_some());
    }
}
