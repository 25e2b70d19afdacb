//! What runs came to, in numbers.

use std::collections::BTreeMap;

use crate::faults::FaultKind;

/// Counts of a run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Things that happened.
    pub events: u64,
    /// Records that became durable.
    pub records: u64,
    /// Group commits.
    pub commits: u64,
    /// Times a coordinator tried to take the journal over.
    pub takeovers: u64,
    /// Those of them that began with a snapshot.
    pub snapshots_used: u64,
    /// Leaders that learned from the journal that they lead no more.
    pub fenced: u64,
    /// Coordinators that died.
    pub crashes: u64,
    /// Episodes that reached an actor.
    pub episodes: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Those of them that had been made before.
    pub steps_again: u64,
    /// Answers to people.
    pub changes: u64,
    pub(crate) faults: BTreeMap<FaultKind, u64>,
}

impl Totals {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.records += other.records;
        self.commits += other.commits;
        self.takeovers += other.takeovers;
        self.snapshots_used += other.snapshots_used;
        self.fenced += other.fenced;
        self.crashes += other.crashes;
        self.episodes += other.episodes;
        self.steps += other.steps;
        self.steps_again += other.steps_again;
        self.changes += other.changes;
        for (kind, count) in &other.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
    }

    /// Faults by the name of their kind.
    pub fn faults(&self) -> impl Iterator<Item = (String, u64)> {
        self.faults.iter().map(|(kind, count)| (format!("{kind:?}"), *count))
    }
}
