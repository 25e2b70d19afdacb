//! The training role: batches in, weight versions out.
//!
//! Owns: algorithms, losses, the optimizer, the training step, checkpoints and the publication of
//! weights.
//! Does not know: how tasks are chosen, how episodes are run, when to switch between RL and SFT.
//! Invariants: a batch is one optimizer step and one policy version, +1 each (V1); a step with a
//! non-finite number is skipped; a checkpoint appears under its name only when complete.

pub mod algorithm;
pub mod bench;
pub mod checkpoint;
pub mod companions;
pub mod driver;
pub mod loss;
pub mod new_model;
pub mod optimizer;
pub mod publish;
pub mod rpc;
pub mod train;
pub mod worker;
