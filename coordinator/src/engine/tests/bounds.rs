//! The engine's memory does not grow with the run (B1).

use std::collections::BTreeMap;

use ballast_proto::v1::{EvaluateRequest, admin_change::Change};
use ballast_runtime::config::ScheduleKind;

use super::{
    run::exploring,
    world::{World, to_bytes},
};
use crate::engine::training;

/// A long run with actors that come and go, evaluations, changes: once the records people can look
/// back on are full, a snapshot does not get larger.
#[test]
fn a_long_run_is_no_larger_than_a_short_one() {
    let mut config = exploring();
    config.schedule.kind = ScheduleKind::Adaptive;
    config.tasks.demonstrations = 3;
    config.schedule.steps = 1 << 20;
    config.evaluation.tasks = 1;
    config.learner.checkpoint_every = 1;
    config.rl.groups_per_batch = 1;
    let mut world = World::new(config);
    while world.engine.evaluations.len() < training::EVALUATIONS_MAX
        || world.engine.checkpoints.len() < training::CHECKPOINTS_MAX
    {
        step(&mut world);
    }
    let full = sizes(&world);
    (0..400).for_each(|_| step(&mut world));
    let later = sizes(&world);
    for (field, size) in later {
        let before = full[&field];
        // Numbers have grown by a digit.
        assert!(size <= before + before / 20 + 64, "{field}: {before} bytes, then {size}");
    }
}

/// One optimizer step, an actor that comes for it and is lost, an evaluation, a change.
fn step(world: &mut World) {
    let next = world.published + 1;
    let name = format!("short-{next}");
    world.join(&name, 1, 1);
    while !world.actors[&name].running.is_empty() {
        world.finish(&name, 0, 0);
    }
    world.lose(&name);
    world.ask(Change::Evaluate(EvaluateRequest::default()));
    world.change(&["steps=1000000"]).expect("under way");
    world.play_until(|world| world.published >= next);
    world.journal.clear();
}

/// Bytes of each field of the engine in a snapshot.
fn sizes(world: &World) -> BTreeMap<String, usize> {
    let value = ciborium::from_reader(to_bytes(&world.engine).as_slice()).expect("a value");
    let ciborium::Value::Map(fields) = value else { panic!("an engine is a map") };
    let size = |value: &ciborium::Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).expect("written");
        bytes.len()
    };
    fields.iter().map(|(name, value)| (format!("{name:?}"), size(value))).collect()
}
