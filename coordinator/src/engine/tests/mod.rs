//! Tests of the whole engine against a simulated world: no clock, no task, no socket.

mod behaviour;
mod property;
mod schedules;
mod world;
