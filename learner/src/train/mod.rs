//! One optimizer step: samples -> micro-batches -> forward -> loss -> backward -> clip -> update.

mod micro_batch;
mod step;

pub use micro_batch::MicroBatch;
pub use step::{LossKind, Part, StepReport, Trainer};
