//! Ballast's rollout role: takes assignments, runs tool episodes with the newest policy, and reports
//! their trajectories. An actor is stateless: everything it holds, a new one can fetch.
//!
//! - `episode`: one episode as a pure state machine
//! - `engine`: many episodes at once over one decoder, on a thread of its own
//! - `decoder`: what the engine needs of a language model
//! - `external`: that, in a server outside this process (vLLM, SGLang, another actor's `serve`)
//! - `weights`: follows the learner's published policies
//! - `session`: the streams to the coordinator, one after another
//! - `serve`: the same decoder behind an OpenAI-compatible HTTP server, for other programs
//!
//! Owns: rollouts. Does not know: schedules, groups, training, where trajectories end up.
//! Invariants: every assignment ends in exactly one report, or with the run it belongs to, or when
//! nobody waits for it any more; a trajectory leaves only after it passed M1; a token carries the
//! version it was sampled under.

#![forbid(unsafe_code)]

pub mod assignment;
pub mod counters;
pub mod decoder;
pub mod engine;
pub mod episode;
pub mod external;
pub mod health;
pub mod language;
pub mod serve;
pub mod session;
pub mod token_lists;
pub mod weights;

#[cfg(feature = "torch")]
pub mod bench;
#[cfg(feature = "torch")]
pub mod generate;
#[cfg(feature = "torch")]
pub mod model;
#[cfg(feature = "torch")]
pub mod score;
#[cfg(feature = "torch")]
pub mod torch_decoder;

#[cfg(test)]
mod testing;
