//! The journal as Parquet: what is in the files, that nothing is missing or there twice whatever
//! happens in between, and that the programs people use can read them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod crash;
mod expected;
mod files;
mod queries;
mod round_trip;
mod sample;
