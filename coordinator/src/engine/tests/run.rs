//! A run from its beginning to its end.

use std::time::Duration;

use ballast_proto::v1::{
    Mode, PauseRequest, ResumeRequest, RunState, StepKind, StopRequest, admin_change::Change,
};
use ballast_runtime::config::{Config, ScheduleKind};

use super::{
    promises,
    world::{World, config},
};
use crate::{engine::DRAIN_GRACE, roster::Roster};

/// No demonstrations, no cold start and no evaluation: RL can begin.
pub(super) fn exploring() -> Config {
    let mut config = config();
    config.schedule.kind = ScheduleKind::SftThenRl;
    config.schedule.cold_start_steps_max = 0;
    config.tasks.demonstrations = 0;
    config.evaluation.tasks = 0;
    config
}

pub(super) fn state(world: &World) -> RunState {
    world.engine.status(world.now, &Roster::new(Duration::MAX), None).state()
}

#[test]
fn a_run_plays_its_schedule_from_demonstrations_to_the_end() {
    let mut world = World::new(config());
    world.play_to_the_end();
    promises::check(&world);
    let kinds: Vec<(u64, StepKind)> =
        world.served.iter().map(|batch| (batch.step, batch.kind)).collect();
    use StepKind::{Checkpoint, Finish, Rl, Sft};
    assert_eq!(
        kinds,
        [
            (1, Sft),
            (2, Sft),
            (2, Checkpoint),
            (3, Rl),
            (4, Rl),
            (4, Checkpoint),
            (5, Sft),
            (6, Rl),
            (6, Checkpoint),
            (7, Rl),
            (7, Checkpoint),
            (7, Finish),
        ]
    );
    let result = world.result.expect("written");
    let names: Vec<&str> = result.evaluations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["cold_start_check", "after_cold_start", "final"]);
    assert_eq!(result.cold_start_step, Some(2));
    assert_eq!((result.steps, result.outcome), (7, "finished"));
    assert_eq!(result.checkpoints.last().map(|one| one.step), Some(7));
    let steps: Vec<u64> =
        world.lines.iter().filter(|line| line.name.is_none()).map(|line| line.step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7]);
    let rl = world.lines.iter().find(|line| line.kind == "rl").expect("an RL line");
    assert_eq!(rl.values["loss/x"], 1.0);
    assert!(rl.values.contains_key("rollout/success"));
}

#[test]
fn a_cold_start_that_never_succeeds_ends_at_its_bound() {
    let mut config = config();
    config.schedule.cold_start_steps_max = 3;
    let mut world = World::new(config);
    world.success_every = 0;
    world.play_to_the_end();
    assert_eq!(world.result.expect("written").cold_start_step, Some(3));
}

#[test]
fn sft_only_trains_on_demonstrations_alone() {
    let mut config = config();
    config.schedule.kind = ScheduleKind::SftOnly;
    config.schedule.cold_start_steps_max = 0;
    let mut world = World::new(config);
    world.play_to_the_end();
    assert!(world.served.iter().all(|batch| batch.groups.is_empty()));
    assert!(world.assigned.iter().all(|one| one.mode() != Mode::Explore));
    let names: Vec<String> =
        world.result.expect("written").evaluations.into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["final"]);
}

/// What is left in the driver's memory when all is over: demonstrations, and what came after the
/// last checkpoint.
#[test]
fn trajectories_are_released_once_nobody_can_ask_for_them() {
    let mut world = World::new(config());
    world.play_to_the_end();
    let fates = promises::Fates::of(&world);
    let kept = fates.finished.values().filter(|one| !world.released.contains(&one.episode_id));
    assert!(kept.clone().all(|one| one.mode() == Mode::Demonstrate));
    assert_eq!(kept.count(), 3);
}

#[test]
fn admission_stops_at_the_staleness_bound() {
    let mut world = World::new(exploring());
    world.join("a", 1, 1000);
    world.learn(0);
    world.step();
    // staleness_max 1: batches of steps 1 and 2, two groups of two each.
    let oldest: Vec<Option<u64>> =
        world.actor("a").running.iter().map(|one| one.min_policy_version).collect();
    assert_eq!(oldest, [Some(0); 8]);
    for _ in 0..4 {
        world.finish("a", 0, 0);
    }
    assert_eq!(world.actor("a").running.len(), 4, "the step is not finished yet");
    world.step();
    let newest = world.actor("a").running.last().and_then(|one| one.min_policy_version);
    assert_eq!((world.actor("a").running.len(), newest), (8, Some(1)));
}

#[test]
fn a_pause_holds_assignments_and_batches() {
    let mut world = World::new(config());
    world.ask(Change::Pause(PauseRequest {}));
    world.join("a", 1, 4);
    world.learn(0);
    assert!(world.actor("a").running.is_empty());
    assert_eq!(state(&world), RunState::Paused);
    world.ask(Change::Resume(ResumeRequest {}));
    assert_eq!(world.actor("a").running.len(), 3);
}

#[test]
fn a_journal_that_cannot_be_written_is_the_state_of_the_run() {
    let world = World::new(config());
    let status = world.engine.status(world.now, &Roster::new(Duration::MAX), Some("no space left"));
    assert_eq!((status.state(), status.problem.as_str()), (RunState::Blocked, "no space left"));
}

/// One actor and a learner that has a step at hand when somebody stops the run.
fn stopping() -> World {
    let mut world = World::new(exploring());
    world.join("a", 1, 16);
    world.learn(0);
    world.step();
    for _ in 0..4 {
        world.finish("a", 0, 0);
    }
    world.ask(Change::Stop(StopRequest {}));
    world
}

#[test]
fn a_stop_saves_drains_and_ends() {
    let mut world = stopping();
    assert_eq!(state(&world), RunState::Stopping);
    let kinds: Vec<StepKind> = std::iter::from_fn(|| world.step()).collect();
    assert_eq!(kinds, [StepKind::Rl, StepKind::Checkpoint, StepKind::Finish]);
    assert!(world.actor("a").drained && !world.exited);
    while !world.actor("a").running.is_empty() {
        world.give_back("a", 0);
    }
    world.leave("a");
    assert!(world.exited);
    promises::check(&world);
    assert_eq!(world.result.expect("written").outcome, "stopped");
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut world = World::new(config());
    world.join("a", 1, 4);
    world.ask(Change::Stop(StopRequest {}));
    assert!(world.actor("a").drained && !world.exited);
    world.now += DRAIN_GRACE;
    world.handle(crate::engine::Event::DeadlineReached);
    assert!(world.exited);
}

#[test]
fn equal_events_give_equal_batches() {
    let served = |()| {
        let mut world = World::new(config());
        world.play_to_the_end();
        world.served
    };
    assert_eq!(served(()), served(()));
}
