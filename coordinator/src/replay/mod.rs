//! A run's training once more, from its journal alone.
//!
//! Owns: which batches a stretch of a run is made of, and serving them to a learner byte for byte as
//! the run did. Does not know: the engine, which would decide anew; weights.
//!
//! [`Recording`] is what the journal says of the training, [`Excerpt`] the part of it that is
//! replayed, and [`serve`] gives that to one learner.

mod recording;
mod server;

pub use recording::{Excerpt, Recording, ReplayError, Weights};
pub use server::{REPORTS_MAX, Report, serve};
