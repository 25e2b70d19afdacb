//! Ballast's control plane: what runs where, what is trained next, and the record of both.
//!
//! Owns: the schedule, actor membership, dispatch, RL groups, batches, the journal, the admin API.
//! Does not know: torch, the worlds tasks run in, how a policy samples or learns.
//!
//! [`engine`] decides and is pure; [`driver`] records its events and runs what it decided; [`rpc`]
//! speaks to the outside; [`recovery`] rebuilds the engine from the journal.

#![forbid(unsafe_code)]

pub mod check;
pub mod compaction;
pub mod driver;
pub mod driver_error;
pub mod engine;
pub mod entry;
pub mod held;
pub mod inputs;
pub mod journal;
pub mod lookup;
pub mod metrics;
pub mod payloads;
pub mod process;
pub mod rebuild;
pub mod recovery;
pub mod replay;
pub mod result;
pub mod roster;
pub mod rpc;
pub mod run_directory;
pub mod serving;
pub mod standby;
pub mod store;
