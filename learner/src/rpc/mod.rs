//! The learner's edges: the `Weights` service it serves, and the `Training` client it is.

mod training;
mod weights;

pub use training::{Coordinator, LearnerIdentity};
pub use weights::WeightsService;
