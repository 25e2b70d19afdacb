//! Leases of the actors and what they said last. Pure, and beside the engine: a heartbeat changes
//! nothing that is worth a line in the journal. What does, an actor that is lost, becomes an event.

use std::{collections::BTreeMap, time::Duration};

use ballast_proto::{ActorId, Generation, v1::Heartbeat};

use crate::engine::SessionId;

/// An actor that is known.
#[derive(Debug)]
struct Place {
    generation: Generation,
    session: Option<SessionId>,
    /// When its last message came.
    heard: Duration,
    heartbeat: Heartbeat,
}

/// All actors that have a lease.
#[derive(Debug)]
pub struct Roster {
    lease: Duration,
    places: BTreeMap<ActorId, Place>,
    sessions: BTreeMap<SessionId, ActorId>,
    /// No lease ends before this; exact when it has come.
    next_expiry: Option<Duration>,
}

impl Roster {
    /// Nobody is here.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self { lease, places: BTreeMap::new(), sessions: BTreeMap::new(), next_expiry: None }
    }

    /// An actor is here from now on, over a stream, or away, as after a failover.
    pub fn join(
        &mut self,
        now: Duration,
        actor: &ActorId,
        generation: Generation,
        session: Option<SessionId>,
    ) {
        let place = self.places.entry(actor.clone()).or_insert(Place {
            generation,
            session,
            heard: now,
            heartbeat: Heartbeat::default(),
        });
        if place.generation > generation {
            return;
        }
        if place.generation < generation {
            place.heartbeat = Heartbeat::default();
        }
        (place.generation, place.heard) = (generation, now);
        if let Some(old) = std::mem::replace(&mut place.session, session) {
            self.sessions.remove(&old);
        }
        self.sessions.extend(session.map(|session| (session, actor.clone())));
        self.next_expiry.get_or_insert(now + self.lease);
    }

    /// A message came over a stream: its actor's lease begins anew.
    pub fn hear(&mut self, now: Duration, session: SessionId) {
        let actor = self.sessions.get(&session);
        if let Some(place) = actor.and_then(|actor| self.places.get_mut(actor)) {
            place.heard = now;
        }
    }

    /// A heartbeat came.
    pub fn beat(&mut self, now: Duration, session: SessionId, heartbeat: Heartbeat) {
        self.hear(now, session);
        let actor = self.sessions.get(&session);
        if let Some(place) = actor.and_then(|actor| self.places.get_mut(actor)) {
            place.heartbeat = heartbeat;
        }
    }

    /// A stream ended; the lease runs on.
    pub fn disconnect(&mut self, session: SessionId) {
        let actor = self.sessions.remove(&session);
        if let Some(place) = actor.and_then(|actor| self.places.get_mut(&actor)) {
            place.session = None;
        }
    }

    /// Forgets the actors that the engine does not know any more.
    pub fn retain(&mut self, known: impl Fn(&ActorId) -> bool) {
        self.places.retain(|actor, _| known(actor));
        self.sessions.retain(|_, actor| self.places.contains_key(actor));
    }

    /// The actors whose lease has run out; they are forgotten.
    pub fn expire(&mut self, now: Duration) -> Vec<(ActorId, Generation)> {
        let late = |place: &Place| now >= place.heard + self.lease;
        let expired = self.places.iter().filter(|(_, place)| late(place));
        let expired: Vec<_> = expired.map(|(id, place)| (id.clone(), place.generation)).collect();
        for (actor, _) in &expired {
            if let Some(session) = self.places.remove(actor).and_then(|place| place.session) {
                self.sessions.remove(&session);
            }
        }
        self.next_expiry = self.places.values().map(|place| place.heard + self.lease).min();
        expired
    }

    /// When to call [`Roster::expire`] next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.next_expiry
    }

    /// (age of the last message, last heartbeat) of an actor.
    #[must_use]
    pub fn seen(&self, now: Duration, actor: &ActorId) -> Option<(Duration, &Heartbeat)> {
        let place = self.places.get(actor)?;
        Some((now.saturating_sub(place.heard), &place.heartbeat))
    }

    /// Newest heartbeats of the actors that are here.
    pub fn heartbeats(&self) -> impl Iterator<Item = &Heartbeat> {
        self.places.values().filter(|place| place.session.is_some()).map(|place| &place.heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn actor(name: &str) -> ActorId {
        ActorId(name.into())
    }

    #[test]
    fn a_lease_ends_unless_something_is_heard() {
        let mut roster = Roster::new(LEASE);
        roster.join(s(0), &actor("a"), Generation(1), Some(SessionId(1)));
        roster.join(s(0), &actor("b"), Generation(1), Some(SessionId(2)));
        roster.hear(s(5), SessionId(1));
        assert_eq!(roster.next_expiry(), Some(s(10)));
        assert_eq!(roster.expire(s(10)), [(actor("b"), Generation(1))]);
        assert_eq!(roster.next_expiry(), Some(s(15)));
        assert_eq!(roster.expire(s(15)), [(actor("a"), Generation(1))]);
        assert_eq!(roster.next_expiry(), None);
    }

    #[test]
    fn an_actor_that_is_away_keeps_its_lease_until_it_ends() {
        let mut roster = Roster::new(LEASE);
        roster.join(s(0), &actor("a"), Generation(1), Some(SessionId(1)));
        roster.disconnect(SessionId(1));
        assert_eq!(roster.heartbeats().count(), 0);
        roster.join(s(9), &actor("a"), Generation(1), Some(SessionId(2)));
        assert_eq!(roster.expire(s(10)), []);
        // A late end of the old stream does not end the new one.
        roster.disconnect(SessionId(1));
        assert_eq!(roster.heartbeats().count(), 1);
    }

    #[test]
    fn a_newer_incarnation_begins_anew() {
        let mut roster = Roster::new(LEASE);
        roster.join(s(0), &actor("a"), Generation(1), Some(SessionId(1)));
        roster.beat(s(1), SessionId(1), Heartbeat { kv_evictions: 5, ..Heartbeat::default() });
        roster.join(s(2), &actor("a"), Generation(2), Some(SessionId(2)));
        assert_eq!(roster.seen(s(3), &actor("a")), Some((s(1), &Heartbeat::default())));
        roster.hear(s(9), SessionId(1));
        assert_eq!(roster.expire(s(12)), [(actor("a"), Generation(2))], "the old stream is dead");
    }

    #[test]
    fn whom_the_engine_forgot_has_no_lease() {
        let mut roster = Roster::new(LEASE);
        roster.join(s(0), &actor("a"), Generation(1), Some(SessionId(1)));
        roster.join(s(0), &actor("b"), Generation(1), None);
        roster.retain(|known| *known == actor("b"));
        assert_eq!(roster.seen(s(1), &actor("a")), None);
        assert_eq!(roster.expire(s(10)), [(actor("b"), Generation(1))]);
        assert!(roster.sessions.is_empty() && roster.places.is_empty());
    }

    #[test]
    fn an_older_incarnation_changes_nothing() {
        let mut roster = Roster::new(LEASE);
        roster.join(s(0), &actor("a"), Generation(2), Some(SessionId(1)));
        roster.join(s(5), &actor("a"), Generation(1), Some(SessionId(2)));
        assert_eq!(roster.expire(s(10)), [(actor("a"), Generation(2))]);
    }
}
