//! The actors' side: sessions, leases, admission, assignments.

use std::time::Duration;

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{ActorWelcome, Drain, WeightSource, coordinator_message::Message},
};

use super::{Command, Engine, SessionEnd, SessionId, admission};

impl Engine {
    pub(super) fn on_actor_connected(
        &mut self,
        now: Duration,
        session: SessionId,
        actor: ActorId,
        generation: Generation,
        slots: u32,
    ) {
        match self.members.connect(now, session, actor.clone(), generation, slots) {
            Err(known) => {
                let end = SessionEnd::OldGeneration { actor, offered: generation, known };
                self.push(Command::CloseSession { session, end });
            }
            Ok(replaced) => {
                if let Some(old) = replaced {
                    self.end_session(old, "replaced", Some(SessionEnd::Replaced(actor.clone())));
                }
                self.push(Command::Inform(format!(
                    "actor {actor} ({generation}) is here with {slots} slots"
                )));
                self.welcome(session);
            }
        }
    }

    fn welcome(&mut self, session: SessionId) {
        let heartbeat_interval_ms = self.members.heartbeat_interval().as_millis() as u64;
        let message =
            Message::Welcome(ActorWelcome { heartbeat_interval_ms, ..Default::default() });
        self.push(Command::Send { session, message });
        if let Some(learner) = self.batches.learner() {
            let address = learner.weights_address.clone();
            let message = Message::WeightSource(WeightSource { address });
            self.push(Command::Send { session, message });
        }
        if !self.ending.is_running() {
            self.push(Command::Send { session, message: Message::Drain(Drain {}) });
        }
    }

    /// Tells every actor where the weights are now.
    pub(super) fn announce_weights(&mut self, address: &str) {
        let sessions: Vec<SessionId> = self.members.iter().map(|(session, _)| session).collect();
        for session in sessions {
            let message = Message::WeightSource(WeightSource { address: address.to_owned() });
            self.push(Command::Send { session, message });
        }
    }

    pub(super) fn on_actor_disconnected(&mut self, session: SessionId) {
        if let Some(member) = self.members.get(session) {
            let text = format!("actor {} ({}) left", member.actor, member.generation);
            self.push(Command::Inform(text));
        }
        self.end_session(session, "actor_lost", None);
    }

    /// Ends sessions that were silent for the time of a lease.
    pub(super) fn expire_leases(&mut self, now: Duration) {
        while let Some(session) = self.members.expired(now) {
            let Some(member) = self.members.get(session) else { return };
            let end = SessionEnd::LeaseExpired(member.actor.clone());
            self.push(Command::Warn(end.to_string()));
            self.end_session(session, "actor_lost", Some(end));
        }
    }

    /// Forgets a session and queues again what ran over it. `end` is what to tell the actor, if its
    /// stream is still open.
    fn end_session(&mut self, session: SessionId, reason: &str, end: Option<SessionEnd>) {
        if self.members.remove(session).is_none() {
            return;
        }
        for episode in self.dispatch.running_on(session) {
            self.cancel(episode, reason);
        }
        if let Some(end) = end {
            self.push(Command::CloseSession { session, end });
        }
    }

    pub(super) fn on_episode_returned(
        &mut self,
        session: SessionId,
        episode: EpisodeId,
        reason: &str,
    ) {
        if self.dispatch.fate(episode) == super::dispatch::Fate::Running(session) {
            self.push(Command::Inform(format!("episode {episode} was given back: {reason}")));
            self.cancel(episode, "returned");
        }
    }

    /// Opens every RL group that S1 allows.
    pub(super) fn admit(&mut self) {
        if !self.is_admitting() || self.schedule.is_stopped() {
            return;
        }
        let staleness_max = self.config.rl.staleness_max;
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
        while let Some(session) = self.members.take_credit() {
            let Some(assignment) = self.dispatch.next(session) else {
                self.members.restore_credit(session);
                return;
            };
            self.push(Command::Send { session, message: Message::Assignment(assignment) });
        }
    }
}
