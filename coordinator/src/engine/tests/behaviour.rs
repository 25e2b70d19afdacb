use std::time::Duration;

use ballast_proto::{
    ActorId, EpisodeId,
    v1::{Mode, RunState, StepKind, StopReason},
};
use ballast_runtime::config::ScheduleKind;
use prost::Message as _;

use super::world::{World, config, trajectory};
use crate::engine::{EPISODE_ATTEMPTS_MAX, Event, SessionEnd, StreamId};

/// A world with demonstrations done, no cold start and no evaluation: RL can begin.
fn exploring() -> World {
    let mut config = config();
    config.schedule.kind = ScheduleKind::SftThenRl;
    config.schedule.cold_start_steps_max = 0;
    config.tasks.demonstrations = 0;
    config.evaluation.tasks = 0;
    World::new(config)
}

#[test]
fn a_run_plays_its_schedule_from_demonstrations_to_the_end() {
    let mut world = World::new(config());
    world.play_to_the_end();
    let kinds: Vec<(u64, StepKind)> =
        world.served.iter().map(|batch| (batch.step, batch.kind())).collect();
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

#[test]
fn no_assignment_goes_beyond_the_credits() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 2);
    assert_eq!(world.actors[&session].running.len(), 2);
    world.handle(Event::SlotsFreed { session, slots: u32::MAX });
    assert_eq!(world.actors[&session].running.len(), 3, "three demonstrations, no more");
    world.learn(0);
    world.sync();
    assert_eq!(world.actors[&session].running.len(), 3, "the cold start trains first");
}

#[test]
fn an_acknowledgement_waits_for_the_disk() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    world.finish(session, 0, 0);
    assert!(world.actors[&session].acknowledged.is_empty());
    world.sync();
    assert_eq!(world.actors[&session].acknowledged, [0]);
}

#[test]
fn a_duplicate_is_acknowledged_and_counts_once() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    let assignment = world.take(session, 0);
    let reported = trajectory(&assignment, 0, true);
    world.report(session, reported.clone());
    world.report(session, reported.clone());
    assert_eq!(world.disk.len(), 1, "one copy goes to the journal");
    world.sync();
    world.report(session, reported);
    assert_eq!(world.actors[&session].acknowledged, [0, 0]);
    assert_eq!(world.engine.dispatch.counts().finished, 1);
}

#[test]
fn what_was_lost_with_an_actor_is_dispatched_first_and_unchanged() {
    let mut world = World::new(config());
    let lost = world.join("a", 1, 2);
    let before = world.actors[&lost].running.clone();
    world.leave(lost);
    let session = world.join("b", 1, 2);
    let after = &world.actors[&session].running;
    assert_eq!(after.len(), 2);
    for (old, new) in before.iter().zip(after) {
        assert_ne!(old.episode_id, new.episode_id);
        assert_eq!((&old.task, old.sampling_seed), (&new.task, new.sampling_seed));
    }
    let counts = world.engine.dispatch.counts();
    assert_eq!((counts.dispatched, counts.cancelled), (4, 2));
    assert_eq!(counts.cancelled_by_reason["actor_lost"], 2);
}

#[test]
fn a_late_report_of_a_lost_episode_changes_nothing() {
    let mut world = World::new(config());
    let lost = world.join("a", 1, 1);
    let assignment = world.take(lost, 0);
    world.leave(lost);
    let session = world.join("a", 2, 1);
    world.report(session, trajectory(&assignment, 0, true));
    assert!(world.disk.is_empty());
    assert!(world.actors[&session].acknowledged.is_empty());
}

#[test]
fn a_reported_trajectory_survives_its_actor() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    world.finish(session, 0, 0);
    world.leave(session);
    world.sync();
    let counts = world.engine.dispatch.counts();
    // The actor's second episode, assigned when its slot was free again, is the one lost.
    assert_eq!((counts.finished, counts.cancelled), (1, 1));
    assert_eq!(world.engine.demonstrations.progress(), (1, 3));
}

#[test]
fn a_silent_actor_loses_its_lease() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    let deadline = world.engine.next_deadline().expect("a lease");
    world.now = deadline;
    world.handle(Event::DeadlineReached);
    assert_eq!(world.ends, [(session, SessionEnd::LeaseExpired(ActorId("a".into())))]);
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["actor_lost"], 1);
}

#[test]
fn a_newer_generation_replaces_and_an_older_one_is_refused() {
    let mut world = World::new(config());
    let old = world.join("a", 5, 1);
    let new = world.join("a", 6, 1);
    assert_eq!(world.ends.last(), Some(&(old, SessionEnd::Replaced(ActorId("a".into())))));
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["replaced"], 1);
    let older = world.join("a", 5, 1);
    assert!(
        matches!(&world.ends.last(), Some((s, SessionEnd::OldGeneration { .. })) if *s == older)
    );
    assert_eq!(world.actors[&new].running.len(), 1, "the newer session is untouched");
}

#[test]
fn an_infrastructure_failure_is_never_a_reward_and_is_given_up_at_last() {
    let mut world = exploring();
    let session = world.join("a", 1, 4);
    world.learn(0);
    world.sync();
    world.step();
    let place = world.actors[&session].running[0].sampling_seed;
    for attempt in 1..=EPISODE_ATTEMPTS_MAX {
        let running = &world.actors[&session].running;
        let index = running.iter().position(|one| one.sampling_seed == place).expect("run anew");
        let assignment = world.take(session, index);
        let mut failed = trajectory(&assignment, 0, false);
        failed.stop_reason = StopReason::Infrastructure.into();
        world.report(session, failed);
        world.sync();
        world.handle(Event::SlotsFreed { session, slots: 1 });
        assert_eq!(world.engine.unused_by_reason["infrastructure"], u64::from(attempt));
    }
    assert!(!world.actors[&session].running.iter().any(|one| one.sampling_seed == place));
    world.play_to_the_end();
    let first = world.served.iter().find(|batch| batch.kind() == StepKind::Rl).expect("RL");
    let sizes: Vec<usize> = first.groups.iter().map(|group| group.trajectories.len()).collect();
    assert_eq!(sizes, [1, 2]);
}

#[test]
fn a_trajectory_of_unknown_weights_is_not_trained_on() {
    let mut world = exploring();
    let session = world.join("a", 1, 1);
    world.learn(0);
    world.sync();
    let assignment = world.take(session, 0);
    let mut foreign = trajectory(&assignment, 0, true);
    foreign.sampled_versions[0].manifest_hash = vec![0; 32];
    world.report(session, foreign);
    world.sync();
    world.handle(Event::SlotsFreed { session, slots: 1 });
    assert_eq!(world.engine.unused_by_reason["unknown_weights"], 1);
    world.play_to_the_end();
    for batch in &world.served {
        for one in batch.groups.iter().flat_map(|group| &group.trajectories) {
            assert_ne!(one.episode_id, assignment.episode_id);
        }
    }
}

#[test]
fn a_trajectory_may_come_before_the_report_of_the_step_it_was_sampled_under() {
    let mut world = exploring();
    let session = world.join("a", 1, 16);
    world.learn(0);
    world.sync();
    world.step();
    for _ in 0..4 {
        world.finish(session, 0, 0);
    }
    world.sync();
    assert_eq!(world.served.last().map(|batch| batch.step), Some(1));
    // The learner has published version 1, an actor sampled under it, and the report is on its way.
    world.published = 1;
    world.finish(session, 0, 0);
    world.sync();
    assert_eq!(world.engine.early.len(), 1);
    world.step();
    assert!(world.engine.early.is_empty());
    assert!(world.engine.unused_by_reason.is_empty());
}

#[test]
fn a_trajectory_that_is_not_the_assigned_episode_is_rejected() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    let assignment = world.take(session, 0);
    let mut other = trajectory(&assignment, 0, true);
    other.sampling_seed += 1;
    world.report(session, other);
    assert!(world.disk.is_empty());
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["invalid"], 1);
}

#[test]
fn admission_stops_at_the_staleness_bound() {
    let mut world = exploring();
    let session = world.join("a", 1, 1000);
    world.learn(0);
    world.sync();
    world.step();
    world.sync();
    // staleness_max 1: batches of steps 1 and 2, two groups of two each.
    let oldest: Vec<Option<u64>> =
        world.actors[&session].running.iter().map(|one| one.min_policy_version).collect();
    assert_eq!(oldest, [Some(0); 8]);
    for _ in 0..4 {
        world.finish(session, 0, 0);
    }
    world.sync();
    assert_eq!(world.actors[&session].running.len(), 4, "the step is not finished yet");
    world.step();
    let newest = world.actors[&session].running.last().and_then(|one| one.min_policy_version);
    assert_eq!((world.actors[&session].running.len(), newest), (8, Some(1)));
}

#[test]
fn a_restarted_learner_gets_identical_bytes_and_lines_are_written_once() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 64);
    world.learn(0);
    while world.lines.iter().filter(|line| line.name.is_none()).count() < 5 {
        world.sync();
        while !world.actors[&session].running.is_empty() {
            world.finish(session, 0, 1);
            world.sync();
        }
        world.step();
    }
    let (first, before) = (world.served.clone(), world.lines.len());
    world.crash_learner();
    assert_eq!(world.checkpoint, 4);
    world.learn(world.checkpoint);
    assert_eq!(world.actors[&session].sources.len(), 2, "the actors hear of the new address");
    let again = world.served[first.len()].encode_to_vec();
    let original = first.iter().find(|batch| batch.step == 5).expect("step 5").encode_to_vec();
    assert_eq!(again, original);
    world.step();
    assert_eq!(world.lines.len(), before, "step 5 has its line already");
    world.play_to_the_end();
    assert_eq!(world.result.expect("written").steps, 7);
}

#[test]
fn a_second_learner_is_refused() {
    let mut world = World::new(config());
    world.learn(0);
    let holder = world.learner.take().expect("connected");
    world.learn(0);
    assert!(world.refused[0].contains("holds the stream"), "{:?}", world.refused);
    world.handle(Event::LearnerDisconnected { stream: StreamId(999) });
    world.learner = Some(holder);
    world.play_to_the_end();
}

#[test]
fn a_pause_holds_assignments_and_batches() {
    let mut world = World::new(config());
    world.handle(Event::PauseRequested);
    let session = world.join("a", 1, 4);
    world.learn(0);
    assert!(world.actors[&session].running.is_empty());
    assert_eq!(world.engine.status(world.now).state(), RunState::Paused);
    world.handle(Event::ResumeRequested);
    assert_eq!(world.actors[&session].running.len(), 3);
}

#[test]
fn a_full_disk_blocks_admission_until_it_recovers() {
    let mut world = World::new(config());
    world.handle(Event::JournalBlocked { problem: "no space left".into() });
    let session = world.join("a", 1, 4);
    assert!(world.actors[&session].running.is_empty());
    let status = world.engine.status(world.now);
    assert_eq!((status.state(), status.problem.as_str()), (RunState::Blocked, "no space left"));
    world.handle(Event::JournalRecovered);
    assert_eq!(world.actors[&session].running.len(), 3);
}

#[test]
fn a_stop_saves_drains_and_ends() {
    let mut world = exploring();
    let session = world.join("a", 1, 16);
    world.learn(0);
    world.sync();
    world.step();
    for _ in 0..4 {
        world.finish(session, 0, 0);
    }
    world.sync();
    world.handle(Event::StopRequested);
    world.sync();
    assert_eq!(world.engine.status(world.now).state(), RunState::Stopping);
    let mut kinds = Vec::new();
    while let Some(kind) = world.step() {
        kinds.push(kind);
        world.sync();
    }
    assert_eq!(kinds, [StepKind::Rl, StepKind::Checkpoint, StepKind::Finish]);
    assert!(world.actors[&session].drained && !world.exited);
    world.leave(session);
    assert!(world.exited);
    assert_eq!(world.result.expect("written").outcome, "stopped");
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 4);
    world.handle(Event::StopRequested);
    assert!(world.actors[&session].drained && !world.exited);
    world.now += Duration::from_secs(3600);
    world.handle(Event::DeadlineReached);
    assert!(world.exited);
}

#[test]
fn a_returned_episode_is_run_by_somebody_else() {
    let mut world = World::new(config());
    let session = world.join("a", 1, 1);
    let episode = EpisodeId(world.take(session, 0).episode_id);
    world.handle(Event::EpisodeReturned { session, episode, reason: "draining".into() });
    let other = world.join("b", 1, 1);
    assert_eq!(world.actors[&other].running[0].task.as_ref().map(|task| task.seed), Some(0));
}

#[test]
fn equal_events_give_equal_batches() {
    let served = |()| {
        let mut world = World::new(config());
        world.play_to_the_end();
        world.served.iter().flat_map(prost::Message::encode_to_vec).collect::<Vec<u8>>()
    };
    assert_eq!(served(()), served(()));
}
