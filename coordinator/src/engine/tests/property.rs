//! Whatever happens in whatever order, every promise holds and the run goes on.

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{
        CheckpointRequest, DrainActorRequest, EvaluateRequest, PauseRequest, ResumeRequest,
        admin_change::Change,
    },
};
use ballast_runtime::config::{Pacing, ScheduleKind, SftSource};
use proptest::prelude::*;

use super::{
    peers::{hash, set, summary},
    promises::{self, Fates},
    world::{World, config},
};
use crate::engine::{Event, SessionId};

/// Something that happens to a run. Numbers choose among what is there.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Join {
        slots: u32,
    },
    /// The stream breaks.
    Away(usize),
    Back(usize),
    /// The process ends and starts anew.
    Reborn(usize),
    /// The process ends and its lease too.
    Lost(usize),
    /// The lease of an actor ends, though it is here.
    Expire(usize),
    Finish {
        actor: usize,
        episode: usize,
        lag: u64,
    },
    GiveBack {
        actor: usize,
        episode: usize,
    },
    /// An acknowledged or unknown trajectory is reported again.
    Duplicate {
        actor: usize,
        episode: u64,
    },
    /// A trajectory breaks M1, or is not the episode assigned.
    Invalid {
        actor: usize,
        episode: usize,
        at_the_door: bool,
    },
    /// A trajectory of weights that nobody published.
    Lie {
        actor: usize,
        episode: usize,
        ahead: u64,
    },
    /// Claims of what it never had, of what is finished, of what others run.
    Claim {
        actor: usize,
        episodes: Vec<u64>,
    },
    Flood(usize),
    /// A message over a stream that has ended.
    Late(u64),
    Lag(usize),
    Snapshot,
    Crash {
        lost: usize,
        from_snapshot: bool,
    },
    Learn,
    CrashLearner,
    Step,
    Pause,
    Resume,
    Change(usize),
    DrainActor(usize),
    Checkpoint,
    Evaluate,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let any = any::<usize>;
    prop_oneof![
        3 => (1u32..6).prop_map(|slots| Op::Join { slots }),
        2 => any().prop_map(Op::Away),
        3 => any().prop_map(Op::Back),
        1 => any().prop_map(Op::Reborn),
        1 => any().prop_map(Op::Lost),
        1 => any().prop_map(Op::Expire),
        40 => (any(), any(), 0u64..4)
            .prop_map(|(actor, episode, lag)| Op::Finish { actor, episode, lag }),
        1 => (any(), any()).prop_map(|(actor, episode)| Op::GiveBack { actor, episode }),
        1 => (any(), 0u64..99).prop_map(|(actor, episode)| Op::Duplicate { actor, episode }),
        1 => (any(), any(), prop::bool::ANY)
            .prop_map(|(actor, episode, at_the_door)| Op::Invalid { actor, episode, at_the_door }),
        1 => (any(), any(), 0u64..9)
            .prop_map(|(actor, episode, ahead)| Op::Lie { actor, episode, ahead }),
        1 => (any(), prop::collection::vec(0u64..99, 0..5))
            .prop_map(|(actor, episodes)| Op::Claim { actor, episodes }),
        1 => any().prop_map(Op::Flood),
        1 => (0u64..99).prop_map(Op::Late),
        3 => (0usize..12).prop_map(Op::Lag),
        1 => Just(Op::Snapshot),
        3 => (0usize..12, prop::bool::ANY)
            .prop_map(|(lost, from_snapshot)| Op::Crash { lost, from_snapshot }),
        4 => Just(Op::Learn),
        1 => Just(Op::CrashLearner),
        20 => Just(Op::Step),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        1 => any().prop_map(Op::Change),
        1 => any().prop_map(Op::DrainActor),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Evaluate),
    ]
}

/// What a person may do to a schedule.
const CHANGES: [&[&str]; 8] = [
    &["kind=adaptive", "adaptive.share_max=0.9"],
    &["kind=interleave", "rl_steps=1", "sft_steps=3"],
    &["kind=sft_then_rl"],
    &["kind=sft_only", "sft.learning_rate=0.5"],
    &["kind=phases"],
    &["steps=3"],
    &["steps=12", "rl.temperature=0.5"],
    &["steps=-1"],
];

pub(super) fn apply(world: &mut World, op: Op) {
    if world.exited {
        return;
    }
    let names: Vec<String> = world.actors.keys().cloned().collect();
    let pick = |index: usize| names.get(index % names.len().max(1)).map(String::as_str);
    match op {
        Op::Join { slots } => {
            let name = format!("actor-{}", world.id());
            world.join(&name, 1, slots);
        }
        Op::Lag(events) => world.lag = events,
        Op::Snapshot => world.take_snapshot(),
        Op::Crash { lost, from_snapshot } => world.crash(lost, from_snapshot),
        Op::Late(session) => {
            let session = SessionId(session);
            if !world.actors.values().any(|actor| actor.session == Some(session)) {
                world.handle(Event::SlotsFreed { session, slots: 3 });
            }
        }
        Op::Learn => match &world.learner {
            None => world.learn(world.checkpoint),
            Some(learner) if learner.stream.is_none() => world.reconnect_learner(),
            Some(_) => {}
        },
        Op::CrashLearner => world.crash_learner(),
        Op::Step => drop(world.step()),
        Op::Pause => world.ask(Change::Pause(PauseRequest {})),
        Op::Resume => world.ask(Change::Resume(ResumeRequest {})),
        Op::Change(which) => world.ask(set(CHANGES[which % CHANGES.len()])),
        Op::Checkpoint => world.ask(Change::Checkpoint(CheckpointRequest::default())),
        Op::Evaluate => world.ask(Change::Evaluate(EvaluateRequest::default())),
        Op::DrainActor(actor) => {
            let actor_id = pick(actor).unwrap_or("nobody").to_owned();
            let reason = String::new();
            world.ask(Change::DrainActor(DrainActorRequest { actor_id, reason }));
        }
        Op::Away(actor)
        | Op::Back(actor)
        | Op::Reborn(actor)
        | Op::Lost(actor)
        | Op::Expire(actor)
        | Op::Flood(actor)
        | Op::Finish { actor, .. }
        | Op::GiveBack { actor, .. }
        | Op::Duplicate { actor, .. }
        | Op::Invalid { actor, .. }
        | Op::Lie { actor, .. }
        | Op::Claim { actor, .. } => {
            if let Some(name) = pick(actor) {
                apply_to_actor(world, name, op);
            }
        }
    }
}

fn apply_to_actor(world: &mut World, name: &str, op: Op) {
    let actor = &world.actors[name];
    let (generation, slots, session) = (actor.generation, actor.slots, actor.session);
    match op {
        Op::Away(_) => world.disconnect(name),
        Op::Back(_) if session.is_none() => world.reconnect(name),
        Op::Reborn(_) => {
            world.actors.remove(name);
            world.join(name, generation + 1, slots);
        }
        Op::Lost(_) => world.lose(name),
        Op::Expire(_) => {
            let (actor, generation) = (ActorId(name.into()), Generation(generation));
            world.handle(Event::LeaseExpired { actor, generation });
        }
        Op::Claim { episodes, .. } => {
            // Whatever it says it runs, it then has: nobody may wait for it.
            let assignments = world.assigned.iter();
            let claimed = assignments.filter(|one| episodes.contains(&one.episode_id)).cloned();
            let claimed: Vec<_> = claimed.collect();
            world.disconnect(name);
            let has = |id| world.actors[name].running.iter().any(|one| one.episode_id == id);
            let claimed: Vec<_> = claimed.into_iter().filter(|one| !has(one.episode_id)).collect();
            world.actor(name).running.extend(claimed);
            world.reconnect(name);
        }
        Op::Finish { episode, lag, .. } => {
            if let Some(index) = index(world, name, episode) {
                world.finish(name, index, lag);
            }
        }
        Op::GiveBack { episode, .. } => {
            if let Some(index) = index(world, name, episode) {
                world.give_back(name, index);
            }
        }
        _ => apply_bad_input(world, name, op),
    }
}

/// What only a broken or lying actor sends; it needs a stream for it.
fn apply_bad_input(world: &mut World, name: &str, op: Op) {
    let Some(session) = world.actors[name].session else { return };
    match op {
        Op::Flood(_) => {
            let actor = world.actor(name);
            actor.offered = actor.slots;
            world.handle(Event::SlotsFreed { session, slots: u32::MAX });
        }
        Op::Duplicate { episode, .. } => {
            let any = world.assigned.iter().find(|one| one.episode_id == episode).cloned();
            let is_running = |actor: &super::world::Actor| {
                actor.running.iter().any(|one| one.episode_id == episode)
                    || actor.unacknowledged.iter().any(|one| one.episode_id == episode)
            };
            if let Some(assignment) = any.filter(|_| !world.actors.values().any(is_running)) {
                world.report(name, summary(&assignment, 0, true));
            }
        }
        Op::Invalid { episode, at_the_door, .. } => {
            let Some(index) = index(world, name, episode) else { return };
            let assignment = world.take(name, index);
            if at_the_door {
                let episode = EpisodeId(assignment.episode_id);
                let fault = "its spans leave a gap".into();
                world.handle(Event::TrajectoryInvalid { session, episode, fault });
            } else {
                let mut other = summary(&assignment, world.published, true);
                other.sampling_seed ^= 1;
                world.report(name, other);
            }
            world.offer(name);
        }
        Op::Lie { episode, ahead, .. } => {
            let Some(index) = index(world, name, episode) else { return };
            let assignment = world.take(name, index);
            let version = world.published + ahead;
            let mut lie = summary(&assignment, version, true);
            for sampled in &mut lie.sampled_versions {
                sampled.manifest_hash = hash(version + 1);
            }
            world.report(name, lie);
            world.offer(name);
        }
        _ => {}
    }
}

fn index(world: &World, name: &str, episode: usize) -> Option<usize> {
    let running = world.actors[name].running.len();
    (running > 0).then(|| episode % running)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..Default::default()
    })]

    /// J2 holds after every event (the engine asserts it); once faults heal the run ends with every
    /// promise kept.
    #[test]
    fn promises_hold_under_any_sequence_of_events(
        ops in prop::collection::vec(op(), 0..400),
        staleness_max in 0u64..4,
        pacing in prop::sample::select(&[Pacing::Async, Pacing::OneStep, Pacing::Serial][..]),
        replaced_max in 0u32..3,
        kind in prop::sample::select(&[
            ScheduleKind::Interleave,
            ScheduleKind::SftThenRl,
            ScheduleKind::RlOnly,
            ScheduleKind::Adaptive,
            ScheduleKind::Phases,
            ScheduleKind::Joint,
        ][..]),
        source in prop::sample::select(&[SftSource::Demonstrations, SftSource::Failed][..]),
        window in 1u64..4,
    ) {
        let mut config = config();
        config.schedule.kind = kind;
        config.schedule.steps = 9;
        config.schedule.phases = super::schedules::relift(1, 2);
        config.schedule.repeat = true;
        config.rl.staleness_max = staleness_max;
        config.rl.pacing = pacing;
        config.rl.replaced_max = replaced_max;
        config.sft.source = source;
        config.sft.failed.window = window;
        let mut world = World::new(config);
        for op in ops {
            apply(&mut world, op);
        }
        world.play_to_the_end();
        promises::check(&world);
        prop_assert!(!world.engine.unused_by_reason.contains_key("stale"), "S1 costs waiting alone");
        let fates = Fates::of(&world);
        let result = world.result.as_ref().expect("written");
        let episodes = &result.episodes;
        prop_assert_eq!(result.outcome, "finished");
        prop_assert_eq!(episodes.dispatched, fates.dispatched.len() as u64);
        prop_assert_eq!(episodes.finished, fates.finished.len() as u64);
        prop_assert_eq!(episodes.in_flight, fates.in_flight() as u64);
    }
}
