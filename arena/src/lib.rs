//! Tasks, the worlds they run in, and the judgement of what was done there.
//!
//! A task is named by a `TaskRef`; [`open`] turns the name into an [`Environment`]: the request, the
//! tools, a private copy of the world's state, and at the end a [`Score`]. The reward looks at the
//! outcome only: the final state, the answer, and which facts were really looked up.
//!
//! - `environment`: the traits every world implements, and the outcomes of a call
//! - `registry`: from a `TaskRef` to an open environment
//! - `split`: the seed of a task, and what keeps train, validation and test apart
//! - `draw`: seeded draws that no library version can change
//! - `market`: the built-in world, on SQLite
#![forbid(unsafe_code)]

mod draw;
mod environment;
pub mod market;
mod registry;
mod split;

pub use environment::{CallOutcome, Environment, Expert, ExpertAction, InfrastructureError, Score};
pub use registry::{OpenError, open, task, worlds};
pub use split::SPLITS;
