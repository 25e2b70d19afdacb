//! Who is here: actors, their incarnations, streams and credits.
//!
//! Owns: one entry per actor, for as long as its lease. Does not know: what an actor is running (that
//! is `dispatch`), nor when its lease ends (that is the roster's, outside the engine).
//! Invariants: an actor has at most one open session, and it is of the newest generation seen; only
//! an actor with an open session that is not draining has credits. Draining is an incarnation's: it
//! outlasts a stream, and a newer incarnation begins without it.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::{ActorId, CLAIMS_PER_SLOT_MAX, Generation};
use serde::{Deserialize, Serialize};

use super::event::SessionId;

/// An actor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) generation: Generation,
    /// Its stream; `None` while it is away.
    pub(super) session: Option<SessionId>,
    /// Episodes it can run at once: the upper bound of its credits.
    slots: u32,
    /// Assignments it has asked for and not received.
    credits: u32,
    pub(super) draining: bool,
}

/// All actors.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Membership {
    members: BTreeMap<ActorId, Member>,
    sessions: BTreeMap<SessionId, ActorId>,
    /// Actors with credits, those with the most last.
    idle: BTreeSet<(u32, SessionId)>,
}

/// What an actor that was let in takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// Its earlier stream, if that is still open.
    pub(super) replaced: Option<SessionId>,
    /// Whether it is a newer incarnation, which has nothing of what the older one ran.
    pub(super) is_reborn: bool,
    /// Whether it was told to take nothing new.
    pub(super) draining: bool,
}

impl Membership {
    /// Lets an actor in.
    ///
    /// # Errors
    /// The newest generation seen, if it is newer than the one offered.
    pub(super) fn connect(
        &mut self,
        session: SessionId,
        actor: &ActorId,
        generation: Generation,
        slots: u32,
    ) -> Result<Joined, Generation> {
        let known = self.members.get(actor);
        if let Some(newer) = known.map(|member| member.generation).filter(|one| *one > generation) {
            return Err(newer);
        }
        let is_reborn = known.is_some_and(|member| member.generation < generation);
        let draining = known.is_some_and(|member| member.draining && !is_reborn);
        let replaced = known.and_then(|member| member.session);
        if let Some(old) = replaced {
            self.disconnect(old);
        }
        let member = Member { generation, session: Some(session), slots, credits: 0, draining };
        self.members.insert(actor.clone(), member);
        self.sessions.insert(session, actor.clone());
        Ok(Joined { replaced, is_reborn, draining })
    }

    /// A stream has ended; its actor stays, without credits. Returns the actor.
    pub(super) fn disconnect(&mut self, session: SessionId) -> Option<ActorId> {
        let actor = self.sessions.remove(&session)?;
        self.set_credits(&actor, |_| 0);
        if let Some(member) = self.members.get_mut(&actor) {
            member.session = None;
        }
        Some(actor)
    }

    /// All streams have ended.
    pub(super) fn disconnect_all(&mut self) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.disconnect(session);
        }
    }

    /// Forgets an actor, with its stream if it has one.
    pub(super) fn forget(&mut self, actor: &ActorId) {
        if let Some(session) = self.members.get(actor).and_then(|member| member.session) {
            self.disconnect(session);
        }
        self.members.remove(actor);
    }

    /// The actor behind an open stream.
    pub(super) fn actor(&self, session: SessionId) -> Option<&ActorId> {
        self.sessions.get(&session)
    }

    pub(super) fn get(&self, actor: &ActorId) -> Option<&Member> {
        self.members.get(actor)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ActorId, &Member)> {
        self.members.iter()
    }

    /// Open streams, in order.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Whether nobody is counted on.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether no stream is open.
    pub(super) fn is_deserted(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Marks an actor as draining: it gets nothing new. Returns its stream, if it has one.
    pub(super) fn drain(&mut self, actor: &ActorId) -> Option<SessionId> {
        self.set_credits(actor, |_| 0);
        let member = self.members.get_mut(actor)?;
        member.draining = true;
        member.session
    }

    /// Adds credits to an actor with `held` episodes in flight, never beyond the slots it said it
    /// has, nor beyond what it may hold: an actor that floods gets no more than that.
    pub(super) fn credit(&mut self, actor: &ActorId, slots: u32, held: usize) {
        let Some(member) = self.members.get(actor) else { return };
        let room = (member.slots as usize * CLAIMS_PER_SLOT_MAX).saturating_sub(held);
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        self.set_credits(actor, |credits| credits.saturating_add(slots).min(room));
    }

    /// Takes one credit from the actor that has the most, so that work spreads evenly.
    pub(super) fn take_credit(&mut self) -> Option<(SessionId, ActorId)> {
        let (_, session) = *self.idle.last()?;
        let actor = self.sessions.get(&session)?.clone();
        self.set_credits(&actor, |credits| credits.saturating_sub(1));
        Some((session, actor))
    }

    fn set_credits(&mut self, actor: &ActorId, change: impl FnOnce(u32) -> u32) {
        let Some(member) = self.members.get_mut(actor) else { return };
        let Some(session) = member.session else { return };
        self.idle.remove(&(member.credits, session));
        let most = if member.draining { 0 } else { member.slots };
        member.credits = change(member.credits).min(most);
        if member.credits > 0 {
            self.idle.insert((member.credits, session));
        }
    }
}

#[cfg(test)]
#[path = "membership_test.rs"]
mod tests;
