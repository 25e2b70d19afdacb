//! The coordinator dies and another one takes over.

use std::time::Duration;

use ballast_proto::{
    EpisodeId,
    v1::{DrainActorRequest, StepKind, StopRequest, admin_change::Change},
};

use super::{
    promises::{self, Fates},
    run::exploring,
    world::{World, config},
};
use crate::engine::{
    DRAIN_GRACE, EPISODE_ATTEMPTS_MAX, Event,
    dispatch::Fate,
    ending::LEARNER_GRACE,
    evaluation::{Evaluation, EvaluationName},
};

/// A run with an actor that runs episodes and a learner that has a step at hand.
fn under_way() -> World {
    let mut world = World::new(exploring());
    world.join("a", 1, 8);
    world.learn(0);
    world.step();
    (0..5).for_each(|_| world.finish("a", 0, 0));
    assert_eq!(world.learner.as_ref().map(|learner| learner.batches.len()), Some(1));
    world
}

#[test]
fn actors_and_the_learner_go_on_where_they_were() {
    let mut world = under_way();
    let running = world.actor("a").running.clone();
    world.crash(0, false);
    assert_eq!(world.engine.dispatch.counts().cancelled, 0);
    world.finish("a", 0, 0);
    assert!(world.acknowledged.len() == 5, "nobody hears it yet");
    world.reconnect("a");
    assert_eq!(world.acknowledged.len(), 6, "what it finished meanwhile counts");
    assert_eq!(world.actor("a").running, running[1..]);
    assert_eq!(world.step(), None, "the learner is not back");
    world.reconnect_learner();
    assert_eq!(world.step(), Some(StepKind::Rl));
    world.play_to_the_end();
    promises::check(&world);
    assert_eq!(world.engine.dispatch.counts().cancelled, 0);
}

#[test]
fn nobody_knows_what_was_not_durable() {
    let mut world = under_way();
    world.lag = 100;
    world.finish("a", 0, 0);
    let reported = world.actor("a").unacknowledged[0].episode_id;
    assert_eq!(world.engine.dispatch.fate(EpisodeId(reported)), Fate::Finished);
    world.crash(usize::MAX, false);
    world.lag = 0;
    assert_eq!(world.actor("a").acknowledged.len(), 5);
    world.reconnect("a");
    assert_eq!(world.actor("a").acknowledged.len(), 6, "reported again");
    world.play_to_the_end();
    promises::check(&world);
}

/// The event is in the journal, the assignment was not sent.
#[test]
fn an_assignment_that_was_not_sent_is_run_again_and_costs_no_attempt() {
    let mut world = World::new(exploring());
    world.lag = 100;
    world.join("a", 1, 1);
    for failovers in 1..=2 * u64::from(EPISODE_ATTEMPTS_MAX) {
        assert_eq!(world.engine.dispatch.counts().in_flight, 1);
        world.crash(0, false);
        world.reconnect("a");
        let counts = world.engine.dispatch.counts();
        assert_eq!(counts.cancelled_by_reason["unclaimed"], failovers);
    }
    world.play_to_the_end();
    promises::check(&world);
    assert_eq!(world.engine.groups.dropped(), 0);
}

#[test]
fn an_actor_that_does_not_come_back_loses_its_lease() {
    let mut world = under_way();
    world.crash(0, false);
    world.lose("a");
    assert_eq!(world.engine.dispatch.counts().in_flight, 0);
    world.play_to_the_end();
    promises::check(&world);
}

#[test]
fn a_run_that_stops_waits_for_its_learner() {
    let mut world = under_way();
    world.ask(Change::Stop(StopRequest {}));
    world.crash(0, false);
    assert!(!world.exited && !world.actor("a").drained);
    world.reconnect_learner();
    let kinds: Vec<StepKind> = std::iter::from_fn(|| world.step()).collect();
    assert_eq!(kinds, [StepKind::Rl, StepKind::Checkpoint, StepKind::Finish]);
    world.play_to_the_end();
    promises::check(&world);
    assert_eq!(world.result.expect("written").checkpoints.len(), 2);
}

#[test]
fn a_learner_that_does_not_come_back_is_not_waited_for_for_ever() {
    let mut world = under_way();
    world.ask(Change::Stop(StopRequest {}));
    world.crash(0, false);
    world.reconnect("a");
    assert_eq!(
        world.engine.next_deadline(),
        Some(world.engine.now() + LEARNER_GRACE - Duration::from_millis(2))
    );
    world.now += LEARNER_GRACE;
    world.handle(Event::DeadlineReached);
    assert!(world.actor("a").drained && !world.exited);
    assert!(world.actor("a").running.is_empty(), "what ran is discarded");
    world.leave("a");
    assert!(world.exited);
}

/// The finish is planned and served in the journal; the learner never got it.
#[test]
fn a_learner_that_was_away_when_the_finish_was_served_hears_of_it() {
    let mut world = World::new(config());
    let is_last = |world: &World| {
        let last = |one: &Evaluation| one.name == EvaluationName::Final && one.progress().0 == 2;
        world.engine.evaluation.as_ref().is_some_and(last)
    };
    world.play_until(is_last);
    world.lag = 100;
    let name = world.actors.keys().next().expect("an actor").clone();
    world.finish(&name, 0, 0);
    assert!(world.engine.schedule.is_finished());
    world.crash(0, false);
    world.heal();
    assert!(!world.exited, "the learner and the actors are told to leave");
    assert_eq!(world.step(), Some(StepKind::Finish));
    world.play_to_the_end();
    assert_eq!(world.result.expect("written").outcome, "finished");
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn a_drain_begins_anew_but_does_not_last_for_ever() {
    let mut world = under_way();
    world.crash_learner();
    world.ask(Change::Stop(StopRequest {}));
    assert!(world.actor("a").drained);
    world.now += DRAIN_GRACE / 2;
    world.crash(0, false);
    assert!(!world.exited, "the actor may come back");
    world.actor("a").drained = false;
    world.reconnect("a");
    assert!(world.actor("a").drained, "it is told again");
    world.now += DRAIN_GRACE;
    world.handle(Event::DeadlineReached);
    assert!(world.exited);
}

#[test]
fn a_run_that_is_over_stays_over() {
    let mut world = World::new(config());
    world.play_to_the_end();
    let (result, served) = (world.result.take(), world.served.len());
    world.exited = false;
    world.now += DRAIN_GRACE;
    world.crash(0, false);
    assert!(world.exited);
    assert_eq!(world.result, result);
    world.learn(world.checkpoint);
    assert_eq!(world.refused, ["the run is over"]);
    assert_eq!(world.served.len(), served);
    promises::check(&world);
    assert_eq!(Fates::of(&world).in_flight(), 0);
}

#[test]
fn a_drained_actor_is_drained_still() {
    let mut world = under_way();
    let request = DrainActorRequest { actor_id: "a".into(), ..Default::default() };
    world.ask(Change::DrainActor(request));
    world.actor("a").drained = false;
    world.crash(0, false);
    world.reconnect("a");
    assert!(world.actor("a").drained, "it is told again");
    assert_eq!(world.actor("a").running.len(), 3);
    world.join("a", 2, 8);
    assert!(!world.actor("a").drained, "a newer incarnation begins anew");
}
