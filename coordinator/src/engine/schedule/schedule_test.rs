use super::*;

fn config(kind: ScheduleKind, cold_start: u64, steps: u64) -> Config {
    let mut config = Config::default();
    config.schedule.kind = kind;
    config.schedule.steps = steps;
    config.schedule.rl_steps = 2;
    config.schedule.sft_steps = 1;
    config.schedule.cold_start_steps_max = cold_start;
    config.schedule.cold_start_check_every = 2;
    config.schedule.cold_start_success = 0.5;
    config.learner.checkpoint_every = 3;
    config
}

/// Plays a schedule to its end; checks of the cold start take the given success rates in turn.
fn play(config: &Config, checks: &[f64]) -> String {
    let mut schedule = Schedule::new(config);
    let mut checks = checks.iter();
    let mut played = Vec::new();
    for _ in 0..100 {
        match schedule.next() {
            Action::Train(step) => {
                let kind = if step.kind == StepKind::Rl { "rl" } else { "sft" };
                played.push(format!("{kind}{}", step.step));
            }
            Action::Checkpoint { step } => played.push(format!("save{step}")),
            Action::Evaluate(name) => {
                let success = if name == EvaluationName::ColdStartCheck {
                    played.push("check".into());
                    *checks.next().expect("a planned check")
                } else {
                    played.push(name.as_str().into());
                    0.0
                };
                schedule.conclude(success);
                continue;
            }
            Action::Finish { step } => {
                played.push(format!("finish{step}"));
                assert_eq!(checks.next(), None, "a check was not made");
                return played.join(" ");
            }
        }
        schedule.advance();
    }
    panic!("no end: {played:?}");
}

#[test]
fn each_kind_plays_its_table() {
    use ScheduleKind::{Adaptive, Interleave, RlOnly, SftOnly, SftThenRl};
    let table: [(ScheduleKind, u64, u64, &[f64], &str); 10] = [
        (
            Interleave,
            0,
            5,
            &[],
            "save0 after_cold_start rl1 rl2 sft3 save3 rl4 rl5 save5 final finish5",
        ),
        (
            SftThenRl,
            9,
            3,
            &[0.1, 0.5],
            "sft1 sft2 check sft3 save3 sft4 check save4 after_cold_start rl5 rl6 save6 rl7 save7 \
             final finish7",
        ),
        (
            SftThenRl,
            3,
            1,
            &[0.1],
            "sft1 sft2 check sft3 save3 after_cold_start rl4 save4 final finish4",
        ),
        (RlOnly, 9, 2, &[], "save0 after_cold_start rl1 rl2 save2 final finish2"),
        (
            Adaptive,
            0,
            5,
            &[],
            "save0 after_cold_start rl1 rl2 sft3 save3 rl4 rl5 save5 final finish5",
        ),
        (SftOnly, 0, 4, &[], "sft1 sft2 sft3 save3 sft4 save4 final finish4"),
        (SftOnly, 1, 1, &[], "sft1 save1 after_cold_start sft2 save2 final finish2"),
        (SftOnly, 0, 0, &[], "save0 final finish0"),
        (Interleave, 0, 0, &[], "save0 after_cold_start final finish0"),
        (
            Interleave,
            8,
            2,
            &[0.9],
            "sft1 sft2 check save2 after_cold_start rl3 save3 rl4 save4 final finish4",
        ),
    ];
    for (kind, cold_start, steps, checks, expected) in table {
        assert_eq!(play(&config(kind, cold_start, steps), checks), expected, "{kind:?}");
    }
}

#[test]
fn the_step_of_each_rl_batch_is_where_the_plan_puts_it() {
    use ScheduleKind::{Adaptive, Interleave, Joint, Phases, RlOnly, SftOnly, SftThenRl};
    for kind in [Interleave, SftThenRl, SftOnly, RlOnly, Adaptive, Phases, Joint] {
        let mut config = config(kind, 4, 11);
        config.schedule.phases = vec![config::SchedulePhase::default()];
        config.schedule.phases[0].until.all_fail_groups = 1;
        let mut schedule = Schedule::new(&config);
        schedule.decide_to(9);
        let early = schedule.rl_step(0).is_some();
        assert_eq!(early, kind == RlOnly, "the end of the cold start is open");
        let (mut planned, mut promised) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..100 {
            schedule.decide_to(schedule.step + 3);
            for index in 0..20 {
                if let Some(step) = schedule.rl_step(index) {
                    assert_eq!(*promised.entry(index).or_insert(step), step, "{kind:?}");
                }
            }
            match schedule.next() {
                Action::Evaluate(_) => {
                    schedule.conclude(0.0);
                    continue;
                }
                Action::Train(step) if step.kind != StepKind::Sft => {
                    planned.insert(planned.len() as u64, step.step);
                    let failed = [("groups/all_fail".to_owned(), 1.0)];
                    schedule.observe(step.step, &failed.into());
                }
                Action::Finish { .. } => break,
                _ => {}
            }
            schedule.advance();
        }
        assert!(matches!(schedule.next(), Action::Finish { .. }), "{kind:?} does not end");
        assert_eq!(promised, planned, "{kind:?}");
    }
}

#[test]
fn a_change_leaves_what_is_decided_and_acts_on_the_rest() {
    let mut config = config(ScheduleKind::SftThenRl, 0, 9);
    let mut schedule = Schedule::new(&config);
    schedule.advance();
    schedule.conclude(0.0);
    schedule.decide_to(3);
    config.schedule.kind = ScheduleKind::SftOnly;
    config.schedule.steps = 5;
    assert_eq!(schedule.change(&config, "why"), Ok(4));
    let mut kinds = Vec::new();
    while let Action::Train(step) = schedule.next() {
        kinds.push(step.kind);
        schedule.advance();
        if let Action::Checkpoint { .. } = schedule.next() {
            schedule.advance();
        }
    }
    use StepKind::{Rl, Sft};
    assert_eq!(kinds, [Rl, Rl, Rl, Sft, Sft]);
    assert!(schedule.change(&config, "why").is_err(), "every step is planned");
}

#[test]
fn an_interleaved_schedule_without_rl_steps_is_all_sft() {
    let mut config = config(ScheduleKind::Interleave, 0, 2);
    config.schedule.rl_steps = 0;
    assert_eq!(play(&config, &[]), "save0 after_cold_start sft1 sft2 save2 final finish2");
}

#[test]
fn the_cold_start_warms_up_and_the_main_part_does_not() {
    let mut config = config(ScheduleKind::SftOnly, 12, 1);
    config.schedule.cold_start_check_every = 100;
    let mut schedule = Schedule::new(&config);
    let mut rates = Vec::new();
    while !matches!(schedule.next(), Action::Finish { .. }) {
        match schedule.next() {
            Action::Evaluate(_) => schedule.conclude(0.0),
            action => {
                if let Action::Train(step) = action {
                    rates.push(step.learning_rate);
                }
                schedule.advance();
            }
        }
    }
    let full = config.sft.cold_start_learning_rate;
    assert!((rates[0] - full * 0.1).abs() < 1e-12);
    assert!((rates[9] - full).abs() < 1e-12);
    assert!((rates[11] - full).abs() < 1e-12);
    assert!((rates[12] - config.sft.learning_rate).abs() < 1e-12);
}

#[test]
fn a_stop_saves_what_is_planned_and_finishes() {
    let mut schedule = Schedule::new(&config(ScheduleKind::Interleave, 0, 5));
    schedule.advance();
    schedule.conclude(0.0);
    schedule.advance();
    schedule.stop();
    assert_eq!(schedule.next(), Action::Checkpoint { step: 1 });
    schedule.advance();
    assert_eq!(schedule.next(), Action::Finish { step: 1 });
}
