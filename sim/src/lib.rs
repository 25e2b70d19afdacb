//! A whole Ballast run in one thread, under one seed: coordinators, actors, a learner, a person, a
//! network and a disk, with faults, and every promise checked at every event.
//!
//! Real: the coordinator's engine, roster, held commands, payloads, recovery, checker, and all of its
//! journal above the single calls of a disk. Scripted, by their contract: actors, learner, person.
//! Simulated: time, network, disk, election, and the loop that connects the real parts (`driver`).
//!
//! Owns: what can go wrong, and what must hold all the same. Does not know: gRPC, threads, real time.
//! Nothing depends on it.
//!
//! One seed is one run: every choice comes from `dice`, nothing iterates in hash order, nobody asks
//! the time. `README.md` has the command that plays a seed again.

#![forbid(unsafe_code)]

mod actor;
mod agenda;
mod coordinator;
mod dice;
mod disk;
mod election;
mod env;
mod faults;
mod invariants;
mod learner;
mod network;
mod node;
mod person;
mod plant;
mod run;
mod scenario;
mod totals;
mod trace;
mod world;

pub use invariants::Violation;
pub use plant::Plant;
pub use run::{Outcome, play};
pub use totals::Totals;
