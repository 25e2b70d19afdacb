//! A learner that comes, crashes, comes back.

use ballast_proto::v1::NextBatchRequest;

use super::world::{World, config};
use crate::engine::{Event, StreamId};

#[test]
fn a_restarted_learner_gets_the_same_batches_and_lines_are_written_once() {
    let mut world = World::new(config());
    world.join("a", 1, 64);
    world.learn(0);
    while world.lines.iter().filter(|line| line.name.is_none()).count() < 5 {
        while !world.actor("a").running.is_empty() {
            world.finish("a", 0, 1);
        }
        world.step();
    }
    let (first, before) = (world.served.clone(), world.lines.len());
    world.crash_learner();
    assert_eq!(world.checkpoint, 4);
    world.learn(world.checkpoint);
    assert_eq!(world.actor("a").sources.len(), 2, "the actors hear of the new address");
    let again = &world.served[first.len()];
    assert_eq!(again, first.iter().find(|batch| batch.step == 5).expect("step 5"));
    world.step();
    assert_eq!(world.lines.len(), before, "step 5 has its line already");
    world.play_to_the_end();
    assert_eq!(world.result.expect("written").steps, 7);
}

fn connect(world: &mut World, change: impl FnOnce(&mut NextBatchRequest)) {
    let mut request = world.request();
    change(&mut request);
    let stream = StreamId(world.id());
    world.handle(Event::LearnerConnected { stream, request });
}

#[test]
fn a_second_learner_is_refused() {
    let mut world = World::new(config());
    world.learn(0);
    connect(&mut world, |request| request.generation += 1);
    assert!(world.refused[0].contains("holds the stream"), "{:?}", world.refused);
    world.handle(Event::LearnerDisconnected { stream: StreamId(999) });
    world.play_to_the_end();
}
