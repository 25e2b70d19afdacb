//! The actors' side: streams, claims, admission, assignments.

use std::collections::BTreeSet;

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{
        Acknowledged, ActorWelcome, Discard, Drain, EpisodeDispatched, WeightSource,
        coordinator_message::Message, effect,
    },
};

use super::{
    Command, Engine, SessionEnd, SessionId, admission, dispatch::Cause, dispatch::Fate,
    event::Hello,
};

/// Heartbeats expected in the time of a lease, so that three may be late.
const HEARTBEATS_PER_LEASE: f64 = 4.0;

impl Engine {
    pub(super) fn on_actor_connected(&mut self, session: SessionId, hello: Hello) {
        let Hello { actor, generation, slots, claims } = hello;
        let joined = match self.members.connect(session, &actor, generation, slots) {
            Ok(joined) => joined,
            Err(known) => {
                let end = SessionEnd::OldGeneration { actor, offered: generation, known };
                self.push(Command::CloseSession { session, end });
                return;
            }
        };
        if let Some(session) = joined.replaced {
            self.push(Command::CloseSession { session, end: SessionEnd::Replaced(actor.clone()) });
        }
        if joined.is_reborn {
            self.cancel_all(&actor);
        }
        self.push(Command::Inform(format!("actor {actor} ({generation}) is here, {slots} slots")));
        self.welcome(session, joined.draining);
        self.settle_claims(session, &actor, &claims);
    }

    fn welcome(&mut self, session: SessionId, draining: bool) {
        let lease_ms = self.config.coordinator.actor_lease_s * 1e3;
        let heartbeat_interval_ms = (lease_ms / HEARTBEATS_PER_LEASE) as u64;
        let run_id = self.run_id.clone();
        self.send(session, Message::Welcome(ActorWelcome { heartbeat_interval_ms, run_id }));
        if let Some(learner) = self.batches.learner() {
            let address = learner.weights_address.clone();
            self.send(session, Message::WeightSource(WeightSource { address }));
        }
        if draining || !self.ending.is_running() {
            self.send(session, Message::Drain(Drain {}));
        }
    }

    /// Answers what an actor brings from an earlier stream, and cancels what it should have brought:
    /// an assignment that never reached it.
    fn settle_claims(&mut self, session: SessionId, actor: &ActorId, claims: &[EpisodeId]) {
        for episode in claims {
            match self.dispatch.fate(*episode) {
                Fate::Running(holder) if holder == actor => {}
                Fate::Finished => self.acknowledge(session, *episode),
                Fate::Running(_) | Fate::Cancelled | Fate::Unknown => {
                    self.discard(session, *episode);
                }
            }
        }
        let claimed: BTreeSet<EpisodeId> = claims.iter().copied().collect();
        for episode in self.dispatch.held_by(actor) {
            if !claimed.contains(&episode) {
                self.cancel(episode, Cause::Unclaimed, None);
            }
        }
    }

    pub(super) fn on_slots_freed(&mut self, session: SessionId, slots: u32) {
        let Some(actor) = self.members.actor(session).cloned() else { return };
        let held = self.dispatch.held_count(&actor);
        self.members.credit(&actor, slots, held);
    }

    /// Tells every actor where the weights are now.
    pub(super) fn announce_weights(&mut self, address: &str) {
        for session in self.members.sessions() {
            self.send(session, Message::WeightSource(WeightSource { address: address.to_owned() }));
        }
    }

    /// The actor may come back: what it runs stays its own until its lease ends.
    pub(super) fn on_actor_disconnected(&mut self, session: SessionId) {
        let Some(actor) = self.members.disconnect(session) else { return };
        self.push(Command::Inform(format!("the stream of actor {actor} ended")));
        if self.dispatch.held_count(&actor) == 0 {
            self.members.forget(&actor);
        }
    }

    /// Nothing was heard of an actor for the time of a lease.
    pub(super) fn on_lease_expired(&mut self, actor: &ActorId, generation: Generation) {
        let Some(member) = self.members.get(actor) else { return };
        if member.generation != generation {
            return;
        }
        if let Some(session) = member.session {
            let end = SessionEnd::LeaseExpired(actor.clone());
            self.push(Command::CloseSession { session, end });
        }
        self.push(Command::Warn(format!("actor {actor} ({generation}) is lost")));
        self.members.forget(actor);
        self.cancel_all(actor);
    }

    fn cancel_all(&mut self, actor: &ActorId) {
        for episode in self.dispatch.held_by(actor) {
            self.cancel(episode, Cause::ActorLost, None);
        }
    }

    pub(super) fn on_episode_given_back(
        &mut self,
        session: SessionId,
        episode: EpisodeId,
        reason: &str,
        tokens: u32,
    ) {
        let Some(actor) = self.members.actor(session) else { return };
        if self.dispatch.fate(episode) == Fate::Running(actor) {
            self.push(Command::Inform(format!("actor {actor} gives {episode} back: {reason}")));
            self.cancel(episode, Cause::Returned, Some(tokens));
        }
    }

    /// Opens every RL group that S1 allows.
    pub(super) fn admit(&mut self) {
        if !self.is_admitting() || self.schedule.is_stopped() {
            return;
        }
        let staleness_max = self.staleness_max();
        self.schedule.decide_to(admission::step_max(self.version, staleness_max));
        while let Some(step) = self.schedule.rl_step(self.groups.next_batch()) {
            if !admission::admitted(step, self.version, staleness_max) {
                return;
            }
            let oldest = admission::oldest_version(step, staleness_max);
            for wanted in self.groups.open(&self.config, oldest) {
                self.dispatch.want(wanted);
            }
        }
    }

    /// Hands wanted episodes to free slots, one credit each.
    pub(super) fn assign(&mut self) {
        if !self.is_admitting() || self.schedule.is_stopped() {
            return;
        }
        while self.dispatch.is_wanting() {
            let Some((session, actor)) = self.members.take_credit() else { return };
            let Some(assignment) = self.dispatch.next(&actor) else { return };
            self.effect(effect::Effect::Dispatched(EpisodeDispatched {
                episode_id: assignment.episode_id,
                group_id: assignment.group_id,
                task: assignment.task.clone(),
                mode: assignment.mode,
                generation: self.members.get(&actor).map_or(0, |member| member.generation.0),
                actor_id: actor.0,
            }));
            self.send(session, Message::Assignment(assignment));
        }
    }

    pub(super) fn acknowledge(&mut self, session: SessionId, episode: EpisodeId) {
        self.send(session, Message::Acknowledged(Acknowledged { episode_id: episode.0 }));
    }

    pub(super) fn discard(&mut self, session: SessionId, episode: EpisodeId) {
        self.send(session, Message::Discard(Discard { episode_id: episode.0 }));
    }

    pub(super) fn send(&mut self, session: SessionId, message: Message) {
        self.push(Command::Send { session, message });
    }
}
