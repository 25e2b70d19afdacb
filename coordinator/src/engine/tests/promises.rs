//! The promises, proved from the journal and from what left the process, without asking the engine.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::v1::{
    BatchPlanned, StepKind, TrajectorySummary, effect::Effect, journal_entry::Event,
};

use super::world::World;

/// What a journal says of every episode.
#[derive(Default)]
pub(super) struct Fates<'a> {
    pub(super) dispatched: BTreeSet<u64>,
    pub(super) finished: BTreeMap<u64, &'a TrajectorySummary>,
    pub(super) cancelled: BTreeSet<u64>,
    pub(super) unused: BTreeSet<u64>,
    pub(super) batches: Vec<&'a BatchPlanned>,
}

impl<'a> Fates<'a> {
    /// Reads a journal; J2 on the way: each episode begins once and ends once at most.
    pub(super) fn of(world: &'a World) -> Self {
        let mut fates = Self::default();
        for entry in &world.journal {
            for effect in entry.effects.iter().filter_map(|one| one.effect.as_ref()) {
                fates.add(entry.event.as_ref(), effect);
            }
        }
        for ended in fates.finished.keys().chain(&fates.cancelled) {
            assert!(fates.dispatched.contains(ended), "J2: e{ended} ended and never began");
        }
        let both = |ended: &&u64| fates.cancelled.contains(ended);
        assert_eq!(fates.finished.keys().find(both), None, "J2: it ended in both ways");
        fates
    }

    fn add(&mut self, event: Option<&'a Event>, effect: &'a Effect) {
        match effect {
            Effect::Dispatched(one) => {
                assert_eq!(one.episode_id, self.dispatched.len() as u64, "J2: ids are consecutive");
                self.dispatched.insert(one.episode_id);
            }
            Effect::Finished(one) => {
                let Some(Event::TrajectoryReported(trajectory)) = event else {
                    panic!("J1: e{} is finished by {event:?}", one.episode_id);
                };
                assert_eq!(trajectory.episode_id, one.episode_id);
                assert!(self.finished.insert(one.episode_id, trajectory).is_none(), "J2: twice");
            }
            Effect::Cancelled(one) => assert!(self.cancelled.insert(one.episode_id), "J2: twice"),
            Effect::Unused(one) => assert!(self.unused.insert(one.episode_id)),
            Effect::Batch(batch) => {
                assert_eq!(batch.index, self.batches.len() as u64);
                self.batches.push(batch);
            }
            _ => {}
        }
    }

    /// Episodes that are neither finished nor cancelled.
    pub(super) fn in_flight(&self) -> usize {
        self.dispatched.len() - self.finished.len() - self.cancelled.len()
    }
}

/// J1, J2, J3, S1, G1 and the order of groups. At the end of a run nothing is in flight.
pub(super) fn check(world: &World) {
    let fates = Fates::of(world);
    for episode in &world.acknowledged {
        assert!(fates.finished.contains_key(episode), "J1: e{episode} was acknowledged and lost");
    }
    check_served(world, &fates);
    check_groups(world, &fates);
}

/// J4: what the learner gets is what the journal says, every time.
fn check_served(world: &World, fates: &Fates<'_>) {
    for batch in &world.served {
        let is_same = |record: &&&BatchPlanned| **record == &batch.to_record(record.index);
        assert!(fates.batches.iter().any(|record| is_same(&record)), "J4: {batch:?}");
    }
}

fn check_groups(world: &World, fates: &Fates<'_>) {
    // A sibling that came to nothing as often as is allowed is missing from its group, and a group
    // that lost all of them is left out.
    let mut given_up = world.engine.groups.dropped();
    let staleness_max = world.engine.staleness_max();
    let group_size = world.engine.config().rl.group_size as usize;
    let (mut next_group, mut trained) = (0, BTreeSet::new());
    let explores = |batch: &&&BatchPlanned| matches!(batch.kind(), StepKind::Rl | StepKind::Joint);
    for batch in fates.batches.iter().filter(explores) {
        let mut groups: Vec<_> = batch.groups.iter().chain(&batch.replaced).collect();
        groups.sort_by_key(|group| group.group_id);
        for group in groups {
            assert!(group.group_id >= next_group, "groups are first in, first out");
            let left_out = (group.group_id - next_group) as usize * group_size;
            let missing = (left_out + group_size - group.episodes.len()) as u64;
            assert!(missing <= given_up, "G1: the group is closed");
            given_up -= missing;
            next_group = group.group_id + 1;
            for episode in &group.episodes {
                assert!(trained.insert(*episode), "J3: e{episode} is trained twice");
                assert!(!fates.unused.contains(episode), "G1: e{episode} cannot be used");
                let trajectory = fates.finished[episode];
                assert_eq!(trajectory.group_id, Some(group.group_id));
            }
        }
        for episode in batch.groups.iter().flat_map(|group| &group.episodes) {
            let oldest = fates.finished[episode].oldest_version.expect("sampled");
            let stale = batch.step - 1 - oldest;
            assert!(stale <= staleness_max, "S1: step {}, version {oldest}", batch.step);
        }
    }
}
