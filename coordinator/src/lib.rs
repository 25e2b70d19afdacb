//! Ballast's control plane: what runs where, what is trained next, and the record of both.
//!
//! Owns: the schedule, actor membership, dispatch, RL groups, batches, the journal, the admin API.
//! Does not know: torch, the worlds tasks run in, how a policy samples or learns.
//!
//! [`engine`] decides and is pure; [`driver`] runs what it decided; [`rpc`] speaks to the outside.

#![forbid(unsafe_code)]

pub mod driver;
pub mod engine;
pub mod journal;
pub mod journal_writer;
pub mod metrics;
pub mod process;
pub mod result;
pub mod rpc;
pub mod run_directory;
pub mod wal;
