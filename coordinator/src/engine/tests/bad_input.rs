//! What broken and lying peers send: named, counted, and the run goes on.

use ballast_proto::{
    CLAIMS_PER_SLOT_MAX, EpisodeId,
    v1::{
        AdminChange, CompleteStepRequest, NextBatchRequest, StepKind, TrajectorySummary,
        admin_change::Change,
    },
};

use super::{
    peers::{hash, set, summary},
    promises,
    run::exploring,
    world::{World, config},
};
use crate::engine::{CallId, ChangeRefusal, Event, StreamId, training};

/// Makes a message wrong.
type Spoil<T> = fn(&mut T);

/// An actor that runs one explored episode, and a learner of step 0 with a vocabulary of 100.
fn exploring_world() -> World {
    let mut world = World::new(exploring());
    world.join("a", 1, 1);
    world.learn(0);
    world.step();
    world
}

/// Reports the running episode with a fault. Returns what the quarantine says of it.
fn reported(fault: impl FnOnce(&mut TrajectorySummary)) -> (World, String) {
    let mut world = exploring_world();
    let assignment = world.take("a", 0);
    let mut trajectory = summary(&assignment, 0, true);
    fault(&mut trajectory);
    world.report("a", trajectory);
    world.offer("a");
    let list = world.engine.quarantined();
    assert_eq!((list.trajectories.len(), list.total), (1, 1), "counted once");
    let listed = &list.trajectories[0];
    assert_eq!((listed.episode_id, listed.actor_id.as_str()), (assignment.episode_id, "a"));
    assert!(world.warnings.iter().any(|text| text.contains(&listed.fault)), "{:?}", world.warnings);
    let fault = listed.fault.clone();
    let again = world.actor("a").running[0].clone();
    assert_eq!((&again.task, again.sampling_seed), (&assignment.task, assignment.sampling_seed));
    world.play_to_the_end();
    promises::check(&world);
    (world, fault)
}

#[test]
fn a_trajectory_that_is_not_what_was_asked_for_is_refused() {
    let faults: [(Spoil<TrajectorySummary>, &str); 7] = [
        (|one| one.sampling_seed ^= 1, "not the episode that was assigned"),
        (|one| one.group_id = Some(99), "not the episode that was assigned"),
        (|one| one.task = None, "not the episode that was assigned"),
        (|one| one.mode = 77, "not the episode that was assigned"),
        (|one| one.token_id_max = 100, "token id 100 is outside the vocabulary of 100"),
        (|one| one.reward = Some(f32::NAN), "its reward is not a number"),
        (|one| one.reward = Some(f32::INFINITY), "its reward is not a number"),
    ];
    for (fault, text) in faults {
        let (world, named) = reported(fault);
        assert!(named.contains(text), "{named}");
        assert_eq!(world.engine.dispatch.counts().cancelled_by_reason["invalid"], 1);
    }
}

#[test]
fn weights_that_were_never_published_are_named_and_not_trained_on() {
    let faults: [(Spoil<TrajectorySummary>, &str); 4] = [
        (|one| one.sampled_versions[0].manifest_hash = hash(9), "v0 that was never published"),
        (|one| one.sampled_versions[0].manifest_hash.clear(), "v0 that was never published"),
        // Newer than any published, and than any that may have been published unheard.
        (|one| one.sampled_versions[0].policy_version = 1, "v1 that was never published"),
        (|one| one.sampled_versions[0].policy_version = u64::MAX, "that was never published"),
    ];
    for (fault, text) in faults {
        let (world, named) = reported(fault);
        assert!(named.contains(text), "{named}");
        assert_eq!(world.engine.unused_by_reason["unknown_weights"], 1);
    }
}

#[test]
fn a_version_older_than_was_asked_for_is_named_and_not_trained_on() {
    let mut world = exploring_world();
    world.play_until(|world| world.published == 3);
    let name = world.actors.keys().next().expect("an actor").clone();
    while world.actors[&name].running.is_empty() {
        world.step();
    }
    let assignment = world.take(&name, 0);
    let asked = assignment.min_policy_version.expect("explored");
    assert!(asked > 0);
    world.report(&name, summary(&assignment, asked - 1, true));
    world.offer(&name);
    let fault = world.engine.quarantined().trajectories.remove(0).fault;
    assert!(
        fault.contains(&format!("under v{}, but v{asked} was asked for", asked - 1)),
        "{fault}"
    );
    assert_eq!(world.engine.unused_by_reason["stale"], 1);
    world.play_to_the_end();
    promises::check(&world);
}

#[test]
fn a_claim_to_a_version_that_may_exist_is_settled_when_it_does() {
    let mut world = exploring_world();
    world.join("b", 1, 16);
    world.finish("a", 0, 0);
    (0..3).for_each(|_| world.finish("b", 0, 0));
    assert_eq!(world.learner.as_ref().map(|learner| learner.batches.len()), Some(1));
    // Step 1 is served: version 1 may be published. Its hash is not this one.
    let assignment = world.take("b", 0);
    let mut lie = summary(&assignment, 1, true);
    lie.sampled_versions[0].manifest_hash = hash(77);
    world.report("b", lie);
    assert_eq!((world.engine.early.len(), world.engine.quarantined().total), (1, 0));
    world.step();
    assert_eq!((world.engine.early.len(), world.engine.quarantined().total), (0, 1));
    world.play_to_the_end();
    promises::check(&world);
}

#[test]
fn a_trajectory_nobody_waits_for_leaves_no_trace() {
    let mut world = exploring_world();
    let session = world.actor("a").session.expect("here");
    let before = world.engine.quarantined();
    for episode in [EpisodeId(999), EpisodeId(u64::MAX)] {
        let fault = "its arrays differ in length".to_owned();
        world.handle(Event::TrajectoryInvalid { session, episode, fault });
    }
    assert_eq!(world.engine.quarantined(), before);
    assert_eq!(world.actor("a").discarded, [999, u64::MAX]);
    assert!(world.effects().next().is_some() && world.actor("a").running.len() == 1);
}

#[test]
fn an_actor_that_floods_gets_no_more_than_it_may_hold() {
    let mut config = exploring();
    config.rl.groups_per_batch = 100;
    let mut world = World::new(config);
    world.join("a", 1, 2);
    world.learn(0);
    world.step();
    let session = world.actor("a").session.expect("here");
    for _ in 0..100 {
        world.handle(Event::SlotsFreed { session, slots: u32::MAX });
    }
    assert_eq!(world.actor("a").running.len(), 2 * CLAIMS_PER_SLOT_MAX);
    let assignment = world.take("a", 0);
    for _ in 0..100 {
        world.report("a", summary(&assignment, 0, true));
    }
    assert_eq!(world.engine.dispatch.counts().finished, 1);
    world.join("b", 1, 4);
    assert_eq!(world.actor("b").running.len(), 4, "others get their share");
}

fn refused(change: impl FnOnce(&mut NextBatchRequest)) -> String {
    let mut world = World::new(config());
    world.join("a", 1, 4);
    world.learn(0);
    while world.learner.as_ref().is_some_and(|learner| learner.step < 4) {
        while !world.actor("a").running.is_empty() {
            world.finish("a", 0, 0);
        }
        world.step();
    }
    let mut request = world.request();
    change(&mut request);
    world.crash_learner();
    let stream = StreamId(world.id());
    world.handle(Event::LearnerConnected { stream, request });
    let refusal = world.refused.pop().expect("refused");
    assert!(world.warnings.iter().any(|text| text.contains(&refusal)), "{:?}", world.warnings);
    world.play_to_the_end();
    promises::check(&world);
    refusal
}

#[test]
fn a_learner_that_does_not_belong_here_is_told_why() {
    let cases: [(Spoil<NextBatchRequest>, &str); 6] = [
        (|one| one.run_id = "other".into(), "belongs to run other, and this is run run"),
        (|one| one.manifest_hash.truncate(31), "manifest_hash must have 32 bytes"),
        (|one| one.generation -= 1, "has been seen; this one was replaced"),
        (|one| one.last_step = 0, "start it from the checkpoint of step 2"),
        (|one| one.last_step = 99, "has only reached step"),
        (|one| one.last_step = u64::MAX, "has only reached step"),
    ];
    for (change, text) in cases {
        let refusal = refused(change);
        assert!(refusal.contains(text), "{refusal}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_told_why() {
    let cases: [(Spoil<CompleteStepRequest>, &str); 6] = [
        (|one| one.kind = 0, "kind is missing"),
        (|one| one.kind = 99, "kind is missing"),
        (|one| one.manifest_hash.clear(), "manifest_hash must have 32 bytes"),
        (|one| one.generation += 1, "is not the learner of this run at present"),
        (|one| one.learner_id = "other".into(), "is not the learner of this run at present"),
        (|one| one.step = 9, "but Sft of step 1 is next"),
    ];
    for (change, text) in cases {
        let mut world = World::new(config());
        world.join("a", 1, 4);
        world.learn(0);
        (0..3).for_each(|_| world.finish("a", 0, 0));
        let mut request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation: world.learner.as_ref().expect("here").generation,
            step: 1,
            kind: StepKind::Sft.into(),
            manifest_hash: hash(1),
            ..Default::default()
        };
        change(&mut request);
        world.handle(Event::StepCompleted { call: CallId(0), request, actors: [].into() });
        let refusal = world.answers.pop().expect("answered").expect_err("refused");
        assert!(refusal.contains(text), "{refusal}");
        assert!(world.warnings.iter().any(|text| text.contains(&refusal)));
        assert_eq!(world.engine.version().0, 0);
        world.play_to_the_end();
        promises::check(&world);
    }
}

#[test]
fn a_metric_that_is_no_number_is_not_shown_and_made_up_ones_are_bounded() {
    let mut world = World::new(config());
    world.join("a", 1, 4);
    world.learn(0);
    (0..3).for_each(|_| world.finish("a", 0, 0));
    let mut complete = |step, metrics| {
        let request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation: world.learner.as_ref().expect("here").generation,
            step,
            kind: StepKind::Sft.into(),
            manifest_hash: hash(step),
            metrics,
            ..Default::default()
        };
        world.handle(Event::StepCompleted { call: CallId(0), request, actors: [].into() });
        world.engine.metrics.clone()
    };
    let shown = complete(1, [("loss/x".into(), 0.5), ("loss/y".into(), 0.5)].into());
    assert_eq!((shown["loss/x"], shown["loss/y"]), (0.5, 0.5));
    let made_up = (0..5000).map(|number| (format!("made/up-{number}"), 1.0));
    let nan = [("loss/x".to_owned(), f64::NAN), ("loss/y".to_owned(), 0.25)];
    let shown = complete(2, made_up.chain(nan).collect());
    assert_eq!((shown.get("loss/x"), shown["loss/y"]), (None, 0.25));
    assert_eq!(shown.len(), training::METRICS_MAX);
    let twin = super::world::from_bytes(&super::world::to_bytes(&world.engine));
    assert_eq!(world.engine, twin, "nothing in an engine differs from itself");
}

#[test]
fn a_change_that_is_nonsense_is_told_why() {
    let mut world = World::new(config());
    let cases = [
        (vec!["kind=interleave", "rl_steps=0", "sft_steps=0"], "schedule.rl_steps: is 0"),
        (vec!["rl.temperature=nan"], "rl.temperature"),
        (vec!["rl.group_size=4"], "cannot be changed while the run goes on"),
        (vec!["run.name=other"], "cannot be changed while the run goes on"),
        (vec!["steps"], "schedule"),
        (vec![], "nothing to change"),
    ];
    for (changes, text) in cases {
        let refusal = world.admin(set(&changes)).expect_err("refused");
        assert!(matches!(refusal, ChangeRefusal::Invalid(_)), "{refusal:?}");
        assert!(refusal.to_string().contains(text), "{refusal}");
    }
    let entries = world.engine.audit_entries();
    assert_eq!(entries.iter().filter(|entry| !entry.refusal.is_empty()).count(), 6);
    let nothing = AdminChange { reason: String::new(), change: None };
    let call = CallId(0);
    world.handle(Event::AdminRequested { call, who: "somebody".into(), change: nothing });
    assert!(matches!(world.changes.pop(), Some(Err(ChangeRefusal::Invalid(_)))));
    world.play_to_the_end();
}

#[test]
fn a_long_text_is_cut_before_it_is_kept() {
    let mut world = World::new(config());
    let Change::Set(mut request) = set(&["steps=6"]) else { return };
    request.reason = "x".repeat(1 << 20);
    world.admin(Change::Set(request)).expect("accepted");
    let call = CallId(0);
    let change = AdminChange { reason: "y".repeat(1 << 20), change: Some(set(&["steps=7"])) };
    world.handle(Event::AdminRequested { call, who: "z".repeat(1 << 20), change });
    let session = {
        world.join("a", 1, 1);
        world.actor("a").session.expect("here")
    };
    let episode = EpisodeId(world.take("a", 0).episode_id);
    let fault = "f".repeat(1 << 20);
    world.handle(Event::TrajectoryInvalid { session, episode, fault });
    assert!(super::world::to_bytes(&world.engine).len() < 1 << 16);
}
