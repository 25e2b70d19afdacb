//! Who is here: actor sessions, their generations, leases and credits.
//!
//! Owns: one entry per open session. Does not know: what an actor is running (that is `dispatch`).
//! Invariant: an actor name has at most one open session, and it is of the newest generation seen.

use std::{collections::BTreeMap, time::Duration};

use ballast_proto::{ActorId, Generation, v1::Heartbeat};

use super::event::SessionId;

/// An open actor session.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) actor: ActorId,
    pub(super) generation: Generation,
    /// Episodes the actor can run at once: the upper bound of its credits.
    slots: u32,
    /// Assignments the actor has asked for and not received.
    credits: u32,
    /// When its last message came.
    pub(super) heard: Duration,
    pub(super) heartbeat: Heartbeat,
    pub(super) draining: bool,
}

/// All open sessions.
#[derive(Debug)]
pub(super) struct Membership {
    lease: Duration,
    members: BTreeMap<SessionId, Member>,
    generations: BTreeMap<ActorId, Generation>,
}

impl Membership {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, members: BTreeMap::new(), generations: BTreeMap::new() }
    }

    /// Lets an actor in. Returns the session it replaces.
    ///
    /// # Errors
    /// The newest generation seen, if it is newer than the one offered.
    pub(super) fn connect(
        &mut self,
        now: Duration,
        session: SessionId,
        actor: ActorId,
        generation: Generation,
        slots: u32,
    ) -> Result<Option<SessionId>, Generation> {
        let known = self.generations.entry(actor.clone()).or_insert(generation);
        if *known > generation {
            return Err(*known);
        }
        *known = generation;
        let replaced =
            self.members.iter().find(|(_, member)| member.actor == actor).map(|(id, _)| *id);
        let member = Member {
            actor,
            generation,
            slots,
            credits: 0,
            heard: now,
            heartbeat: Heartbeat::default(),
            draining: false,
        };
        self.members.insert(session, member);
        Ok(replaced)
    }

    /// Renews a lease. Returns the member, or `None` when the session is not open any more.
    pub(super) fn hear(&mut self, now: Duration, session: SessionId) -> Option<&mut Member> {
        let member = self.members.get_mut(&session)?;
        member.heard = now;
        Some(member)
    }

    pub(super) fn remove(&mut self, session: SessionId) -> Option<Member> {
        self.members.remove(&session)
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Member> {
        self.members.get(&session)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Member)> {
        self.members.iter().map(|(session, member)| (*session, member))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Marks everybody as draining. Returns the sessions to tell.
    pub(super) fn drain(&mut self) -> Vec<SessionId> {
        self.members.values_mut().for_each(|member| member.draining = true);
        self.members.keys().copied().collect()
    }

    /// Takes one credit from the member that has the most, so that work spreads evenly.
    pub(super) fn take_credit(&mut self) -> Option<SessionId> {
        let idle = self.members.iter_mut().filter(|(_, member)| member.credits > 0);
        // max_by_key keeps the last of equals; the id makes the choice total.
        let (session, member) = idle.max_by_key(|(id, member)| (member.credits, **id))?;
        member.credits -= 1;
        Some(*session)
    }

    /// Gives back a credit that found no work.
    pub(super) fn restore_credit(&mut self, session: SessionId) {
        if let Some(member) = self.members.get_mut(&session) {
            member.credit(1);
        }
    }

    /// A session whose lease has run out.
    pub(super) fn expired(&self, now: Duration) -> Option<SessionId> {
        let late = |member: &Member| now >= member.heard + self.lease;
        self.members.iter().find(|(_, member)| late(member)).map(|(session, _)| *session)
    }

    /// When the next lease runs out, if nothing is heard.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        self.members.values().map(|member| member.heard + self.lease).min()
    }

    /// Interval at which heartbeats are expected: four in a lease, so that three may be late.
    pub(super) fn heartbeat_interval(&self) -> Duration {
        self.lease / 4
    }
}

impl Member {
    /// Adds credits, never beyond the slots the actor said it has.
    pub(super) fn credit(&mut self, slots: u32) {
        self.credits = self.credits.saturating_add(slots).min(self.slots);
    }
}
