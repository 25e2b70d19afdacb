//! B1: every queue stays within its bound.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::v1::{BatchPlanned, EpisodeDispatched};

use super::Checked;
use crate::scenario::Scenario;

/// How much there is of something, and how much there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) what: &'static str,
    pub(crate) size: usize,
    pub(crate) bound: usize,
}

/// What is in flight.
#[derive(Debug)]
pub(super) struct Bounds {
    slots: usize,
    groups_max: usize,
    /// Episodes in flight, by incarnation of an actor.
    held: BTreeMap<(String, u64), BTreeSet<u64>>,
    holders: BTreeMap<u64, (String, u64)>,
    /// Groups with an episode dispatched that are in no batch.
    open: BTreeSet<u64>,
    closed: BTreeSet<u64>,
}

impl Bounds {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let rl = &scenario.config.rl;
        let groups = (scenario.staleness_bound() + 1) * u64::from(rl.groups_per_batch)
            + u64::from(rl.replaced_max);
        Self {
            slots: scenario.slots as usize,
            groups_max: groups as usize,
            held: BTreeMap::new(),
            holders: BTreeMap::new(),
            open: BTreeSet::new(),
            closed: BTreeSet::new(),
        }
    }

    pub(super) fn on_dispatched(&mut self, one: &EpisodeDispatched) -> Checked {
        let holder = (one.actor_id.clone(), one.generation);
        let held = self.held.entry(holder.clone()).or_default();
        held.insert(one.episode_id);
        let (what, size) = ("episodes in flight on an actor", held.len());
        self.holders.insert(one.episode_id, holder);
        self.open.extend(one.group_id.filter(|group| !self.closed.contains(group)));
        within(Sizes { what, size, bound: self.slots })?;
        let (what, size) = ("open groups", self.open.len());
        within(Sizes { what, size, bound: self.groups_max })
    }

    pub(super) fn on_ended(&mut self, episode: u64) {
        if let Some(held) = self.holders.remove(&episode).and_then(|one| self.held.get_mut(&one)) {
            held.remove(&episode);
        }
    }

    pub(super) fn on_planned(&mut self, batch: &BatchPlanned) {
        for group in batch.groups.iter().chain(&batch.replaced) {
            self.open.remove(&group.group_id);
            self.closed.insert(group.group_id);
        }
    }
}

/// Episodes that run on an actor.
pub(super) fn slots(sizes: Sizes) -> Checked {
    within(sizes)
}

pub(super) fn within(Sizes { what, size, bound }: Sizes) -> Checked {
    if size > bound { Err(format!("{size} {what}; the bound is {bound}")) } else { Ok(()) }
}
