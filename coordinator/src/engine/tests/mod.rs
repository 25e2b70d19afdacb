//! Tests of the whole engine against a simulated world: no clock, no task, no socket.

mod actors;
mod bad_input;
mod bounds;
mod failover;
mod learner;
mod peers;
mod promises;
mod property;
mod run;
mod schedules;
mod snapshot;
mod world;
