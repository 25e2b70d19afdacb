//! Where the schedule is, in words.

use super::{Decided, Schedule, Stage};

/// Where the schedule is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Description {
    /// Name of the phase of the next step.
    pub(in crate::engine) phase: String,
    /// Why it is at hand.
    pub(in crate::engine) why: String,
    /// What ends it.
    pub(in crate::engine) ends: String,
    /// Last optimizer step whose kind is decided.
    pub(in crate::engine) decided: u64,
}

impl Schedule {
    /// Where it is, in words.
    pub(in crate::engine) fn describe(&self) -> Description {
        let decided = self.last_decided();
        let of = |phase: &str, why: &str, ends: String| Description {
            phase: phase.into(),
            why: why.into(),
            ends,
            decided,
        };
        let settings = self.settings();
        match (self.stage, self.decided.front()) {
            (Stage::ColdStart | Stage::ColdStartCheck, _) => {
                let (success, every) =
                    (settings.cold_start_success, settings.cold_start_check_every);
                let bound = settings.cold_start_steps_max;
                let ends = format!(
                    "a check at {success} or better (one every {every} steps), or {bound} steps"
                );
                of("cold_start", "the run begins with it", ends)
            }
            (Stage::Final | Stage::Finish | Stage::Finished, _) => {
                of("", "every step is planned", "the end of the run".into())
            }
            (_, Some(next)) if next.phase_name != self.course.describe().0 => {
                let (name, why, _) = self.course.describe();
                let theirs = |one: &&Decided| one.phase_name == next.phase_name;
                let last = self.step + self.decided.iter().take_while(theirs).count() as u64;
                let then = if name.is_empty() { "the end of the run" } else { name };
                let ends = format!("step {last} is its last, then {then}: {why}");
                of(&next.phase_name, "its steps are decided", ends)
            }
            _ => {
                let (name, why, ends) = self.course.describe();
                of(name, why, ends)
            }
        }
    }
}
