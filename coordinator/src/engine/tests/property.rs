use std::collections::BTreeMap;

use ballast_proto::v1::{StepKind, TrainBatch};
use ballast_runtime::config::ScheduleKind;
use proptest::prelude::*;

use super::world::{World, config};
use crate::engine::{Event, SessionId, statistics};

/// Something that happens to a run. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Op {
    Join { slots: u32 },
    Leave(usize),
    Silence,
    Finish { actor: usize, episode: usize, lag: u64 },
    GiveBack { actor: usize, episode: usize },
    Sync,
    Learn,
    CrashLearner,
    Step,
    Pause,
    Resume,
    Change(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (1u32..6).prop_map(|slots| Op::Join { slots }),
        1 => any::<usize>().prop_map(Op::Leave),
        1 => Just(Op::Silence),
        20 => (any::<usize>(), any::<usize>(), 0u64..4)
            .prop_map(|(actor, episode, lag)| Op::Finish { actor, episode, lag }),
        1 => (any::<usize>(), any::<usize>())
            .prop_map(|(actor, episode)| Op::GiveBack { actor, episode }),
        10 => Just(Op::Sync),
        2 => Just(Op::Learn),
        1 => Just(Op::CrashLearner),
        8 => Just(Op::Step),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        1 => any::<usize>().prop_map(Op::Change),
    ]
}

/// What a person may do to a schedule.
const CHANGES: [&[&str]; 8] = [
    &["kind=adaptive", "adaptive.share_max=0.9"],
    &["kind=interleave", "rl_steps=1", "sft_steps=3"],
    &["kind=sft_then_rl"],
    &["kind=sft_only"],
    &["kind=phases"],
    &["steps=3"],
    &["steps=12"],
    &["steps=-1"],
];

fn apply(world: &mut World, op: Op) {
    let sessions: Vec<SessionId> = world.actors.keys().copied().collect();
    let pick = |index: usize| sessions.get(index % sessions.len().max(1)).copied();
    match op {
        Op::Join { slots } => {
            let name = format!("actor-{}", world.id());
            world.join(&name, 1, slots);
        }
        Op::Leave(actor) => {
            if let Some(session) = pick(actor) {
                world.leave(session);
            }
        }
        Op::Silence => {
            if let Some(deadline) = world.engine.next_deadline() {
                world.now = world.now.max(deadline);
                world.handle(Event::DeadlineReached);
            }
        }
        Op::Finish { actor, episode, lag } => {
            let Some(session) = pick(actor) else { return };
            let running = world.actors[&session].running.len();
            if running > 0 {
                world.finish(session, episode % running, lag);
            }
        }
        Op::GiveBack { actor, episode } => {
            let Some(session) = pick(actor) else { return };
            let running = world.actors[&session].running.len();
            if running > 0 {
                let episode = world.take(session, episode % running).episode_id;
                let episode = ballast_proto::EpisodeId(episode);
                world.handle(Event::EpisodeReturned { session, episode, reason: "x".into() });
                world.handle(Event::SlotsFreed { session, slots: 1 });
            }
        }
        Op::Sync => world.sync(),
        Op::Learn if world.learner.is_none() => world.learn(world.checkpoint),
        Op::Learn => {}
        Op::CrashLearner => world.crash_learner(),
        Op::Step => {
            world.step();
        }
        Op::Pause => world.handle(Event::PauseRequested),
        Op::Resume => world.handle(Event::ResumeRequested),
        Op::Change(which) => drop(world.change(CHANGES[which % CHANGES.len()])),
    }
}

/// S1, G1 and the order of groups, on what the learner was really sent.
pub(super) fn check_rl_batches(world: &World, staleness_max: u64) {
    let mut batches: BTreeMap<u64, &TrainBatch> = BTreeMap::new();
    for batch in &world.served {
        if matches!(batch.kind(), StepKind::Rl | StepKind::Sft) {
            let first = batches.entry(batch.step).or_insert(batch);
            assert_eq!(*first, batch, "J4: a step served again is the same");
        }
    }
    // A sibling that was lost with its actor as often as is allowed is missing from its group, and a
    // group that lost both is left out.
    let mut given_up = world.engine.groups.dropped();
    assert!(!world.engine.unused_by_reason.contains_key("stale"), "S1 costs waiting, no episode");
    let mut next_group = 0;
    let mut trained = std::collections::BTreeSet::new();
    for (step, batch) in batches {
        for group in &batch.groups {
            assert!(group.group_id >= next_group, "groups are first in, first out");
            let left_out = group.group_id - next_group;
            next_group = group.group_id + 1;
            let missing = 2 * left_out + 2 - group.trajectories.len() as u64;
            assert!(missing <= given_up, "G1: the group is closed");
            given_up -= missing;
            for trajectory in &group.trajectories {
                assert!(trained.insert(trajectory.episode_id), "J3: trained twice");
                let oldest = statistics::oldest_version(trajectory).expect("sampled");
                assert!(step - 1 - oldest <= staleness_max, "S1: step {step}, version {oldest}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Whatever happens, J2 holds after every event (the engine asserts it), and once faults heal
    /// the run ends with every promise kept.
    #[test]
    fn promises_hold_under_any_sequence_of_events(
        ops in prop::collection::vec(op(), 0..300),
        staleness_max in 0u64..4,
        kind in prop::sample::select(&[
            ScheduleKind::Interleave,
            ScheduleKind::SftThenRl,
            ScheduleKind::RlOnly,
            ScheduleKind::Adaptive,
            ScheduleKind::Phases,
        ][..]),
    ) {
        let mut config = config();
        config.schedule.kind = kind;
        config.schedule.steps = 9;
        config.schedule.phases = super::schedules::relift(1, 2);
        config.schedule.repeat = true;
        config.rl.staleness_max = staleness_max;
        let mut world = World::new(config);
        for op in ops {
            apply(&mut world, op);
        }
        world.play_to_the_end();
        check_rl_batches(&world, staleness_max);
        let result = world.result.expect("written");
        let episodes = result.episodes;
        prop_assert_eq!(result.outcome, "finished");
        prop_assert_eq!(episodes.dispatched, episodes.finished + episodes.cancelled);
    }
}
