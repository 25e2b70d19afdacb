//! From a task's name to an open environment.

use ballast_proto::v1::TaskRef;

use crate::environment::{Environment, InfrastructureError};
use crate::market::{self, Market};
use crate::split::{SPLITS, Split};

const WORLDS: [&str; 2] = [market::NAME, market::BASICS_NAME];

/// Why a task could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No world has this name.
    #[error("unknown world {0:?}; the worlds are: {list}", list = WORLDS.join(", "))]
    UnknownWorld(String),
    /// No split has this name.
    #[error("unknown split {0:?}; the splits are: {list}", list = SPLITS.join(", "))]
    UnknownSplit(String),
    /// The world makes no tasks of this length.
    #[error(
        "world {world} has no task of {calls} calls; choose {least} to {most}",
        least = range.start(),
        most = range.end()
    )]
    Calls {
        /// Name of the world.
        world: &'static str,
        /// Number of calls asked for.
        calls: u32,
        /// Numbers of calls the world makes tasks of.
        range: std::ops::RangeInclusive<u32>,
    },
    /// No draw of this seed fell into the split.
    #[error("world {world} found no task for seed {seed} in this split; use another seed")]
    NoTask {
        /// Name of the world.
        world: &'static str,
        /// Seed of the task.
        seed: u64,
    },
    /// The world could not be built.
    #[error(transparent)]
    Infrastructure(#[from] InfrastructureError),
}

/// Names of the worlds that [`open`] knows.
pub fn worlds() -> &'static [&'static str] {
    &WORLDS
}

/// Names a task; see `TaskRef` for the fields. Whether it exists is [`open`]'s question.
pub fn task(world: &str, split: &str, seed: u64, calls: u32) -> TaskRef {
    TaskRef { world: world.into(), split: split.into(), seed, calls }
}

/// Builds the task's world in its initial state. The same reference always gives the same task.
pub fn open(task: &TaskRef) -> Result<Box<dyn Environment>, OpenError> {
    let split =
        || Split::named(&task.split).ok_or_else(|| OpenError::UnknownSplit(task.split.clone()));
    match task.world.as_str() {
        market::NAME => Ok(Box::new(Market::open(split()?, task.seed, task.calls)?)),
        market::BASICS_NAME => Ok(Box::new(Market::open_basic(split()?, task.seed, task.calls)?)),
        _ => Err(OpenError::UnknownWorld(task.world.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_reference_is_answered_with_what_exists() {
        let check = |reference: TaskRef, message: &str| {
            let error = open(&reference).err().expect("the reference is bad");
            assert_eq!(error.to_string(), message);
        };
        check(
            task("moon", "train", 0, 2),
            "unknown world \"moon\"; the worlds are: market, market_basics",
        );
        check(
            task("market", "dev", 0, 2),
            "unknown split \"dev\"; the splits are: train, validation, test",
        );
        for calls in [0, 6, u32::MAX] {
            check(
                task("market", "test", 0, calls),
                &format!("world market has no task of {calls} calls; choose 1 to 5"),
            );
        }
    }
}
