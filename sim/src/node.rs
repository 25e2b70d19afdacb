//! The processes of a simulated run.

use std::fmt;

/// A place where one process at a time runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Coordinator(usize),
    Actor(usize),
    Learner(usize),
    Person,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(index) => write!(f, "C{index}"),
            Self::Actor(index) => write!(f, "A{index}"),
            Self::Learner(index) => write!(f, "L{index}"),
            Self::Person => f.write_str("P"),
        }
    }
}
