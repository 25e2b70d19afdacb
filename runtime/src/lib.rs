//! What every Ballast process shares, so that each `main` reads as a script: parse the config,
//! build, bind, spawn, wait for a signal, drain.
//!
//! Owns: the configuration schema and its loader, telemetry, signals, exit codes, connections
//! and the search for who leads, atomic files. Does not know: any role, the wire messages, torch.

#![forbid(unsafe_code)]

pub mod atomic_file;
pub mod backoff;
pub mod config;
pub mod config_file;
pub mod exit;
pub mod leader;
pub mod memory;
pub mod net;
pub mod shutdown;
pub mod telemetry;
