//! Admission: when an RL group may be dispatched, and under which policy versions.
//!
//! Promise S1: at consumption by optimizer step `s`, staleness (learner's version minus the oldest
//! version that sampled a token) is at most `staleness_max`, and no finished episode is dropped to
//! achieve it.
//!
//! Proof. Let S = staleness_max. When a group is opened, the last batch j it can be in is known
//! (`groups`: nobody moves back), and so is the step `s` of that batch, which the schedule has decided
//! and never changes. The group is trained in a step <= s; when the learner computes that one its
//! parameters are version s - 1 at most. [`oldest_version`] puts max(0, s - 1 - S) on every assignment
//! of the group; an actor starts the episode only under that version or a newer one and never goes
//! back, so each sampled token has version >= s - 1 - S, and staleness is at most
//! (s - 1) - (s - 1 - S) = S, however long the episode takes. [`admitted`] asks
//! current >= s - 1 - S, that is, that such a version exists, so no assignment waits for a version
//! which needs that very assignment: batch j waits only for groups of steps <= s, and they are
//! admitted as soon as step s - 1 - S is finished. The bound costs waiting, never an episode.

use ballast_proto::PolicyVersion;

/// Oldest version that may sample a token trained in optimizer step `step`.
pub(super) fn oldest_version(step: u64, staleness_max: u64) -> PolicyVersion {
    PolicyVersion(step.saturating_sub(1).saturating_sub(staleness_max))
}

/// Whether a group trained in optimizer step `step` may be dispatched while `current` is the newest
/// version: `current + staleness_max + 1 >= step`.
pub(super) fn admitted(step: u64, current: PolicyVersion, staleness_max: u64) -> bool {
    current >= oldest_version(step, staleness_max)
}

/// Last optimizer step whose groups may be dispatched: the schedule decides up to it, and no further.
pub(super) fn step_max(current: PolicyVersion, staleness_max: u64) -> u64 {
    current.0.saturating_add(staleness_max).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_exact() {
        // (step, staleness_max, first version that admits it)
        for (step, staleness_max, first) in [(1, 0, 0), (1, 2, 0), (3, 2, 0), (4, 2, 1), (9, 0, 8)]
        {
            assert_eq!(oldest_version(step, staleness_max), PolicyVersion(first));
            assert!(admitted(step, PolicyVersion(first), staleness_max));
            assert!(step_max(PolicyVersion(first), staleness_max) >= step);
            if first > 0 {
                assert!(!admitted(step, PolicyVersion(first - 1), staleness_max));
                assert_eq!(step_max(PolicyVersion(first), staleness_max), step);
            }
        }
    }
}
