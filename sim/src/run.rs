//! One seed, played.

use std::{
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use crate::{invariants::Violation, plant::Plant, totals::Totals, world::World};

/// What a seed came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// Hash of everything that happened: equal for equal runs.
    pub hash: u64,
    /// The newest lines of what happened, oldest first.
    pub newest: Vec<String>,
    /// Simulated time.
    pub time: Duration,
    /// Numbers.
    pub totals: Totals,
}

/// Plays a seed. `print`: every line of what happens, as it happens.
#[must_use]
pub fn play(seed: u64, plant: Option<Plant>, print: bool) -> Outcome {
    let mut world = World::new(seed, plant, print);
    // An invariant of the engine itself is an assertion.
    let played = panic::catch_unwind(AssertUnwindSafe(|| world.play()));
    let World { mut env, .. } = world;
    if let Err(cause) = played {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or_default();
        env.oracle.broken("panic", text.to_owned());
    }
    Outcome {
        seed,
        violation: env.oracle.violation().cloned(),
        hash: env.trace.hash(),
        newest: env.trace.newest(),
        time: env.now,
        totals: env.totals,
    }
}
