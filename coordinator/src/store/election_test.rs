use std::collections::BTreeSet;

use super::*;

const TTL: Duration = Duration::from_secs(6);
const JITTER: Duration = Duration::from_millis(50);
const LEASE: LeaseId = LeaseId(7);
const OTHERS_LEASE: LeaseId = LeaseId(8);
/// When every event of the table comes.
const NOW: Duration = Duration::from_secs(101);
const TERM: Revision = Revision(50);

fn timing() -> Timing {
    Timing { ttl: TTL, jitter: JITTER, seed: 1 }
}

fn clock(asked: u64) -> LeaseClock {
    LeaseClock::new(LEASE, Some(TTL), Duration::from_secs(asked))
}

fn sighting(revision: u64, created: Option<u64>) -> Sighting {
    let key = |created| LeaderKey { created: Revision(created), lease: Some(OTHERS_LEASE) };
    Sighting { revision: Revision(revision), key: created.map(key) }
}

fn election(state: State, seen: Sighting) -> Election {
    Election { state, seen, ..Election::new(timing()) }
}

/// Every state, where they differ at [`NOW`] with what is due.
fn states() -> Vec<(&'static str, Election)> {
    let (free, held) = (sighting(50, None), sighting(50, Some(40)));
    let ours = LeaderKey { created: TERM, lease: Some(LEASE) };
    let ours = Sighting { revision: TERM, key: Some(ours) };
    let (past, later) = (NOW - Duration::from_millis(1), NOW + Duration::from_millis(1));
    let creating = |asked, retry_at| State::Creating { clock: clock(asked), retry_at };
    let leader = |asked| State::Leader { clock: clock(asked), term: TERM };
    let stepping = |retry_at, until| State::SteppingDown { lease: LEASE, retry_at, until };
    vec![
        ("standby, unknown", Election::new(timing())),
        ("standby", election(State::Standby, held)),
        ("waiting", election(State::Waiting { at: later }, free)),
        ("waiting, due", election(State::Waiting { at: past }, free)),
        ("granting", election(State::Granting, free)),
        ("creating", election(creating(100, None), free)),
        ("creating, retry due", election(creating(100, Some(past)), free)),
        ("creating, too late", election(creating(96, None), free)),
        ("leader", election(leader(100), ours)),
        ("leader, keep due", election(leader(98), ours)),
        ("leader, too late", election(leader(96), ours)),
        ("stepping down", election(stepping(None, later), ours)),
        ("stepping down, due", election(stepping(Some(past), later), ours)),
        ("stepping down, no use", election(stepping(None, past), ours)),
        ("over", election(State::Over, ours)),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let own = LeaderKey { created: Revision(51), lease: Some(LEASE) };
    vec![
        ("heard: free", Event::Heard(sighting(60, None))),
        ("heard: held", Event::Heard(sighting(60, Some(55)))),
        ("heard: late", Event::Heard(sighting(49, None))),
        ("deadline", Event::Deadline),
        ("granted", Event::Granted { lease: LEASE, ttl: Some(TTL), asked: NOW }),
        ("created", Event::Created(Revision(51))),
        ("taken", Event::Taken(sighting(60, Some(55)))),
        ("taken by us", Event::Taken(Sighting { revision: Revision(60), key: Some(own) })),
        ("kept", Event::Kept { asked: NOW }),
        ("lease gone", Event::LeaseGone),
        ("revoked", Event::Revoked),
        ("failed", Event::Failed),
        ("refused", Event::Refused),
        ("abandoned", Event::Abandoned),
    ]
}

fn name(state: &State) -> &'static str {
    match state {
        State::Standby => "standby",
        State::Waiting { .. } => "waiting",
        State::Granting => "granting",
        State::Creating { .. } => "creating",
        State::Leader { .. } => "leader",
        State::SteppingDown { .. } => "stepping down",
        State::Over => "over",
    }
}

/// One line of the table: what becomes of a state, and what is to be done.
fn transition(mut election: Election, event: Event) -> String {
    let before = election.state.clone();
    let commands = election.handle(NOW, event);
    let mut line = match election.state == before {
        true => "=".to_owned(),
        false => name(&election.state).to_owned(),
    };
    for command in commands {
        line += "; ";
        line += &match command {
            Command::Ask(question) => format!("ask {question:?}").to_lowercase(),
            Command::Lead(term) => format!("lead {term}"),
            Command::Stop(reason) => format!("stop {reason:?}").to_lowercase(),
            Command::GiveUp => "give up".into(),
            Command::End => "end".into(),
        };
    }
    line.replace("(leaseid(7))", "")
}

/// All transitions. `=` is: the state as it was. What is not listed changes nothing and asks nothing.
const TABLE: &str = include_str!("election_table.txt");

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let mut table = String::new();
    for (state, _) in states() {
        table += &format!("{state}\n");
        for (name, event) in events() {
            let from = states().into_iter().find(|(name, _)| *name == state).expect("listed").1;
            let line = transition(from, event);
            if line != "=" {
                table += &format!("  {name:<12} -> {line}\n");
            }
        }
    }
    assert!(table == TABLE, "the table differs; it is now:\n{table}");
}

/// Commands that end what was begun, whatever happens: properties of the table as a whole.
#[test]
fn no_transition_leads_without_a_lease_or_stops_twice() {
    for (state, _) in states() {
        for (event_name, event) in events() {
            let from = || states().into_iter().find(|(name, _)| *name == state).expect("listed").1;
            let led = matches!(from().state, State::Leader { .. });
            let mut election = from();
            let commands = election.handle(NOW, event);
            let leads = matches!(election.state, State::Leader { .. });
            let stops = commands.iter().filter(|command| matches!(command, Command::Stop(_)));
            let begins = commands.iter().filter(|command| matches!(command, Command::Lead(_)));
            assert_eq!(stops.count(), usize::from(led && !leads), "{state}, {event_name}");
            assert_eq!(begins.count(), usize::from(!led && leads), "{state}, {event_name}");
            let asks = commands.iter().filter(|command| matches!(command, Command::Ask(_)));
            assert!(asks.count() <= 1, "{state}, {event_name}: one question replaces another");
            if leads && !led {
                assert!(election.held_until() > Some(NOW), "{state}, {event_name}");
            }
        }
    }
}

/// Nothing that is due may stay due: the driver would never rest.
#[test]
fn a_deadline_that_was_handled_is_over() {
    for (state, mut election) in states() {
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            election.handle(NOW, Event::Deadline);
            seen.insert(election.deadline());
        }
        assert!(election.deadline().is_none_or(|at| at > NOW), "{state}: {seen:?}");
    }
}

#[test]
fn a_standby_waits_out_its_jitter_and_then_contends() {
    let mut election = Election::new(timing());
    assert_eq!(election.handle(NOW, Event::Heard(sighting(9, Some(3)))), []);
    assert_eq!(election.deadline(), None);
    assert_eq!(election.handle(NOW, Event::Heard(sighting(10, None))), []);
    assert_eq!(election.deadline(), Some(NOW + JITTER));
    // The same news again, as after a reading, do not prolong the wait.
    let later = NOW + Duration::from_millis(20);
    assert_eq!(election.handle(later, Event::Heard(sighting(10, None))), []);
    assert_eq!(election.deadline(), Some(NOW + JITTER));
    let due = NOW + JITTER;
    assert_eq!(election.handle(due, Event::Deadline), [Command::Ask(Question::Grant)]);
}

#[test]
fn what_was_heard_late_does_not_end_a_leadership() {
    let mut election = election(State::Granting, sighting(50, None));
    election.handle(NOW, Event::Granted { lease: LEASE, ttl: Some(TTL), asked: NOW });
    assert_eq!(election.handle(NOW, Event::Created(Revision(52))), [Command::Lead(Revision(52))]);
    // The end of the leader before, which the watch tells only now.
    assert_eq!(election.handle(NOW, Event::Heard(sighting(51, None))), []);
    assert_eq!(
        election.handle(NOW, Event::Heard(sighting(53, None)))[0],
        Command::Stop(Reason::KeyGone)
    );
}

#[test]
fn a_leader_without_answers_stops_before_its_lease_ends() {
    let mut election = election(State::Granting, sighting(50, None));
    election.handle(NOW, Event::Granted { lease: LEASE, ttl: Some(TTL), asked: NOW });
    election.handle(NOW, Event::Created(Revision(52)));
    let (mut now, mut asked) = (NOW, 0);
    // When the attempt under way is given up.
    let mut fails_at = None;
    loop {
        let deadline = election.deadline().expect("a leader has one");
        let event = match fails_at.take() {
            Some(at) if at < deadline => {
                now = at;
                Event::Failed
            }
            _ => {
                now = now.max(deadline);
                Event::Deadline
            }
        };
        match election.handle(now, event)[..] {
            [Command::Stop(Reason::Unanswered), ..] => break,
            [Command::Ask(Question::KeepAlive(_))] => {
                asked += 1;
                fails_at = Some(now + lease_attempt());
            }
            _ => {}
        }
    }
    assert!(asked >= 3, "it asked {asked} times");
    assert!(now < NOW + TTL && now > NOW + TTL / 2, "{:?} after the grant", now - NOW);
}

/// Longest wait for an answer.
fn lease_attempt() -> Duration {
    super::super::lease::attempt_max(TTL)
}

#[test]
fn in_a_store_that_drops_no_lease_a_leader_leads_for_ever() {
    let mut election = election(State::Granting, sighting(50, None));
    election.handle(NOW, Event::Granted { lease: LEASE, ttl: None, asked: NOW });
    election.handle(NOW, Event::Created(Revision(52)));
    assert_eq!((election.deadline(), election.held_until()), (None, None));
    let commands = election.handle(NOW, Event::Abandoned);
    assert_eq!(commands[0], Command::Stop(Reason::Resigned));
}

#[test]
fn a_candidate_that_was_beaten_and_has_heard_the_end_of_the_winner_tries_again() {
    let mut election =
        election(State::Creating { clock: clock(100), retry_at: None }, sighting(50, None));
    // The watch was faster than the answer.
    election.handle(NOW, Event::Heard(sighting(53, None)));
    let commands = election.handle(NOW, Event::Taken(sighting(52, Some(51))));
    assert_eq!(commands, [Command::Ask(Question::Revoke(LEASE))]);
    assert_eq!(election.state, State::Waiting { at: NOW + JITTER });
}
