use ballast_runtime::config::PhaseEnd;

use super::*;
use crate::metrics::name;

/// A: RL until a group fails altogether. B: two SFT steps. C: cycles until the reward is good.
fn settings(repeat: bool) -> config::Schedule {
    let all_fail = PhaseEnd { all_fail_groups: 1, ..PhaseEnd::default() };
    let reward = PhaseEnd {
        metric: name::REWARD_MEAN.into(),
        above: Some(0.9),
        window: 1,
        ..PhaseEnd::default()
    };
    let phase = |name: &str, kind, steps, until| SchedulePhase {
        name: name.into(),
        kind,
        steps,
        until,
        ..SchedulePhase::default()
    };
    config::Schedule {
        kind: ScheduleKind::Phases,
        repeat,
        steps: 100,
        phases: vec![
            phase("a", PhaseKind::Rl, 0, all_fail),
            phase("b", PhaseKind::Sft, 2, PhaseEnd::default()),
            phase("c", PhaseKind::Interleave, 0, reward),
        ],
        ..config::Schedule::default()
    }
}

/// A course that is played by hand.
struct Player {
    course: Course,
    step: u64,
    notes: Vec<Decision>,
}

impl Player {
    fn new(settings: config::Schedule) -> Self {
        Self { course: Course::new(settings), step: 0, notes: Vec::new() }
    }

    /// Decides a step. Returns its phase and its kind, as in "a rl"; "over" at the end.
    fn decide(&mut self) -> String {
        self.step += 1;
        let decided = self.course.decide(self.step, &mut self.notes);
        decided.map_or("over".into(), |one| {
            let kind = if one.kind == StepKind::Rl { "rl" } else { "sft" };
            format!("{} {kind}", one.phase_name)
        })
    }

    /// The step decided last is finished with this metric.
    fn observe(&mut self, name: &str, value: f64) {
        let metrics = [(name.to_owned(), value)].into();
        self.course.observe(self.step, &metrics, self.step + 1, &mut self.notes);
    }
}

/// What can happen to a course between two decisions.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    AllFail,
    GoodReward,
    /// Of a step before the phase began.
    OldAllFail,
    /// Of numbers that no phase depends on.
    ChangeNumbers,
    ChangePhases,
    MainPartDone,
}

const EVENTS: [Event; 7] = [
    Event::Nothing,
    Event::AllFail,
    Event::GoodReward,
    Event::OldAllFail,
    Event::ChangeNumbers,
    Event::ChangePhases,
    Event::MainPartDone,
];

impl Event {
    fn happen(self, player: &mut Player) {
        let settings = player.course.settings().clone();
        match self {
            Self::Nothing => {}
            Self::AllFail => player.observe(name::ALL_FAIL, 1.0),
            Self::GoodReward => player.observe(name::REWARD_MEAN, 1.0),
            Self::OldAllFail => {
                let metrics = [(name::ALL_FAIL.to_owned(), 9.0)].into();
                player.course.observe(0, &metrics, player.step + 1, &mut player.notes);
            }
            Self::ChangeNumbers => {
                player.course.change(config::Schedule { steps: 99, ..settings }, "why");
            }
            Self::ChangePhases => {
                player
                    .course
                    .change(config::Schedule { kind: ScheduleKind::SftOnly, ..settings }, "why");
            }
            Self::MainPartDone => {
                player
                    .course
                    .change(config::Schedule { steps: player.course.steps, ..settings }, "why");
            }
        }
    }
}

/// A course after so many steps of its phases a, b and c.
fn after(repeat: bool, steps: [u64; 3]) -> Player {
    let mut player = Player::new(settings(repeat));
    for (index, phase_steps) in steps.into_iter().enumerate() {
        for _ in 0..phase_steps {
            player.decide();
        }
        match index {
            0 if steps[1] > 0 => player.observe(name::ALL_FAIL, 1.0),
            _ => {}
        }
    }
    player
}

#[test]
fn every_place_answers_every_event() {
    let same = |next: &'static str| [next, next, next, next, next, "sft sft", "over"];
    let table = [
        // Nothing is decided yet: there is nothing to observe.
        ([0, 0, 0], same("a rl")),
        ([1, 0, 0], ["a rl", "b sft", "a rl", "a rl", "a rl", "sft sft", "over"]),
        ([2, 0, 0], ["a rl", "b sft", "a rl", "a rl", "a rl", "sft sft", "over"]),
        ([1, 1, 0], same("b sft")),
        ([1, 2, 0], same("c rl")),
        ([1, 2, 1], ["c rl", "c rl", "last", "c rl", "c rl", "sft sft", "over"]),
        ([1, 2, 4], ["c sft", "c sft", "last", "c sft", "c sft", "sft sft", "over"]),
    ];
    for repeat in [false, true] {
        for (place, row) in table {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                let mut player = after(repeat, place);
                event.happen(&mut player);
                let expected = match (expected, repeat) {
                    ("last", true) => "a rl",
                    ("last", false) => "over",
                    (expected, _) => expected,
                };
                assert_eq!(player.decide(), expected, "{place:?} {event:?} repeat={repeat}");
            }
        }
    }
}

#[test]
fn what_is_over_stays_over_until_somebody_changes_it() {
    let mut player = after(false, [1, 2, 1]);
    player.observe(name::REWARD_MEAN, 1.0);
    for event in EVENTS {
        if matches!(event, Event::ChangePhases) {
            continue;
        }
        event.happen(&mut player);
        assert_eq!(player.decide(), "over", "{event:?}");
    }
    player.course.change(config::Schedule { steps: 50, ..settings(true) }, "more");
    assert_eq!(player.decide(), "a rl");
}

#[test]
fn each_kind_is_a_list_of_phases() {
    for (kind, expected) in [
        (ScheduleKind::RlOnly, ["rl rl"; 6]),
        (ScheduleKind::SftThenRl, ["rl rl"; 6]),
        (ScheduleKind::SftOnly, ["sft sft"; 6]),
        (
            ScheduleKind::Interleave,
            [
                "interleave rl",
                "interleave rl",
                "interleave rl",
                "interleave rl",
                "interleave sft",
                "interleave rl",
            ],
        ),
        (
            ScheduleKind::Adaptive,
            [
                "adaptive rl",
                "adaptive rl",
                "adaptive rl",
                "adaptive rl",
                "adaptive sft",
                "adaptive rl",
            ],
        ),
        (ScheduleKind::Phases, ["a rl"; 6]),
    ] {
        let mut player = Player::new(config::Schedule { kind, steps: 6, ..settings(false) });
        let played: Vec<String> = (0..6).map(|_| player.decide()).collect();
        assert_eq!(played, expected, "{kind:?}");
        assert_eq!(player.decide(), "over", "{kind:?}");
        let begin = &player.notes[0];
        assert!(begin.what.starts_with("phase `") && begin.reason.contains("begins"), "{begin:?}");
    }
}

#[test]
fn a_share_that_carries_over_a_change_of_limits_does_not_jump() {
    let mut player =
        Player::new(config::Schedule { kind: ScheduleKind::Adaptive, ..settings(false) });
    player.decide();
    player.observe(name::POLLUTED_RATE, 1.0);
    let (share, _) = player.course.control().expect("adaptive");
    assert!(share > 0.2);
    assert!(player.notes.last().is_some_and(|note| note.what.starts_with("sft share 0.200 -> ")));
    let mut changed = player.course.settings().clone();
    changed.adaptive.polluted_rate = 0.5;
    player.course.change(changed.clone(), "why");
    assert_eq!(player.course.control().map(|(share, _)| share), Some(share));
    changed.kind = ScheduleKind::SftThenRl;
    player.course.change(changed, "why");
    assert_eq!(player.course.control(), None);
}
