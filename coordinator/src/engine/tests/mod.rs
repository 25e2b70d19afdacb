//! Tests of the whole engine against a simulated world: no clock, no task, no socket.

mod actors;
mod learner;
mod peers;
mod promises;
mod property;
mod run;
mod schedules;
mod world;
