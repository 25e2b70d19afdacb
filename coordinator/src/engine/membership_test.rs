use super::*;

const SLOTS: u32 = 2;
const OLD: SessionId = SessionId(1);
const NEW: SessionId = SessionId(2);

fn actor() -> ActorId {
    ActorId("a".into())
}

/// What can happen to an actor of generation 5 whose stream is [`OLD`].
#[derive(Clone, Copy, Debug)]
enum Event {
    /// It connects over [`NEW`].
    Connect(u64),
    /// A stream ends.
    Disconnect(SessionId),
    Forget,
    Drain,
    /// It offers this many slots while it holds that many episodes.
    Credit(u32, usize),
    Take,
    CoordinatorStarted,
}

impl Event {
    /// Returns what came of it, in a word; empty for nothing.
    fn happen(self, to: &mut Membership) -> &'static str {
        match self {
            Self::Connect(generation) => {
                match to.connect(NEW, &actor(), Generation(generation), SLOTS) {
                    Ok(Joined { replaced: Some(OLD), is_reborn: true, .. }) => "replaced, reborn",
                    Ok(Joined { replaced: Some(OLD), .. }) => "replaced",
                    Ok(Joined { replaced: None, is_reborn: true, .. }) => "reborn",
                    Ok(Joined { draining: true, .. }) => "drain again",
                    Ok(_) => "",
                    Err(Generation(5)) => "refused",
                    Err(_) => "wrongly refused",
                }
            }
            Self::Disconnect(session) => to.disconnect(session).map_or("", |_| "gone"),
            Self::Forget => {
                to.forget(&actor());
                ""
            }
            Self::Drain => to.drain(&actor()).map_or("", |_| "told"),
            Self::Credit(slots, held) => {
                to.credit(&actor(), slots, held);
                ""
            }
            Self::Take => to.take_credit().map_or("", |_| "assigned"),
            Self::CoordinatorStarted => {
                to.disconnect_all();
                ""
            }
        }
    }
}

/// The actor in words: where it is, its generation, its credits.
fn describe(members: &Membership) -> String {
    let Some(member) = members.get(&actor()) else {
        assert!(members.sessions.is_empty() && members.idle.is_empty(), "nothing is left of it");
        return "absent".into();
    };
    let place = match member.session {
        Some(OLD) => "old",
        Some(_) => "new",
        None => "away",
    };
    assert_eq!(members.sessions.len(), usize::from(member.session.is_some()));
    assert_eq!(members.idle.len(), usize::from(member.credits > 0));
    let draining = if member.draining { " draining" } else { "" };
    format!("{place} {}{draining} {}", member.generation.0, member.credits)
}

/// An actor in one of its states: absent, here, with a credit, away, draining, draining and away.
fn member(state: &str) -> Membership {
    let mut members = Membership::default();
    if state == "absent" {
        return members;
    }
    members.connect(OLD, &actor(), Generation(5), SLOTS).expect("nobody was here");
    if state == "credited" {
        members.credit(&actor(), 1, 0);
    }
    if state.starts_with("draining") {
        members.drain(&actor());
    }
    if state.ends_with("away") {
        members.disconnect(OLD);
    }
    members
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn every_state_answers_every_event() {
    use Event::{Connect, CoordinatorStarted, Credit, Disconnect, Drain, Forget, Take};
    let events = [
        Connect(4),
        Connect(5),
        Connect(6),
        Disconnect(OLD),
        Disconnect(NEW),
        Forget,
        Drain,
        Credit(1, 0),
        Credit(u32::MAX, 0),
        Credit(u32::MAX, 9),
        Credit(u32::MAX, 10),
        Take,
        CoordinatorStarted,
    ];
    let table = [
        (
            "absent",
            [
                "new 4 0", "new 5 0", "new 6 0", "absent", "absent", "absent", "absent", "absent",
                "absent", "absent", "absent", "absent", "absent",
            ],
        ),
        (
            "here",
            [
                "refused: old 5 0",
                "replaced: new 5 0",
                "replaced, reborn: new 6 0",
                "gone: away 5 0",
                "old 5 0",
                "absent",
                "told: old 5 draining 0",
                "old 5 1",
                "old 5 2",
                "old 5 1",
                "old 5 0",
                "old 5 0",
                "away 5 0",
            ],
        ),
        (
            "credited",
            [
                "refused: old 5 1",
                "replaced: new 5 0",
                "replaced, reborn: new 6 0",
                "gone: away 5 0",
                "old 5 1",
                "absent",
                "told: old 5 draining 0",
                "old 5 2",
                "old 5 2",
                "old 5 1",
                "old 5 0",
                "assigned: old 5 0",
                "away 5 0",
            ],
        ),
        (
            "away",
            [
                "refused: away 5 0",
                "new 5 0",
                "reborn: new 6 0",
                "away 5 0",
                "away 5 0",
                "absent",
                "away 5 draining 0",
                "away 5 0",
                "away 5 0",
                "away 5 0",
                "away 5 0",
                "away 5 0",
                "away 5 0",
            ],
        ),
        (
            "draining",
            [
                "refused: old 5 draining 0",
                "replaced: new 5 draining 0",
                "replaced, reborn: new 6 0",
                "gone: away 5 draining 0",
                "old 5 draining 0",
                "absent",
                "told: old 5 draining 0",
                "old 5 draining 0",
                "old 5 draining 0",
                "old 5 draining 0",
                "old 5 draining 0",
                "old 5 draining 0",
                "away 5 draining 0",
            ],
        ),
        (
            "draining and away",
            [
                "refused: away 5 draining 0",
                "drain again: new 5 draining 0",
                "reborn: new 6 0",
                "away 5 draining 0",
                "away 5 draining 0",
                "absent",
                "away 5 draining 0",
                "away 5 draining 0",
                "away 5 draining 0",
                "away 5 draining 0",
                "away 5 draining 0",
                "away 5 draining 0",
                "away 5 draining 0",
            ],
        ),
    ];
    for (state, row) in table {
        for (event, expected) in events.into_iter().zip(row) {
            let mut members = member(state);
            let answer = event.happen(&mut members);
            let colon = if answer.is_empty() { "" } else { ": " };
            let outcome = format!("{answer}{colon}{}", describe(&members));
            assert_eq!(outcome, expected, "{state}, {event:?}");
        }
    }
}

#[test]
fn the_actor_with_the_most_credits_is_next() {
    let mut members = Membership::default();
    for (session, name) in [(1, "a"), (2, "b")] {
        let actor = ActorId(name.into());
        members.connect(SessionId(session), &actor, Generation(1), 9).expect("new");
        members.credit(&actor, session as u32 * 2, 0);
    }
    let taken = std::iter::from_fn(|| members.take_credit()).map(|(_, actor)| actor.0);
    assert_eq!(taken.collect::<String>(), "bbbaba");
}
