//! Demonstrations of the tasks that the policy failed lately, for SFT (erroneous-task supervision,
//! with the criterion and the window as settings).
//!
//! When an RL batch is planned, each of its groups that failed is selected, and an expert is asked for
//! its task. The selection of the last `window` RL steps is what SFT steps draw from.
//!
//! Invariant: a batch is formed only when every selected demonstration has arrived or was given up, so
//! batches do not depend on the order in which actors report.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use ballast_proto::{
    EpisodeId,
    v1::{Mode, TaskRef, TrajectorySummary},
};
use ballast_runtime::config::{FailedTasks, FailureCriterion};
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::{
    batches::{Batch, Group},
    dispatch::{Purpose, Wanted},
    seeds::{self, Domain},
    statistics,
};

/// A task that was failed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Correction {
    /// Number of its selection, from 0.
    index: usize,
    /// Number of the RL batch that failed it, from 0.
    rl_batch: u64,
    state: State,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Pending,
    Recorded(Arc<TrajectorySummary>),
    GivenUp,
}

/// The selection, oldest first. Bounded by `window` batches of groups.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Corrections {
    run_seed: u64,
    batch_size: usize,
    selected: VecDeque<Correction>,
    /// Selected in the whole run.
    next: usize,
    /// RL batches seen.
    rl_batches: u64,
    /// Recorded ones that left the window, until no batch needs them.
    retired: BTreeSet<EpisodeId>,
}

impl Corrections {
    pub(super) fn new(run_seed: u64, batch_size: u32) -> Self {
        Self {
            run_seed,
            batch_size: batch_size as usize,
            selected: VecDeque::new(),
            next: 0,
            rl_batches: 0,
            retired: BTreeSet::new(),
        }
    }

    /// Selects the failed groups of an RL batch, those that were replaced too, and drops what is older
    /// than the window. Returns the episodes to run.
    pub(super) fn select(&mut self, batch: &Batch, settings: &FailedTasks) -> Vec<Wanted> {
        let rl_batch = self.rl_batches;
        self.rl_batches += 1;
        let mut wanted = Vec::new();
        for group in batch.groups.iter().chain(&batch.replaced) {
            let task = group.trajectories.first().and_then(|one| one.task.clone());
            let Some(task) = task.filter(|_| has_failed(group, settings.criterion)) else {
                continue;
            };
            wanted.push(demonstration_of(task, self.next));
            let (index, state) = (self.next, State::Pending);
            self.selected.push_back(Correction { index, rl_batch, state });
            self.next += 1;
        }
        let is_old = |one: &Correction| one.rl_batch + settings.window <= rl_batch;
        while self.selected.front().is_some_and(is_old) {
            if let Some(Correction { state: State::Recorded(old), .. }) = self.selected.pop_front()
            {
                self.retired.insert(EpisodeId(old.episode_id));
            }
        }
        wanted
    }

    /// Keeps a demonstration. Returns it when it came too late: its task has left the window.
    pub(super) fn record(
        &mut self,
        index: usize,
        trajectory: Arc<TrajectorySummary>,
    ) -> Option<EpisodeId> {
        let episode = EpisodeId(trajectory.episode_id);
        (!self.settle(index, State::Recorded(trajectory))).then_some(episode)
    }

    pub(super) fn give_up(&mut self, index: usize) {
        self.settle(index, State::GivenUp);
    }

    fn settle(&mut self, index: usize, outcome: State) -> bool {
        let first = self.selected.front().map_or(self.next, |one| one.index);
        let place = index.checked_sub(first).and_then(|offset| self.selected.get_mut(offset));
        match place {
            Some(Correction { state: state @ State::Pending, .. }) => {
                *state = outcome;
                true
            }
            _ => false,
        }
    }

    /// Whether there is nothing to imitate and nothing on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.selected.iter().all(|one| matches!(one.state, State::GivenUp))
    }

    /// A batch from the selection: a permutation of all of it, drawn anew for every batch, as often as
    /// it takes. `None` while some of it is being recorded.
    pub(super) fn batch(&self, index: u64) -> Option<Vec<Arc<TrajectorySummary>>> {
        let mut recorded = Vec::with_capacity(self.selected.len());
        for one in &self.selected {
            match &one.state {
                State::Pending => return None,
                State::Recorded(trajectory) => recorded.push(trajectory),
                State::GivenUp => {}
            }
        }
        if recorded.is_empty() {
            return None;
        }
        recorded.shuffle(&mut seeds::rng(self.run_seed, Domain::Correction, index, 0));
        Some(recorded.into_iter().cycle().take(self.batch_size).cloned().collect())
    }

    /// Those that left the window and are in no batch that is kept.
    pub(super) fn take_retired(&mut self, kept: &BTreeSet<EpisodeId>) -> Vec<EpisodeId> {
        let free: Vec<EpisodeId> = self.retired.difference(kept).copied().collect();
        self.retired.retain(|episode| kept.contains(episode));
        free
    }
}

fn has_failed(group: &Group, criterion: FailureCriterion) -> bool {
    match criterion {
        FailureCriterion::AllFail => statistics::is_all_fail(group),
        FailureCriterion::AnyFail => group.trajectories.iter().any(|one| one.success != Some(true)),
    }
}

fn demonstration_of(task: TaskRef, index: usize) -> Wanted {
    Wanted {
        purpose: Purpose::Correction { index },
        task,
        mode: Mode::Demonstrate,
        sampling_seed: 0,
        temperature: 0.0,
        min_policy_version: None,
        attempts: 0,
    }
}

#[cfg(test)]
mod tests {
    use ballast_proto::{GroupId, v1::StepKind};

    use super::*;
    use crate::engine::Phase;

    fn summary(id: u64, success: bool) -> Arc<TrajectorySummary> {
        let task = Some(TaskRef { seed: id / 10, ..TaskRef::default() });
        let success = Some(success);
        Arc::new(TrajectorySummary { episode_id: id, task, success, ..Default::default() })
    }

    /// An RL batch of groups of two with these outcomes; ids are 10 times the group's.
    fn batch(groups: &[(u64, [bool; 2])]) -> Batch {
        let group = |(id, outcomes): &(u64, [bool; 2])| Group {
            id: GroupId(*id),
            trajectories: outcomes.iter().zip(id * 10..).map(|(ok, id)| summary(id, *ok)).collect(),
        };
        Batch {
            step: 1,
            kind: StepKind::Rl,
            learning_rate: 0.1,
            phase: Phase::Rl,
            groups: groups.iter().map(group).collect(),
            demonstrations: Vec::new(),
            replaced: Vec::new(),
            sft_weight: 0.0,
            reset_optimizer: false,
        }
    }

    fn seeds_of(wanted: &[Wanted]) -> Vec<u64> {
        wanted.iter().map(|one| one.task.seed).collect()
    }

    #[test]
    fn the_criterion_says_which_groups_have_failed() {
        let outcomes = batch(&[(0, [true, true]), (1, [true, false]), (2, [false, false])]);
        for (criterion, failed) in
            [(FailureCriterion::AllFail, vec![2]), (FailureCriterion::AnyFail, vec![1, 2])]
        {
            let settings = FailedTasks { criterion, window: 1 };
            let wanted = Corrections::new(0, 2).select(&outcomes, &settings);
            assert_eq!(seeds_of(&wanted), failed);
        }
    }

    #[test]
    fn a_batch_waits_for_the_whole_selection_and_repeats_it() {
        let mut corrections = Corrections::new(0, 5);
        assert!(corrections.is_empty());
        let failed = batch(&[(1, [false, false]), (2, [false, false])]);
        assert_eq!(corrections.select(&failed, &FailedTasks::default()).len(), 2);
        assert!(!corrections.is_empty());
        assert_eq!(corrections.record(1, summary(91, true)), None);
        assert!(corrections.batch(0).is_none(), "one is on its way");
        assert_eq!(corrections.record(0, summary(90, true)), None);
        let ids = |index| -> Vec<u64> {
            corrections.batch(index).expect("complete").iter().map(|one| one.episode_id).collect()
        };
        assert_eq!(ids(0).len(), 5);
        assert!(ids(0).contains(&90) && ids(0).contains(&91));
        assert_eq!(ids(3), ids(3));
    }

    #[test]
    fn what_leaves_the_window_is_kept_as_long_as_a_batch_needs_it() {
        let mut corrections = Corrections::new(0, 2);
        let settings = FailedTasks { window: 2, ..FailedTasks::default() };
        corrections.select(&batch(&[(1, [false, false])]), &settings);
        corrections.record(0, summary(90, true));
        corrections.select(&batch(&[]), &settings);
        assert!(corrections.batch(0).is_some(), "two batches are looked back on");
        corrections.select(&batch(&[]), &settings);
        assert!(corrections.is_empty());
        assert_eq!(corrections.record(0, summary(90, true)), Some(EpisodeId(90)), "too late");
        assert!(corrections.take_retired(&BTreeSet::from([EpisodeId(90)])).is_empty());
        assert_eq!(corrections.take_retired(&BTreeSet::new()), [EpisodeId(90)]);
        assert!(corrections.take_retired(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn nothing_is_left_of_a_selection_that_was_given_up() {
        let mut corrections = Corrections::new(0, 2);
        corrections.select(&batch(&[(1, [false, false])]), &FailedTasks::default());
        corrections.give_up(0);
        assert!(corrections.is_empty());
    }
}
