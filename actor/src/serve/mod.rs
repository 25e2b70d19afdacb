//! `ballast-actor serve`: an OpenAI-compatible server over one checkpoint, so that any agent can be
//! pointed at it.
//!
//! Owns: HTTP, the wire format, the queue, continuous batching of requests.
//! Does not know: episodes, worlds, the coordinator. Its decoder is the engine's, its scheduler its
//! own: a request is one completion, not an episode.
//!
//! A request passes through `http` (bytes), `openai` (meaning), `queue` (waiting), `decoding` and
//! `batch` (tokens, on a thread of their own), and back through `events`. Weights are replaced through
//! `weight_updates`, which waits in the same queue.

pub mod batch;
pub mod decoding;
pub mod events;
pub mod http;
pub mod message_reader;
pub mod metrics;
pub mod openai;
pub mod prompt;
pub mod queue;
pub mod sequence;
pub mod served_model;
pub mod stop;
pub mod text;
pub mod weight_updates;

#[cfg(feature = "torch")]
mod process;
#[cfg(feature = "torch")]
mod reload;

#[cfg(feature = "torch")]
pub use self::process::{ServeArgs, run};
