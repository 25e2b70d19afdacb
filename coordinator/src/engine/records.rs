//! What people can look back on: the newest finished and refused trajectories, and who asked for
//! what. All of it, and all that came before, is in the journal.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ballast_proto::{
    ActorId, EpisodeId,
    v1::{AuditEntry, Mode, QuarantinedTrajectory, TrajectoryEntry, TrajectorySummary},
};
use serde::{Deserialize, Serialize};

const FINISHED_MAX: usize = 1000;
const QUARANTINED_MAX: usize = 256;
const AUDIT_MAX: usize = 256;
/// Bytes of a text that are kept: it may quote what somebody sent.
const TEXT_BYTES_MAX: usize = 512;

/// A trajectory that was refused.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Quarantined {
    episode: EpisodeId,
    actor: ActorId,
    fault: String,
    at: Duration,
}

/// The newest records, oldest first.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Records {
    finished: VecDeque<Arc<TrajectorySummary>>,
    quarantined: VecDeque<Quarantined>,
    quarantined_total: u64,
    audit: VecDeque<AuditEntry>,
}

impl Records {
    pub(super) fn finish(&mut self, trajectory: &Arc<TrajectorySummary>) {
        push(&mut self.finished, Arc::clone(trajectory), FINISHED_MAX);
    }

    pub(super) fn quarantine(
        &mut self,
        now: Duration,
        episode: EpisodeId,
        actor: &ActorId,
        fault: &str,
    ) {
        let one = Quarantined { episode, actor: actor.clone(), fault: cut(fault), at: now };
        self.quarantined_total += 1;
        push(&mut self.quarantined, one, QUARANTINED_MAX);
    }

    pub(super) fn audit(&mut self, entry: AuditEntry) {
        push(&mut self.audit, entry, AUDIT_MAX);
    }

    /// Finished trajectories of a mode and an outcome, newest first.
    pub(super) fn trajectories(
        &self,
        mode: Mode,
        success: Option<bool>,
        limit: usize,
    ) -> Vec<TrajectoryEntry> {
        let is_asked_for = |one: &&Arc<TrajectorySummary>| {
            (mode == Mode::Unspecified || one.mode() == mode)
                && success.is_none_or(|success| one.success == Some(success))
        };
        let entry = |one: &Arc<TrajectorySummary>| TrajectoryEntry {
            episode_id: one.episode_id,
            group_id: one.group_id,
            task: one.task.clone(),
            mode: one.mode,
            stop_reason: one.stop_reason,
            reward: one.reward,
            success: one.success,
            tokens: one.tokens,
            calls: one.calls,
            oldest_version: one.oldest_version,
        };
        self.finished.iter().rev().filter(is_asked_for).take(limit).map(entry).collect()
    }

    /// Refused trajectories, newest first, and how many there were in all.
    pub(super) fn quarantined(&self) -> (Vec<QuarantinedTrajectory>, u64) {
        let entry = |one: &Quarantined| QuarantinedTrajectory {
            episode_id: one.episode.0,
            actor_id: one.actor.0.clone(),
            fault: one.fault.clone(),
            t: one.at.as_secs_f64(),
        };
        (self.quarantined.iter().rev().map(entry).collect(), self.quarantined_total)
    }

    /// Audit entries, newest first.
    pub(super) fn audit_entries(&self) -> Vec<AuditEntry> {
        self.audit.iter().rev().cloned().collect()
    }
}

/// The beginning of a text, if it is long.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// Keeps the newest.
pub(super) fn push<T>(all: &mut VecDeque<T>, one: T, max: usize) {
    if all.len() == max {
        all.pop_front();
    }
    all.push_back(one);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(cut("short"), "short");
        let whole = "\u{e9}".repeat(TEXT_BYTES_MAX / 2);
        assert_eq!(cut(&whole), whole);
        assert_eq!(cut(&format!("a{whole}")).len(), TEXT_BYTES_MAX - 1 + 3);
    }

    #[test]
    fn the_newest_are_kept() {
        let mut records = Records::default();
        for episode in 0..10_000 {
            let summary = TrajectorySummary { episode_id: episode, ..Default::default() };
            records.finish(&Arc::new(summary));
            records.quarantine(Duration::ZERO, EpisodeId(episode), &ActorId("a".into()), "no");
            records.audit(AuditEntry::default());
        }
        let (quarantined, total) = records.quarantined();
        assert_eq!((quarantined.len(), total), (QUARANTINED_MAX, 10_000));
        assert_eq!(quarantined[0].episode_id, 9_999, "newest first");
        assert_eq!(records.finished.len(), FINISHED_MAX);
        assert_eq!(records.trajectories(Mode::Unspecified, None, 1)[0].episode_id, 9_999);
        assert_eq!(records.audit_entries().len(), AUDIT_MAX);
    }
}
