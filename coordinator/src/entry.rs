//! Events as the journal keeps them, and back.

use std::{sync::Arc, time::Duration};

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{self, Effect, JournalEntry, RunCreated, effect, journal_entry::Event as Wire},
};

use crate::engine::{CallId, Event, Hello, SessionId, StreamId};

/// What an entry holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// The first one: which run this is.
    Created(RunCreated),
    /// Any other.
    Handled {
        /// Time since the start of the run.
        now: Duration,
        /// What happened.
        event: Event,
        /// What it led to.
        effects: Vec<Effect>,
    },
}

/// An entry that this version of the program cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry lacks {0}; it was written by another version of the program")]
pub struct Unreadable(&'static str);

/// The first entry of a journal.
#[must_use]
pub fn created(run: RunCreated) -> JournalEntry {
    JournalEntry { event: Some(Wire::RunCreated(run)), ..JournalEntry::default() }
}

/// The entry of an event; its effects are added once they are known.
#[must_use]
pub fn of_event(now: Duration, event: &Event) -> JournalEntry {
    let (session, event) = to_wire(event);
    let t_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    JournalEntry { t_us, session, event: Some(event), effects: Vec::new() }
}

/// Time as an entry keeps it: whole microseconds, so that a rebuild is told what the engine was.
#[must_use]
pub fn whole_micros(now: Duration) -> Duration {
    Duration::from_micros(u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// The episode an event finished: its trajectory belongs into the record. A second copy does not.
#[must_use]
pub fn finished_episode(effects: &[Effect]) -> Option<EpisodeId> {
    effects.iter().find_map(|effect| match &effect.effect {
        Some(effect::Effect::Finished(finished)) => Some(EpisodeId(finished.episode_id)),
        _ => None,
    })
}

/// Whether the trajectory that came with an event belongs into its record: it ends its episode, as a
/// finished one or as one that was refused and may be looked at. A second copy does not, nor does one
/// that nobody waits for.
#[must_use]
pub fn keeps_payload(event: &Event, effects: &[Effect]) -> bool {
    let ends = |effect: &Effect| {
        matches!(effect.effect, Some(effect::Effect::Finished(_) | effect::Effect::Cancelled(_)))
    };
    let has_one =
        matches!(event, Event::TrajectoryReported { .. } | Event::TrajectoryInvalid { .. });
    has_one && effects.iter().any(ends)
}

fn to_wire(event: &Event) -> (Option<u64>, Wire) {
    match event {
        Event::CoordinatorStarted { term } => {
            (None, Wire::CoordinatorStarted(v1::CoordinatorStarted { term: *term }))
        }
        Event::ActorConnected { session, hello } => {
            let connected = v1::ActorConnected {
                actor_id: hello.actor.0.clone(),
                generation: hello.generation.0,
                slots: hello.slots,
                claims: hello.claims.iter().map(|episode| episode.0).collect(),
            };
            (Some(session.0), Wire::ActorConnected(connected))
        }
        Event::ActorDisconnected { session } => {
            (Some(session.0), Wire::ActorDisconnected(v1::ActorDisconnected {}))
        }
        Event::LeaseExpired { actor, generation } => {
            let expired = v1::LeaseExpired { actor_id: actor.0.clone(), generation: generation.0 };
            (None, Wire::LeaseExpired(expired))
        }
        Event::SlotsFreed { session, slots } => {
            (Some(session.0), Wire::SlotsFreed(v1::SlotsFreed { slots: *slots }))
        }
        Event::TrajectoryReported { session, trajectory } => {
            (Some(session.0), Wire::TrajectoryReported(trajectory.as_ref().clone()))
        }
        Event::TrajectoryInvalid { session, episode, fault } => {
            let invalid = v1::TrajectoryInvalid { episode_id: episode.0, fault: fault.clone() };
            (Some(session.0), Wire::TrajectoryInvalid(invalid))
        }
        Event::EpisodeGivenBack { session, episode, reason, tokens } => {
            let given_back = v1::EpisodeGivenBack {
                episode_id: episode.0,
                reason: reason.clone(),
                tokens: *tokens,
            };
            (Some(session.0), Wire::EpisodeGivenBack(given_back))
        }
        Event::LearnerConnected { stream, request } => {
            let connected = v1::LearnerConnected { request: Some(request.clone()) };
            (Some(stream.0), Wire::LearnerConnected(connected))
        }
        Event::LearnerDisconnected { stream } => {
            (Some(stream.0), Wire::LearnerDisconnected(v1::LearnerDisconnected {}))
        }
        Event::StepCompleted { request, actors, .. } => {
            let completed =
                v1::StepCompleted { request: Some(request.clone()), actors: actors.clone() };
            (None, Wire::StepCompleted(completed))
        }
        Event::AdminRequested { who, change, .. } => {
            let requested = v1::AdminRequested { who: who.clone(), change: Some(change.clone()) };
            (None, Wire::AdminRequested(requested))
        }
        Event::DeadlineReached => (None, Wire::DeadlineReached(v1::DeadlineReached {})),
    }
}

/// Reads an entry. Calls have lost their callers: they are all number 0.
///
/// # Errors
/// A part is missing that every version so far has written.
pub fn read(entry: JournalEntry) -> Result<Entry, Unreadable> {
    let JournalEntry { t_us, event, session, effects } = entry;
    let event = event.ok_or(Unreadable("its event"))?;
    if let Wire::RunCreated(run) = event {
        return Ok(Entry::Created(run));
    }
    let event = from_wire(event, session)?;
    Ok(Entry::Handled { now: Duration::from_micros(t_us), event, effects })
}

fn from_wire(event: Wire, session: Option<u64>) -> Result<Event, Unreadable> {
    let stream = || session.ok_or(Unreadable("its stream"));
    let call = CallId(0);
    Ok(match event {
        Wire::RunCreated(_) => return Err(Unreadable("a place after the first")),
        Wire::CoordinatorStarted(one) => Event::CoordinatorStarted { term: one.term },
        Wire::ActorConnected(one) => Event::ActorConnected {
            session: SessionId(stream()?),
            hello: Hello {
                actor: ActorId(one.actor_id),
                generation: Generation(one.generation),
                slots: one.slots,
                claims: one.claims.into_iter().map(EpisodeId).collect(),
            },
        },
        Wire::ActorDisconnected(_) => Event::ActorDisconnected { session: SessionId(stream()?) },
        Wire::LeaseExpired(one) => Event::LeaseExpired {
            actor: ActorId(one.actor_id),
            generation: Generation(one.generation),
        },
        Wire::SlotsFreed(one) => {
            Event::SlotsFreed { session: SessionId(stream()?), slots: one.slots }
        }
        Wire::TrajectoryReported(one) => {
            Event::TrajectoryReported { session: SessionId(stream()?), trajectory: Arc::new(one) }
        }
        Wire::TrajectoryInvalid(one) => Event::TrajectoryInvalid {
            session: SessionId(stream()?),
            episode: EpisodeId(one.episode_id),
            fault: one.fault,
        },
        Wire::EpisodeGivenBack(one) => Event::EpisodeGivenBack {
            session: SessionId(stream()?),
            episode: EpisodeId(one.episode_id),
            reason: one.reason,
            tokens: one.tokens,
        },
        Wire::LearnerConnected(one) => Event::LearnerConnected {
            stream: StreamId(stream()?),
            request: one.request.ok_or(Unreadable("a learner's request"))?,
        },
        Wire::LearnerDisconnected(_) => Event::LearnerDisconnected { stream: StreamId(stream()?) },
        Wire::StepCompleted(one) => Event::StepCompleted {
            call,
            request: one.request.ok_or(Unreadable("a finished step"))?,
            actors: one.actors,
        },
        Wire::AdminRequested(one) => Event::AdminRequested {
            call,
            who: one.who,
            change: one.change.ok_or(Unreadable("a change"))?,
        },
        Wire::DeadlineReached(_) => Event::DeadlineReached,
    })
}

#[cfg(test)]
#[path = "entry_test.rs"]
mod tests;
