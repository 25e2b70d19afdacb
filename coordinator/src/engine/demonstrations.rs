//! The fixed set of expert trajectories, and which of them form the n-th SFT batch.
//!
//! Invariant: no batch is formed before every demonstration has either arrived or been given up, so
//! the batches do not depend on the order in which actors report.

use std::sync::Arc;

use ballast_proto::v1::{Mode, TaskRef, TrajectorySummary};
use ballast_runtime::config::Tasks;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::{
    dispatch::{Purpose, Wanted},
    seeds::{self, Domain},
};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Demonstration {
    Pending,
    Recorded(Arc<TrajectorySummary>),
    GivenUp,
}

/// The demonstrations of a run.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Demonstrations {
    run_seed: u64,
    batch_size: usize,
    slots: Vec<Demonstration>,
    /// Slots that are still pending.
    pending: usize,
}

impl Demonstrations {
    pub(super) fn new(run_seed: u64, count: u32, batch_size: u32) -> Self {
        let slots: Vec<_> = (0..count).map(|_| Demonstration::Pending).collect();
        let (batch_size, pending) = (batch_size as usize, slots.len());
        Self { run_seed, batch_size, slots, pending }
    }

    /// The episodes that record them: train split, seeds from 0, numbers of calls in turn.
    pub(super) fn wanted(&self, tasks: &Tasks) -> Vec<Wanted> {
        let calls = tasks.demonstration_calls.iter().copied().cycle();
        let wanted = |(index, calls)| Wanted {
            purpose: Purpose::Demonstration { index },
            task: TaskRef {
                world: tasks.world.clone(),
                split: "train".into(),
                seed: index as u64,
                calls,
            },
            mode: Mode::Demonstrate,
            sampling_seed: 0,
            temperature: 0.0,
            min_policy_version: None,
            attempts: 0,
        };
        (0..self.slots.len()).zip(calls).map(wanted).collect()
    }

    pub(super) fn record(&mut self, index: usize, trajectory: Arc<TrajectorySummary>) {
        self.settle(index, Demonstration::Recorded(trajectory));
    }

    pub(super) fn give_up(&mut self, index: usize) {
        self.settle(index, Demonstration::GivenUp);
    }

    fn settle(&mut self, index: usize, outcome: Demonstration) {
        if let Some(slot @ Demonstration::Pending) = self.slots.get_mut(index) {
            *slot = outcome;
            self.pending -= 1;
        }
    }

    /// Whether every demonstration has arrived or been given up.
    pub(super) fn complete(&self) -> bool {
        self.pending == 0
    }

    /// (settled, all).
    pub(super) fn progress(&self) -> (u64, u64) {
        ((self.slots.len() - self.pending) as u64, self.slots.len() as u64)
    }

    fn recorded(&self) -> Vec<&Arc<TrajectorySummary>> {
        let mut recorded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            if let Demonstration::Recorded(trajectory) = slot {
                recorded.push(trajectory);
            }
        }
        recorded
    }

    /// Batch `index` (from 0): positions [index B, (index + 1) B) of an endless row of epochs, each
    /// a permutation of all demonstrations. `None` while incomplete, or if there is none at all.
    pub(super) fn batch(&self, index: u64) -> Option<Vec<Arc<TrajectorySummary>>> {
        if !self.complete() {
            return None;
        }
        let recorded = self.recorded();
        if recorded.is_empty() {
            return None;
        }
        let (size, count) = (self.batch_size as u64, recorded.len() as u64);
        let (first, end) = (index * size, (index + 1) * size);
        let mut batch = Vec::with_capacity(self.batch_size);
        let mut epoch = (u64::MAX, Vec::new());
        for position in first..end {
            if epoch.0 != position / count {
                epoch = (position / count, self.permutation(position / count, recorded.len()));
            }
            let chosen = epoch.1[(position % count) as usize];
            batch.push(Arc::clone(recorded[chosen]));
        }
        Some(batch)
    }

    fn permutation(&self, epoch: u64, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut seeds::rng(self.run_seed, Domain::Epoch, epoch, 0));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(count: u32, batch_size: u32) -> Demonstrations {
        let mut demonstrations = Demonstrations::new(7, count, batch_size);
        for index in 0..count {
            assert!(demonstrations.batch(0).is_none());
            let trajectory = TrajectorySummary { episode_id: index.into(), ..Default::default() };
            demonstrations.record(index as usize, Arc::new(trajectory));
        }
        demonstrations
    }

    fn ids(batch: &[Arc<TrajectorySummary>]) -> Vec<u64> {
        batch.iter().map(|trajectory| trajectory.episode_id).collect()
    }

    #[test]
    fn every_epoch_holds_every_demonstration_once_in_its_own_order() {
        let demonstrations = complete(10, 4);
        let row: Vec<u64> =
            (0..5).flat_map(|index| ids(&demonstrations.batch(index).expect("complete"))).collect();
        let (mut first, mut second) = (row[..10].to_vec(), row[10..].to_vec());
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<u64>>());
        assert_eq!(second, first);
    }

    #[test]
    fn a_given_up_demonstration_is_left_out() {
        let mut demonstrations = Demonstrations::new(7, 2, 3);
        demonstrations
            .record(1, Arc::new(TrajectorySummary { episode_id: 5, ..Default::default() }));
        demonstrations.give_up(0);
        assert_eq!(ids(&demonstrations.batch(0).expect("complete")), [5, 5, 5]);
    }

    #[test]
    fn without_any_demonstration_there_is_no_batch() {
        assert!(Demonstrations::new(7, 0, 3).batch(0).is_none());
    }
}
