//! RL groups: sibling episodes of one task, first in, first out.
//!
//! An RL batch consists of the next P groups in order, P = `groups_per_batch`. Slow groups are waited
//! for and nothing finished is left out for being late, so the length distribution trained on is the
//! one that was sampled. Promise G1: a batch leaves here only when all of its groups are closed.
//!
//! A group is *flat* when all of its siblings got the same reward: it has no advantage. With
//! `replaced_max` = 0 flat groups are trained as they are. Otherwise up to that many of a batch are
//! left out, counted, and the groups behind them move up. Nobody moves back, which is what S1 asks.
//!
//! Proof. A group that is opened now comes after `c` groups chosen for the batch at hand, which has
//! replaced `r` already, and after `o` open ones, `f` of which are closed and flat and will be
//! whatever happens. Say it gets into the batch `b` after the one at hand. Each of the batches before
//! `b` takes P groups and `b` fewer than P before it, so `b = (c + o - x) / P`, rounded down, where
//! `x` of the open ones are replaced. If every one of the `f` is, `x >= f`. If one is not, its batch
//! had replaced `replaced_max` by then, `replaced_max - r` at least of the open ones. So
//! `x >= min(f, replaced_max - r)`, and [`Groups::next_batch`] is the last batch it can be in.

use std::{collections::VecDeque, sync::Arc};

use ballast_proto::{
    GroupId, PolicyVersion,
    v1::{Mode, TaskRef, TrajectorySummary},
};
use ballast_runtime::config::{Config, Rl};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::{
    batches::Group,
    dispatch::{Purpose, Wanted},
    seeds::{self, Domain},
    statistics,
};

/// First task seed of exploration: keeps it apart from the demonstrations, which start at 0.
const EXPLORE_SEED_FIRST: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Sibling {
    Pending,
    Finished(Arc<TrajectorySummary>),
    Dropped,
}

/// Siblings of one task that no batch has been chosen for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    siblings: Vec<Sibling>,
    pending: usize,
}

impl Open {
    fn is_closed(&self) -> bool {
        self.pending == 0
    }

    fn finished(&self) -> impl Iterator<Item = &Arc<TrajectorySummary>> {
        self.siblings.iter().filter_map(|sibling| match sibling {
            Sibling::Finished(trajectory) => Some(trajectory),
            Sibling::Pending | Sibling::Dropped => None,
        })
    }

    /// Whether it is closed and teaches nothing: all siblings got the same reward.
    fn is_flat(&self) -> bool {
        self.is_closed() && statistics::is_flat(self.finished())
    }
}

/// What an RL batch is made of.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) groups: Vec<Group>,
    /// Closed groups left out because their siblings all got the same reward.
    pub(super) replaced: Vec<Group>,
}

/// The groups that are not trained yet, in order. Bounded by admission.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Groups {
    group_size: usize,
    groups_per_batch: usize,
    /// Flat groups of a batch that later ones take the place of, at most.
    replaced_max: usize,
    /// The batch at hand, as far as the groups in front are closed.
    at_hand: Taken,
    /// How many were chosen for it; one that lost all of its siblings is not in it, but counts.
    chosen: usize,
    /// All groups behind, in order; the first one is not closed, unless the batch at hand is full.
    open: VecDeque<Open>,
    /// Id of `open[0]`.
    first: GroupId,
    /// How many of `open` are flat.
    flat: usize,
    /// RL batches taken.
    taken: u64,
    /// Siblings given up after too many attempts, in the whole run.
    dropped: u64,
}

impl Groups {
    pub(super) fn new(rl: &Rl) -> Self {
        Self {
            group_size: rl.group_size as usize,
            groups_per_batch: (rl.groups_per_batch as usize).max(1),
            replaced_max: rl.replaced_max as usize,
            at_hand: Taken::default(),
            chosen: 0,
            open: VecDeque::new(),
            first: GroupId(0),
            flat: 0,
            taken: 0,
            dropped: 0,
        }
    }

    /// The last RL batch that the group opened next can belong to.
    pub(super) fn next_batch(&self) -> u64 {
        let replaced = self.flat.min(self.replaced_max - self.at_hand.replaced.len());
        let ahead = self.chosen + self.open.len() - replaced;
        self.taken + (ahead / self.groups_per_batch) as u64
    }

    /// Opens the next group. Returns its episodes, to be sampled under `oldest` or newer.
    pub(super) fn open(&mut self, config: &Config, oldest: PolicyVersion) -> Vec<Wanted> {
        let group = GroupId(self.first.0 + self.open.len() as u64);
        let siblings = vec![Sibling::Pending; self.group_size];
        self.open.push_back(Open { siblings, pending: self.group_size });
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

    pub(super) fn finish(
        &mut self,
        group: GroupId,
        index: usize,
        trajectory: Arc<TrajectorySummary>,
    ) {
        self.settle(group, index, Sibling::Finished(trajectory));
    }

    /// Closes the place of a sibling that could not be run.
    pub(super) fn drop_sibling(&mut self, group: GroupId, index: usize) {
        self.dropped += 1;
        self.settle(group, index, Sibling::Dropped);
    }

    fn settle(&mut self, group: GroupId, index: usize, outcome: Sibling) {
        let place = group.0.checked_sub(self.first.0).and_then(|place| usize::try_from(place).ok());
        let Some(open) = place.and_then(|place| self.open.get_mut(place)) else { return };
        if let Some(place @ Sibling::Pending) = open.siblings.get_mut(index) {
            *place = outcome;
            open.pending -= 1;
            self.flat += usize::from(open.is_flat());
            self.choose();
        }
    }

    /// Chooses closed groups for the batch at hand, in order, until it is full.
    fn choose(&mut self) {
        while self.chosen < self.groups_per_batch && self.open.front().is_some_and(Open::is_closed)
        {
            let Some(open) = self.open.pop_front() else { return };
            let (id, is_flat) = (self.first, open.is_flat());
            self.first = id.next();
            self.flat -= usize::from(is_flat);
            let is_replaced = is_flat && self.at_hand.replaced.len() < self.replaced_max;
            self.chosen += usize::from(!is_replaced);
            let trajectories: Vec<_> = open.finished().cloned().collect();
            let place =
                if is_replaced { &mut self.at_hand.replaced } else { &mut self.at_hand.groups };
            if !trajectories.is_empty() {
                place.push(Group { id, trajectories });
            }
        }
    }

    /// Siblings given up so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes the next RL batch out once all of its groups are closed. Dropped siblings are missing
    /// from their group; a group that lost all of them is left out.
    pub(super) fn take_batch(&mut self) -> Option<Taken> {
        if self.chosen < self.groups_per_batch {
            return None;
        }
        let taken = std::mem::take(&mut self.at_hand);
        self.chosen = 0;
        self.taken += 1;
        self.choose();
        Some(taken)
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

    fn scored(id: u64, reward: f32) -> Arc<TrajectorySummary> {
        Arc::new(TrajectorySummary {
            episode_id: id,
            reward: Some(reward),
            ..TrajectorySummary::default()
        })
    }

    fn groups(open: u64, replaced_max: u32) -> Groups {
        let rl = Rl { group_size: 2, groups_per_batch: 2, replaced_max, ..Rl::default() };
        let mut groups = Groups::new(&rl);
        for _ in 0..open {
            groups.open(&Config::default(), PolicyVersion(0));
        }
        groups
    }

    /// Closes a group whose siblings got these rewards.
    fn close(groups: &mut Groups, group: u64, rewards: [f32; 2]) {
        for (index, reward) in rewards.into_iter().enumerate() {
            groups.finish(GroupId(group), index, scored(group * 2 + index as u64, reward));
        }
    }

    fn ids(groups: &[Group]) -> Vec<u64> {
        groups.iter().map(|group| group.id.0).collect()
    }

    #[test]
    fn every_place_of_a_group_is_settled_once() {
        let finished = || Sibling::Finished(scored(0, 0.5));
        let events: [fn(&mut Groups); 4] = [
            |groups| groups.finish(GroupId(1), 0, scored(0, 0.5)),
            |groups| groups.drop_sibling(GroupId(1), 0),
            |groups| groups.finish(GroupId(1), 9, scored(0, 0.5)),
            |groups| groups.finish(GroupId(9), 0, scored(0, 0.5)),
        ];
        let pending = || Sibling::Pending;
        let table = [
            (pending(), [finished(), Sibling::Dropped, pending(), pending()]),
            (finished(), [finished(), finished(), finished(), finished()]),
            (Sibling::Dropped, std::array::from_fn(|_| Sibling::Dropped)),
        ];
        for (state, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                let mut groups = groups(2, 0);
                if state != Sibling::Pending {
                    groups.settle(GroupId(1), 0, state.clone());
                }
                event(&mut groups);
                assert_eq!(groups.open[1].siblings[0], expected, "{state:?}");
                let settled = usize::from(expected != Sibling::Pending);
                assert_eq!(groups.open[1].pending, 2 - settled);
            }
        }
        let mut taken = groups(2, 0);
        close(&mut taken, 0, [0.0, 1.0]);
        close(&mut taken, 1, [0.0, 1.0]);
        taken.take_batch().expect("closed");
        taken.finish(GroupId(0), 0, scored(0, 0.5));
        taken.drop_sibling(GroupId(1), 0);
        assert_eq!(taken.open.len(), 0, "a group that is trained stays what it was");
    }

    #[test]
    fn batches_are_first_in_first_out_whatever_finishes_first() {
        let mut groups = groups(4, 0);
        for group in [3, 2, 1] {
            close(&mut groups, group, [0.0, 1.0]);
        }
        assert!(groups.take_batch().is_none(), "group 0 is open");
        groups.finish(GroupId(0), 0, scored(0, 0.0));
        assert!(groups.take_batch().is_none(), "group 0 has an open sibling");
        groups.finish(GroupId(0), 1, scored(1, 1.0));
        assert_eq!(ids(&groups.take_batch().expect("closed").groups), [0, 1]);
        assert_eq!(ids(&groups.take_batch().expect("closed").groups), [2, 3]);
    }

    #[test]
    fn a_dropped_sibling_is_missing_and_an_empty_group_is_left_out() {
        let mut groups = groups(4, 0);
        groups.drop_sibling(GroupId(0), 0);
        groups.drop_sibling(GroupId(0), 1);
        groups.finish(GroupId(1), 0, scored(9, 1.0));
        groups.drop_sibling(GroupId(1), 1);
        let taken = groups.take_batch().expect("closed");
        assert_eq!(ids(&taken.groups), [1]);
        assert_eq!(taken.groups[0].trajectories.len(), 1);
        assert_eq!(groups.dropped(), 3);
    }

    #[test]
    fn flat_groups_are_trained_unless_they_may_be_replaced() {
        let mut kept = groups(2, 0);
        close(&mut kept, 0, [1.0, 1.0]);
        close(&mut kept, 1, [0.0, 1.0]);
        let taken = kept.take_batch().expect("closed");
        assert_eq!((ids(&taken.groups), taken.replaced.len()), (vec![0, 1], 0));

        let mut replaced = groups(2, 1);
        assert_eq!(replaced.next_batch(), 1);
        close(&mut replaced, 0, [1.0, 1.0]);
        close(&mut replaced, 1, [0.0, 1.0]);
        assert!(replaced.take_batch().is_none(), "one group short");
        assert_eq!(replaced.next_batch(), 0, "so the next group opened is for this batch");
        replaced.open(&Config::default(), PolicyVersion(0));
        close(&mut replaced, 2, [0.0, 0.0]);
        let taken = replaced.take_batch().expect("one is replaced, the second flat one is kept");
        assert_eq!((ids(&taken.groups), ids(&taken.replaced)), (vec![1, 2], vec![0]));
        assert_eq!(replaced.next_batch(), 1);
    }

    #[test]
    fn siblings_share_the_task_and_differ_in_their_seed() {
        let rl = Rl { group_size: 3, groups_per_batch: 1, ..Rl::default() };
        let wanted = Groups::new(&rl).open(&Config::default(), PolicyVersion(4));
        assert!(wanted.iter().all(|one| one.task == wanted[0].task));
        assert!(wanted.iter().all(|one| one.min_policy_version == Some(PolicyVersion(4))));
        assert!(wanted[0].task.seed >= EXPLORE_SEED_FIRST);
        assert_ne!(wanted[0].sampling_seed, wanted[1].sampling_seed);
        assert_ne!(wanted[1].sampling_seed, wanted[2].sampling_seed);
    }

    proptest::proptest! {
        /// S1 rests on this: the batch a group was opened for is never earlier than the one it is in.
        #[test]
        fn no_group_moves_back(
            flat in proptest::collection::vec(proptest::bool::ANY, 40),
            order in proptest::collection::vec(0usize..6, 200),
            replaced_max in 0u32..4,
        ) {
            let mut groups = groups(0, replaced_max);
            let (mut opened_for, mut open, mut batches) = (Vec::new(), Vec::new(), 0u64);
            for pick in order {
                if opened_for.len() < flat.len() && groups.next_batch() <= batches + 1 {
                    open.push(opened_for.len());
                    opened_for.push(groups.next_batch());
                    groups.open(&Config::default(), PolicyVersion(0));
                } else if !open.is_empty() {
                    let group = open.remove(pick % open.len());
                    let rewards = if flat[group] { [1.0, 1.0] } else { [0.0, 1.0] };
                    close(&mut groups, group as u64, rewards);
                }
                while let Some(taken) = groups.take_batch() {
                    for group in taken.groups.iter().chain(&taken.replaced) {
                        proptest::prop_assert!(opened_for[group.id.0 as usize] >= batches);
                    }
                    batches += 1;
                }
            }
        }
    }
}
