//! V1: versions are +1 per step, for the learner and in the journal, and what the learner was told is
//! known is in the journal.

use super::Checked;

/// The newest versions.
#[derive(Debug, Default)]
pub(super) struct Versions {
    finished: u64,
}

impl Versions {
    pub(super) fn on_finished(&mut self, step: u64) -> Checked {
        if step != self.finished + 1 {
            return Err(format!("step {step} is finished after step {}", self.finished));
        }
        self.finished = step;
        Ok(())
    }

    pub(super) fn on_applied(&self, step: u64, held: u64) -> Checked {
        if step != held + 1 {
            return Err(format!("the learner makes step {step} of the weights of step {held}"));
        }
        if step > self.finished + ballast_coordinator::engine::SERVED_AHEAD_MAX + 1 {
            return Err(format!("the learner is at step {step}, {} is finished", self.finished));
        }
        Ok(())
    }

    pub(super) fn on_confirmed(&self, step: u64) -> Checked {
        if step > self.finished {
            return Err(format!("step {step} is confirmed, and is not in the journal"));
        }
        Ok(())
    }
}
