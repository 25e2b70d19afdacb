//! What the services (`rpc`) make of a message before the driver sees it: checks, summaries, numbers
//! for sessions, streams and calls.

use std::{collections::BTreeMap, sync::Arc};

use ballast_coordinator::engine::{CallId, Event, Hello, SessionId, StreamId, summarize};
use ballast_proto::{
    ActorId, CLAIMS_PER_SLOT_MAX, EpisodeId, Generation,
    v1::{
        ActorHello, Heartbeat, Mode, StopReason, Trajectory, TrajectorySummary,
        actor_message::Message as FromActor,
    },
    verify_trajectory,
};
use bytes::Bytes;
use prost::Message as _;

use crate::{
    env::Env,
    network::{LinkId, Message},
    plant::Plant,
};

/// What comes into the loop, and the way back where there is one.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    Heartbeat(SessionId, Heartbeat),
    Session(SessionId, Event, LinkId),
    /// With the trajectory as the journal keeps it.
    Trajectory(SessionId, Event, Bytes),
    Learner(StreamId, Event, LinkId),
    /// With the number of the call at its caller.
    Step(CallId, Event, (LinkId, u64)),
    Change(CallId, Event, LinkId),
}

/// Who is behind a link.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Actor(SessionId),
    Learner(StreamId),
}

/// The links of a coordinator.
#[derive(Debug, Default)]
pub(super) struct Door {
    peers: BTreeMap<LinkId, Peer>,
    /// Numbers start again with every process.
    ids: u64,
}

impl Door {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids - 1
    }

    /// What a message comes to; nothing if nobody may say it now.
    pub(super) fn take(
        &mut self,
        env: &mut Env,
        run_id: &str,
        link: LinkId,
        message: Message,
    ) -> Option<Input> {
        match message {
            Message::Actor(FromActor::Hello(hello)) => self.on_hello(env, run_id, link, hello),
            Message::Actor(message) => {
                let Some(Peer::Actor(session)) = self.peers.get(&link).copied() else {
                    return None;
                };
                Some(on_actor(env, session, message))
            }
            Message::NextBatch(request) => {
                let stream = StreamId(self.id());
                self.peers.insert(link, Peer::Learner(stream));
                Some(Input::Learner(stream, Event::LearnerConnected { stream, request }, link))
            }
            Message::CompleteStep(number, request) => {
                let call = CallId(self.id());
                let event = Event::StepCompleted { call, request, actors: BTreeMap::new() };
                Some(Input::Step(call, event, (link, number)))
            }
            Message::Change(change) => {
                let call = CallId(self.id());
                let event = Event::AdminRequested { call, who: "a person".into(), change };
                Some(Input::Change(call, event, link))
            }
            Message::Coordinator(_)
            | Message::Refused(_)
            | Message::Accepted
            | Message::Batch(_)
            | Message::StepAnswer(..)
            | Message::ChangeAnswer(_) => None,
        }
    }

    /// The other side of a link is gone.
    pub(super) fn end(&mut self, link: LinkId) -> Option<Input> {
        Some(Input::Event(match self.peers.remove(&link)? {
            Peer::Actor(session) => Event::ActorDisconnected { session },
            Peer::Learner(stream) => Event::LearnerDisconnected { stream },
        }))
    }

    fn on_hello(
        &mut self,
        env: &mut Env,
        run_id: &str,
        link: LinkId,
        hello: ActorHello,
    ) -> Option<Input> {
        if hello.claims.len() > CLAIMS_PER_SLOT_MAX * hello.slots as usize {
            env.oracle.broken("B1", format!("{} claims", hello.claims.len()));
            return None;
        }
        let is_ours = hello.run_id == run_id && !env.has(Plant::LoseClaims);
        let claims = if is_ours { hello.claims } else { Vec::new() };
        let session = SessionId(self.id());
        self.peers.insert(link, Peer::Actor(session));
        let hello = Hello {
            actor: ActorId(hello.actor_id),
            generation: Generation(hello.generation),
            slots: hello.slots,
            claims: claims.into_iter().map(EpisodeId).collect(),
        };
        Some(Input::Session(session, Event::ActorConnected { session, hello }, link))
    }
}

fn on_actor(env: &Env, session: SessionId, message: FromActor) -> Input {
    match message {
        FromActor::Heartbeat(heartbeat) => Input::Heartbeat(session, heartbeat),
        FromActor::Trajectory(trajectory) => on_trajectory(env, session, &trajectory),
        FromActor::SlotsFree(free) => {
            let factor = if env.has(Plant::DoubleCredits) { 2 } else { 1 };
            Input::Event(Event::SlotsFreed { session, slots: free.slots * factor })
        }
        FromActor::Returned(returned) => Input::Event(Event::EpisodeGivenBack {
            session,
            episode: EpisodeId(returned.episode_id),
            reason: returned.reason,
            tokens: returned.tokens,
        }),
        // A second hello ends the stream; no actor says one.
        FromActor::Hello(_) => Input::Event(Event::ActorDisconnected { session }),
    }
}

fn on_trajectory(env: &Env, session: SessionId, trajectory: &Trajectory) -> Input {
    let checked = match env.has(Plant::UncheckedArrays) {
        true => Ok(()),
        false => verify_trajectory(trajectory),
    };
    let event = match checked {
        Ok(()) => {
            let mut summary = summarize(trajectory);
            embellish(env, &mut summary);
            Event::TrajectoryReported { session, trajectory: Arc::new(summary) }
        }
        Err(fault) => {
            let episode = EpisodeId(trajectory.episode_id);
            Event::TrajectoryInvalid { session, episode, fault: fault.to_string() }
        }
    };
    Input::Trajectory(session, event, Bytes::from(trajectory.encode_to_vec()))
}

/// Planted bugs in the summary.
fn embellish(env: &Env, summary: &mut TrajectorySummary) {
    if env.has(Plant::AcceptStale) {
        summary.oldest_version = summary.oldest_version.map(|_| u64::MAX);
    }
    let failed = summary.stop_reason() == StopReason::Infrastructure;
    if env.has(Plant::FailureAsZero) && failed && summary.mode() == Mode::Explore {
        summary.stop_reason = StopReason::Done.into();
        summary.reward = Some(0.0);
    }
}
