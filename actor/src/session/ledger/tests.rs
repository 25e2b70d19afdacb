use super::*;

const EPISODE: u64 = 7;

fn finished(episode_id: u64) -> Box<Trajectory> {
    Box::new(Trajectory { episode_id, ..Trajectory::default() })
}

/// A ledger of two slots whose credits are out, in run "one".
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(2);
    assert!(ledger.on_welcome("one"));
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 2 })));
    ledger
}

fn in_state(state: &str) -> Ledger {
    let mut ledger = ledger();
    if state != "absent" {
        assert_eq!(ledger.on_assignment(EPISODE), Ok(true));
    }
    match state {
        "absent" | "running" => {}
        "stopping" => assert!(ledger.forget(EPISODE)),
        "finished" | "sent" => ledger.on_finished(finished(EPISODE)),
        "returned" => ledger.on_returned(EPISODE, "test".into(), 1),
        other => panic!("{other}"),
    }
    if state == "sent" {
        assert!(matches!(ledger.next_message(), Some(Message::Trajectory(_))));
    }
    assert_eq!(state_of(&ledger), state);
    ledger
}

fn state_of(ledger: &Ledger) -> &'static str {
    let unsent = ledger.unsent.contains(&EPISODE);
    let states = [
        (ledger.running.contains(&EPISODE), "running"),
        (ledger.stopping.contains(&EPISODE), "stopping"),
        (matches!(ledger.done.get(&EPISODE), Some(Done::Finished(_)) if unsent), "finished"),
        (matches!(ledger.done.get(&EPISODE), Some(Done::Finished(_)) if !unsent), "sent"),
        (matches!(ledger.done.get(&EPISODE), Some(Done::Returned { .. })), "returned"),
    ];
    let held: Vec<_> = states.into_iter().filter(|(holds, _)| *holds).collect();
    assert!(held.len() <= 1, "in more than one state: {held:?}");
    held.first().map_or("absent", |(_, state)| state)
}

/// Applies a message; what it asks for beside the change of state.
fn apply(ledger: &mut Ledger, message: &str) -> &'static str {
    match message {
        "assigned" => match ledger.on_assignment(EPISODE) {
            Ok(run) => {
                assert!(run);
                ""
            }
            Err(Violation::Held(EPISODE)) => "!",
            Err(other) => panic!("{other}"),
        },
        // An acknowledgement and a discard.
        "forget" => {
            if ledger.forget(EPISODE) {
                "+stop"
            } else {
                ""
            }
        }
        "finished" => {
            ledger.on_finished(finished(EPISODE));
            ""
        }
        "returned" => {
            ledger.on_returned(EPISODE, "test".into(), 1);
            ""
        }
        "stream-ended" => {
            ledger.on_stream_ended();
            ""
        }
        "same-run" => {
            assert!(!ledger.on_welcome("one"));
            ""
        }
        "other-run" => {
            assert!(ledger.on_welcome("two"));
            ""
        }
        "send" => {
            let _sent = ledger.next_message();
            ""
        }
        other => panic!("{other}"),
    }
}

/// Every state by every message: the next state, `!` for a refusal, `+stop` where the engine is told.
const TRANSITIONS: &str = "
 state    | assigned  | forget        | finished | returned | stream-ended | same-run | other-run | send
 absent   | running   | absent        | absent   | absent   | absent       | absent   | absent    | absent
 running  | running!  | stopping+stop | finished | returned | running      | running  | absent    | running
 stopping | stopping! | stopping      | absent   | absent   | stopping     | stopping | absent    | stopping
 finished | finished! | absent        | finished | finished | finished     | finished | absent    | sent
 sent     | sent!     | absent        | sent     | sent     | finished     | sent     | absent    | sent
 returned | returned! | absent        | returned | returned | returned     | returned | absent    | absent
";

#[test]
fn every_state_by_every_message() {
    let mut rows = TRANSITIONS.trim().lines().map(|line| line.split('|').map(str::trim));
    let messages: Vec<&str> = rows.next().expect("a head").skip(1).collect();
    let mut cells = 0;
    for mut row in rows {
        let state = row.next().expect("a state");
        for (message, expected) in messages.iter().zip(row) {
            let mut ledger = in_state(state);
            let effect = apply(&mut ledger, message);
            let found = format!("{}{effect}", state_of(&ledger));
            assert_eq!(found, expected, "{state} on {message}");
            cells += 1;
        }
    }
    assert_eq!(cells, 6 * 8);
}

#[test]
fn credits_follow_the_free_slots() {
    let mut ledger = ledger();
    assert!(!ledger.has_message());
    assert_eq!(ledger.on_assignment(1), Ok(true));
    assert_eq!(ledger.on_assignment(2), Ok(true));
    assert_eq!(ledger.on_assignment(3), Err(Violation::NoCredit));
    assert!(!ledger.has_message());
    ledger.on_finished(finished(1));
    assert!(matches!(ledger.next_message(), Some(Message::Trajectory(t)) if t.episode_id == 1));
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 1 })));
    // The slot of an episode that nobody waits for is free when the engine has let go of it.
    assert!(ledger.forget(2));
    assert!(!ledger.has_message());
    ledger.on_returned(2, "cancelled".into(), 9);
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 1 })));
    assert_eq!(ledger.next_message(), None);
}

#[test]
fn a_new_stream_gets_credits_for_what_does_not_run() {
    let mut ledger = ledger();
    assert_eq!(ledger.on_assignment(1), Ok(true));
    ledger.on_stream_ended();
    assert_eq!((ledger.claims(), ledger.run_id()), (vec![1], "one"));
    assert!(!ledger.on_welcome("one"));
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 1 })));
}

#[test]
fn without_claims_no_run_is_named() {
    let mut ledger = ledger();
    assert_eq!((ledger.claims(), ledger.run_id()), (vec![], ""));
    // What nobody waits for is not claimed.
    assert_eq!(ledger.on_assignment(1), Ok(true));
    assert!(ledger.forget(1));
    assert_eq!((ledger.claims(), ledger.run_id()), (vec![], ""));
}

#[test]
fn what_was_sent_over_a_broken_stream_is_sent_again() {
    let mut ledger = ledger();
    for id in [1, 2] {
        assert_eq!(ledger.on_assignment(id), Ok(true));
        ledger.on_finished(finished(id));
        assert!(matches!(ledger.next_message(), Some(Message::Trajectory(_))));
    }
    ledger.on_stream_ended();
    assert_eq!(ledger.claims(), [1, 2]);
    // The coordinator has one of them: only the other one is sent.
    assert!(!ledger.forget(1));
    assert!(matches!(ledger.next_message(), Some(Message::Trajectory(t)) if t.episode_id == 2));
    assert!(matches!(ledger.next_message(), Some(Message::SlotsFree(_))));
    assert_eq!(ledger.next_message(), None);
}

#[test]
fn another_run_starts_with_all_slots_and_keeps_the_drain() {
    let mut ledger = ledger();
    assert_eq!(ledger.on_assignment(1), Ok(true));
    assert_eq!(ledger.on_assignment(2), Ok(true));
    ledger.on_finished(finished(1));
    assert!(ledger.on_welcome("two"));
    assert!(ledger.claims().is_empty());
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 2 })));
    // Reports of the old run that are not told apart would change nothing either.
    ledger.on_finished(finished(2));
    assert_eq!(ledger.next_message(), None);
    ledger.drain();
    assert!(ledger.on_welcome("three"));
    assert_eq!(ledger.next_message(), None);
}

#[test]
fn unacknowledged_trajectories_hold_back_credits() {
    let mut ledger = Ledger::new(2);
    let mut ids = 0..;
    let mut trajectories = 0;
    // The coordinator takes everything and acknowledges nothing.
    while let Some(message) = ledger.next_message() {
        let Message::SlotsFree(SlotsFree { slots }) = message else {
            trajectories += 1;
            assert!(trajectories <= 100, "credits never stop");
            continue;
        };
        for id in ids.by_ref().take(slots as usize) {
            assert_eq!(ledger.on_assignment(id), Ok(true));
            ledger.on_finished(finished(id));
        }
    }
    assert_eq!((trajectories, ledger.outstanding()), (8, 8));
    assert!(!ledger.forget(1));
    assert_eq!(ledger.next_message(), Some(Message::SlotsFree(SlotsFree { slots: 1 })));
}

#[test]
fn claims_and_memory_are_bounded_whatever_happens() {
    let mut draw = 1u64;
    // A linear congruential generator (Knuth's MMIX); its upper bits are good enough here.
    let mut next = move |below: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % below
    };
    let mut ledger = Ledger::new(3);
    let mut serial = 0;
    for _ in 0..20_000 {
        let some = |set: &BTreeSet<u64>, draw: u64| set.iter().nth(draw as usize).copied();
        match next(8) {
            0 => {
                // At most one in four of the credits is asked for twice.
                let _violation = ledger.on_assignment(serial);
                serial += 1;
            }
            1 | 2 => {
                if let Some(id) = some(&ledger.running, next(3)) {
                    ledger.on_finished(finished(id));
                }
            }
            3 => {
                if let Some(id) = some(&ledger.running, next(3)) {
                    ledger.on_returned(id, "x".into(), 0);
                }
            }
            4 => {
                if let Some(id) = some(&ledger.stopping, 0) {
                    ledger.on_returned(id, "x".into(), 0);
                }
            }
            5 => {
                let id = serial.saturating_sub(next(12));
                let _stop = ledger.forget(id);
            }
            6 => ledger.on_stream_ended(),
            _ => {
                let _message = ledger.next_message();
            }
        }
        let in_engine = ledger.granted as usize + ledger.running.len() + ledger.stopping.len();
        assert!(in_engine <= 3, "{ledger:?}");
        assert!(in_engine + ledger.done.len() <= 12, "{ledger:?}");
        assert!(ledger.claims().len() <= 3 * CLAIMS_PER_SLOT_MAX);
        assert!(ledger.unsent.len() <= 12, "{ledger:?}");
    }
    assert!(serial > 2_000);
}

#[test]
fn a_drain_ends_when_the_last_trajectory_is_acknowledged() {
    let mut ledger = ledger();
    assert_eq!(ledger.on_assignment(1), Ok(true));
    ledger.drain();
    // It was under way when the coordinator heard of the drain, or the coordinator has not yet.
    assert_eq!(ledger.on_assignment(2), Ok(false));
    let returned = EpisodeReturned { episode_id: 2, reason: "the actor drains".into(), tokens: 0 };
    assert_eq!(ledger.next_message(), Some(Message::Returned(returned)));
    assert_eq!(ledger.next_message(), None);
    assert!(!ledger.is_drained());
    ledger.on_finished(finished(1));
    assert!(ledger.next_message().is_some() && !ledger.is_drained());
    assert!(!ledger.forget(1));
    assert!(ledger.is_drained());
}
