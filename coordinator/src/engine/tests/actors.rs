//! Actors that come, go, come back, and report.

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{DrainActorRequest, StepKind, StopReason, admin_change::Change},
};

use super::{
    peers::summary,
    run::exploring,
    world::{World, config},
};
use crate::engine::{ChangeRefusal, EPISODE_ATTEMPTS_MAX, Event, SessionEnd};

#[test]
fn no_assignment_goes_beyond_the_credits() {
    let mut world = World::new(config());
    world.join("a", 1, 2);
    assert_eq!(world.actor("a").running.len(), 2);
    world.finish("a", 0, 0);
    assert_eq!(world.actor("a").running.len(), 2, "the third demonstration");
    world.learn(0);
    world.finish("a", 0, 0);
    world.finish("a", 0, 0);
    assert_eq!(world.actor("a").running.len(), 0, "the cold start trains first");
}

#[test]
fn a_duplicate_is_acknowledged_and_counts_once() {
    let mut world = World::new(config());
    world.join("a", 1, 1);
    let assignment = world.take("a", 0);
    for _ in 0..3 {
        world.report("a", summary(&assignment, 0, true));
    }
    assert_eq!(world.actor("a").acknowledged, [0, 0, 0]);
    assert_eq!(world.engine.dispatch.counts().finished, 1);
}

#[test]
fn what_was_lost_with_an_actor_is_dispatched_first_and_unchanged() {
    let mut world = World::new(config());
    world.join("a", 1, 2);
    let before = world.actor("a").running.clone();
    world.lose("a");
    world.join("b", 1, 2);
    let after = &world.actor("b").running;
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
fn an_actor_that_is_away_keeps_what_it_runs_until_its_lease_ends() {
    let mut world = World::new(config());
    world.join("a", 1, 2);
    world.disconnect("a");
    world.join("b", 1, 4);
    assert_eq!(world.actor("b").running.len(), 1, "the other two are not given to it");
    world.reconnect("a");
    assert_eq!(world.actor("a").running.len(), 2);
    world.finish("a", 0, 0);
    assert_eq!(world.actor("a").acknowledged, [0]);
    assert_eq!(world.engine.dispatch.counts().cancelled, 0);
}

#[test]
fn an_assignment_that_never_arrived_is_not_claimed_and_run_again() {
    let mut world = World::new(config());
    world.join("a", 1, 2);
    world.disconnect("a");
    let lost = world.take("a", 0);
    world.reconnect("a");
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["unclaimed"], 1);
    let again = world.actor("a").running.iter().find(|one| one.task == lost.task);
    assert_ne!(again.expect("run again").episode_id, lost.episode_id);
}

#[test]
fn every_claim_is_answered_by_what_became_of_its_episode() {
    let mut world = World::new(config());
    world.join("a", 1, 2);
    world.join("b", 1, 1);
    world.finish("a", 0, 0);
    world.disconnect("a");
    let foreign = world.take("b", 0);
    world.actor("b").running.push(foreign.clone());
    let mut unknown = foreign.clone();
    unknown.episode_id = 999;
    let finished = summary(&foreign, 0, true);
    let finished = ballast_proto::v1::TrajectorySummary { episode_id: 0, ..finished };
    world.actor("a").unacknowledged.push(finished.into());
    world.actor("a").running.extend([foreign, unknown]);
    world.reconnect("a");
    let actor = world.actor("a");
    assert_eq!(actor.acknowledged, [0, 0], "at the report and for the claim");
    assert_eq!(actor.discarded, [2, 999]);
    assert_eq!(actor.running.len(), 1, "what runs needs no answer");
    assert_eq!(world.actor("b").running.len(), 1);
}

#[test]
fn a_late_report_of_a_lost_episode_changes_nothing() {
    let mut world = World::new(config());
    world.join("a", 1, 1);
    let assignment = world.take("a", 0);
    world.lose("a");
    world.join("a", 2, 1);
    world.report("a", summary(&assignment, 0, true));
    assert!(world.actor("a").acknowledged.is_empty());
    assert_eq!(world.actor("a").discarded, [assignment.episode_id]);
    assert_eq!(world.engine.dispatch.counts().finished, 0);
}

#[test]
fn a_reported_trajectory_survives_its_actor() {
    let mut world = World::new(config());
    world.join("a", 1, 1);
    world.finish("a", 0, 0);
    world.lose("a");
    let counts = world.engine.dispatch.counts();
    // The actor's second episode, assigned when its slot was free again, is the one lost.
    assert_eq!((counts.finished, counts.cancelled), (1, 1));
    assert_eq!(world.engine.demonstrations.progress(), (1, 3));
}

fn expire(world: &mut World, name: &str, generation: u64) {
    let (actor, generation) = (ActorId(name.into()), Generation(generation));
    world.handle(Event::LeaseExpired { actor, generation });
}

#[test]
fn a_silent_actor_loses_its_lease_and_comes_back_with_nothing() {
    let mut world = World::new(config());
    world.join("a", 2, 1);
    expire(&mut world, "a", 1);
    assert!(world.ends.is_empty(), "the lease of an older incarnation");
    expire(&mut world, "a", 2);
    assert_eq!(world.ends, [SessionEnd::LeaseExpired(ActorId("a".into()))]);
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["actor_lost"], 1);
    world.reconnect("a");
    assert_eq!(world.actor("a").discarded, [0]);
    world.offer("a");
    assert_eq!(world.actor("a").running.len(), 1);
}

#[test]
fn a_newer_generation_replaces_and_an_older_one_is_refused() {
    let mut world = World::new(config());
    world.join("a", 5, 1);
    world.actors.remove("a");
    world.join("a", 6, 1);
    assert_eq!(world.ends, [SessionEnd::Replaced(ActorId("a".into()))]);
    assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["actor_lost"], 1);
    let newer = world.actors.remove("a").expect("here");
    world.join("a", 5, 1);
    assert!(matches!(world.ends.last(), Some(SessionEnd::OldGeneration { .. })));
    assert_eq!(world.actor("a").session, None);
    assert_eq!(newer.running.len(), 1);
    assert_eq!(world.engine.dispatch.counts().in_flight, 1, "the newer one is untouched");
}

#[test]
fn an_infrastructure_failure_is_never_a_reward_and_is_given_up_at_last() {
    let mut world = World::new(exploring());
    world.join("a", 1, 4);
    world.learn(0);
    world.step();
    let place = world.actor("a").running[0].sampling_seed;
    for attempt in 1..=EPISODE_ATTEMPTS_MAX {
        let running = &world.actor("a").running;
        let index = running.iter().position(|one| one.sampling_seed == place).expect("run anew");
        let assignment = world.take("a", index);
        let mut failed = summary(&assignment, 0, false);
        failed.stop_reason = StopReason::Infrastructure.into();
        world.report("a", failed);
        world.offer("a");
        assert_eq!(world.engine.unused_by_reason["infrastructure"], u64::from(attempt));
    }
    assert!(!world.actor("a").running.iter().any(|one| one.sampling_seed == place));
    world.play_to_the_end();
    let first = world.served.iter().find(|batch| batch.kind == StepKind::Rl).expect("RL");
    let sizes: Vec<usize> = first.groups.iter().map(|group| group.trajectories.len()).collect();
    assert_eq!(sizes, [1, 2]);
}

#[test]
fn a_trajectory_may_come_before_the_report_of_the_step_it_was_sampled_under() {
    let mut world = World::new(exploring());
    world.join("a", 1, 16);
    world.learn(0);
    world.step();
    for _ in 0..4 {
        world.finish("a", 0, 0);
    }
    assert_eq!(world.served.last().map(|batch| batch.step), Some(1));
    // The learner has published version 1, an actor sampled under it, and the report is on its way.
    world.published = 1;
    world.finish("a", 0, 0);
    assert_eq!(world.engine.early.len(), 1);
    world.step();
    assert!(world.engine.early.is_empty());
    assert!(world.engine.unused_by_reason.is_empty());
}

#[test]
fn an_episode_given_back_is_run_by_somebody_else_and_its_length_is_kept() {
    let mut world = World::new(exploring());
    world.join("a", 1, 1);
    world.learn(0);
    world.step();
    let seed = world.actor("a").running[0].sampling_seed;
    let session = world.actor("a").session.expect("here");
    let episode = EpisodeId(world.take("a", 0).episode_id);
    let (reason, tokens) = ("draining".into(), 40);
    world.handle(Event::EpisodeGivenBack { session, episode, reason, tokens });
    world.join("b", 1, 1);
    assert_eq!(world.actor("b").running[0].sampling_seed, seed);
    let dropped = &world.engine.lengths().dropped[0];
    assert_eq!((dropped.reason.as_str(), dropped.count, dropped.unknown), ("returned", 1, 0));
    assert_eq!(dropped.known.as_ref().map(|known| known.mean), Some(40.0));
}

fn drain(world: &mut World, name: &str) -> Result<(), ChangeRefusal> {
    let request = DrainActorRequest { actor_id: name.into(), reason: String::new() };
    world.admin(Change::DrainActor(request)).map(drop)
}

#[test]
fn a_drained_actor_finishes_what_it_runs_and_gets_nothing_new() {
    let mut world = World::new(config());
    assert!(matches!(drain(&mut world, "a"), Err(ChangeRefusal::Unknown(_))));
    world.join("a", 1, 2);
    drain(&mut world, "a").expect("it is here");
    assert!(world.actor("a").drained);
    let session = world.actor("a").session.expect("here");
    world.finish("a", 0, 0);
    world.handle(Event::SlotsFreed { session, slots: 2 });
    assert_eq!(world.actor("a").running.len(), 1);
}
