//! RL groups: sibling episodes of one task, first in, first out.
//!
//! RL batch j consists of exactly the groups [jP, (j+1)P), P = `groups_per_batch`. Slow groups are
//! waited for and nothing finished is left out, so the length distribution trained on is the one
//! that was sampled. Promise G1: a batch leaves here only when all of its groups are closed.

use std::{collections::BTreeMap, sync::Arc};

use ballast_proto::{
    GroupId, PolicyVersion,
    v1::{Mode, TaskRef, Trajectory},
};
use ballast_runtime::config::Config;
use rand::Rng as _;

use super::{
    batches::Group,
    dispatch::{Purpose, Wanted},
    seeds::{self, Domain},
};

/// First task seed of exploration: keeps it apart from the demonstrations, which start at 0.
const EXPLORE_SEED_FIRST: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Sibling {
    Pending,
    Finished(Arc<Trajectory>),
    Dropped,
}

/// The open groups, in order.
#[derive(Debug)]
pub(super) struct Groups {
    group_size: usize,
    groups_per_batch: u64,
    open: BTreeMap<GroupId, Vec<Sibling>>,
    next: GroupId,
    /// Siblings given up after too many attempts, in the whole run.
    dropped: u64,
}

impl Groups {
    pub(super) fn new(group_size: u32, groups_per_batch: u32) -> Self {
        Self {
            group_size: group_size as usize,
            groups_per_batch: u64::from(groups_per_batch).max(1),
            open: BTreeMap::new(),
            next: GroupId(0),
            dropped: 0,
        }
    }

    /// The RL batch that the group opened next belongs to.
    pub(super) fn next_batch(&self) -> u64 {
        self.next.0 / self.groups_per_batch
    }

    /// Opens the next group. Returns its episodes, to be sampled under `oldest` or newer.
    pub(super) fn open(&mut self, config: &Config, oldest: PolicyVersion) -> Vec<Wanted> {
        let group = self.next;
        self.next = group.next();
        self.open.insert(group, vec![Sibling::Pending; self.group_size]);
        let task = task(config, group);
        let wanted = |index| Wanted {
            purpose: Purpose::Sibling { group, index },
            task: task.clone(),
            mode: Mode::Explore,
            sampling_seed: seeds::seed(config.run.seed, Domain::Sibling, group.0, index as u64),
            temperature: config.rl.temperature,
            min_policy_version: Some(oldest),
            attempts: 0,
        };
        (0..self.group_size).map(wanted).collect()
    }

    pub(super) fn finish(&mut self, group: GroupId, index: usize, trajectory: Arc<Trajectory>) {
        self.settle(group, index, Sibling::Finished(trajectory));
    }

    /// Closes the place of a sibling that could not be run.
    pub(super) fn drop_sibling(&mut self, group: GroupId, index: usize) {
        self.dropped += 1;
        self.settle(group, index, Sibling::Dropped);
    }

    fn settle(&mut self, group: GroupId, index: usize, outcome: Sibling) {
        let place = self.open.get_mut(&group).and_then(|siblings| siblings.get_mut(index));
        if let Some(place @ Sibling::Pending) = place {
            *place = outcome;
        }
    }

    /// Siblings given up so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes RL batch `index` out if all of its groups are closed. Dropped siblings are missing from
    /// their group; a group that lost all of them is left out.
    pub(super) fn take_batch(&mut self, index: u64) -> Option<Vec<Group>> {
        let (first, end) = (index * self.groups_per_batch, (index + 1) * self.groups_per_batch);
        let closed = |id: u64| {
            let siblings = self.open.get(&GroupId(id));
            siblings.is_some_and(|all| !all.iter().any(|one| matches!(one, Sibling::Pending)))
        };
        if !(first..end).all(closed) {
            return None;
        }
        let taken = (first..end).filter_map(|id| {
            let siblings = self.open.remove(&GroupId(id))?;
            let trajectories = siblings.into_iter().filter_map(|sibling| match sibling {
                Sibling::Finished(trajectory) => Some(trajectory),
                Sibling::Pending | Sibling::Dropped => None,
            });
            Some(Group { id: GroupId(id), trajectories: trajectories.collect() })
        });
        Some(taken.filter(|group| !group.trajectories.is_empty()).collect())
    }
}

/// The task of a group: its own seed, and a number of calls drawn from the configured mix.
fn task(config: &Config, group: GroupId) -> TaskRef {
    let mix = &config.tasks.calls;
    let mut rng = seeds::rng(config.run.seed, Domain::GroupTask, group.0, 0);
    let calls = match mix.len() {
        0 => 0,
        count => mix[rng.random_range(0..count)],
    };
    TaskRef {
        world: config.tasks.world.clone(),
        split: "train".into(),
        seed: EXPLORE_SEED_FIRST + group.0,
        calls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trajectory(id: u64) -> Arc<Trajectory> {
        Arc::new(Trajectory { episode_id: id, ..Default::default() })
    }

    fn groups() -> Groups {
        let mut groups = Groups::new(2, 2);
        for _ in 0..4 {
            groups.open(&Config::default(), PolicyVersion(0));
        }
        groups
    }

    #[test]
    fn batches_are_first_in_first_out_whatever_finishes_first() {
        let mut groups = groups();
        for group in [3, 2, 1] {
            for index in 0..2 {
                groups.finish(GroupId(group), index, trajectory(group * 2 + index as u64));
            }
        }
        assert!(groups.take_batch(0).is_none(), "group 0 is open");
        groups.finish(GroupId(0), 0, trajectory(0));
        assert!(groups.take_batch(0).is_none(), "group 0 has an open sibling");
        groups.finish(GroupId(0), 1, trajectory(1));
        let batch = groups.take_batch(0).expect("closed");
        assert_eq!(batch.iter().map(|group| group.id.0).collect::<Vec<_>>(), [0, 1]);
        assert!(groups.take_batch(1).is_some());
    }

    #[test]
    fn a_dropped_sibling_is_missing_and_an_empty_group_is_left_out() {
        let mut groups = groups();
        groups.drop_sibling(GroupId(0), 0);
        groups.drop_sibling(GroupId(0), 1);
        groups.finish(GroupId(1), 0, trajectory(9));
        groups.drop_sibling(GroupId(1), 1);
        let batch = groups.take_batch(0).expect("closed");
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].trajectories.len(), 1);
        assert_eq!(groups.dropped(), 3);
    }

    #[test]
    fn siblings_share_the_task_and_differ_in_their_seed() {
        let wanted = Groups::new(3, 1).open(&Config::default(), PolicyVersion(4));
        assert!(wanted.iter().all(|one| one.task == wanted[0].task));
        assert!(wanted.iter().all(|one| one.min_policy_version == Some(PolicyVersion(4))));
        assert!(wanted[0].task.seed >= EXPLORE_SEED_FIRST);
        assert_ne!(wanted[0].sampling_seed, wanted[1].sampling_seed);
        assert_ne!(wanted[1].sampling_seed, wanted[2].sampling_seed);
    }
}
