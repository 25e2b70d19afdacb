//! A snapshot is the engine.

use proptest::prelude::*;

use super::{
    property::{apply, op},
    world::{World, config, from_bytes, to_bytes},
};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..Default::default()
    })]

    /// At any point an engine written down and read again is the same, and goes on in the same way:
    /// the world hands every further event to both and compares what they want.
    #[test]
    fn it_goes_on_like_the_engine_it_was_made_of(
        before in prop::collection::vec(op(), 0..200),
        after in prop::collection::vec(op(), 0..100),
    ) {
        let mut world = World::new(config());
        for op in before {
            apply(&mut world, op);
        }
        let bytes = to_bytes(&world.engine);
        let twin = from_bytes(&bytes);
        prop_assert_eq!(&world.engine, &twin);
        prop_assert_eq!(&bytes, &to_bytes(&twin), "the same engine is the same bytes");
        world.twin = Some(twin);
        for op in after {
            apply(&mut world, op);
        }
        world.play_to_the_end();
        let twin = world.twin.take().expect("both went on");
        prop_assert_eq!(&world.engine, &twin);
    }
}
