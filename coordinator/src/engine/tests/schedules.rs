//! Schedules and live changes of them, seen from the engine's outside.

use std::sync::Arc;

use ballast_proto::v1::{
    BatchPlanned, ScheduleDecision, StepKind, TrajectorySummary, effect::Effect,
};
use ballast_runtime::config::{
    Config, PhaseEnd, PhaseKind, ScheduleKind, SchedulePhase, SftSource,
};

use super::{
    promises,
    world::{World, config},
};
use crate::{
    engine::{Batch, ChangeAnswer, ChangeRefusal},
    metrics::name,
};

/// RL until so many groups failed altogether, then some steps of SFT.
pub(super) fn relift(all_fail_groups: u64, sft_steps: u64) -> Vec<SchedulePhase> {
    let until = PhaseEnd { all_fail_groups, ..PhaseEnd::default() };
    vec![
        SchedulePhase { name: "explore".into(), until, ..SchedulePhase::default() },
        SchedulePhase {
            name: "repair".into(),
            kind: PhaseKind::Sft,
            steps: sft_steps,
            learning_rate: 0.5,
            ..SchedulePhase::default()
        },
    ]
}

/// No cold start; staleness 1, two groups of two in a batch.
fn main_part(kind: ScheduleKind, steps: u64) -> Config {
    let mut config = config();
    config.schedule.kind = kind;
    config.schedule.steps = steps;
    config.schedule.cold_start_steps_max = 0;
    config
}

/// The kinds of all optimizer steps served: r or s.
fn kinds(world: &World) -> String {
    let letter = |kind| match kind {
        StepKind::Rl => Some('r'),
        StepKind::Sft => Some('s'),
        _ => None,
    };
    world.served.iter().filter_map(|batch| letter(batch.kind)).collect()
}

/// Reasons in the journal, in order.
fn journaled(world: &World) -> Vec<&ScheduleDecision> {
    let mut decisions = Vec::new();
    for effect in world.effects() {
        if let Effect::Decision(decision) = effect {
            decisions.push(decision);
        }
    }
    decisions
}

#[test]
fn rl_alone_needs_no_demonstration() {
    let mut config = main_part(ScheduleKind::RlOnly, 3);
    config.schedule.cold_start_steps_max = 200;
    config.tasks.demonstrations = 0;
    let mut world = World::new(config);
    world.play_to_the_end();
    assert_eq!(kinds(&world), "rrr");
}

#[test]
fn a_count_of_failed_groups_turns_to_sft_once_what_is_admitted_is_trained() {
    let mut config = main_part(ScheduleKind::Phases, 12);
    config.schedule.phases = relift(1, 2);
    config.schedule.repeat = true;
    let mut world = World::new(config);
    world.success_every = 0;
    world.play_to_the_end();
    // Step 1 fails; with a staleness of 1, step 2 is decided by then, and step 3 while step 1 is
    // finished.
    assert_eq!(kinds(&world), "rrssrrssrrss");
    promises::check(&world);
    let rates: Vec<f64> = world
        .served
        .iter()
        .filter(|batch| batch.kind == StepKind::Sft)
        .map(|batch| batch.learning_rate)
        .collect();
    assert_eq!(rates, [0.5; 6], "the phase has its own");
    let decisions = journaled(&world);
    let repair = decisions.iter().find(|one| one.what == "phase `repair`").expect("journaled");
    assert_eq!(repair.step, 3);
    assert!(repair.reason.contains("groups without a success"), "{repair:?}");
    let steps = decisions.iter().filter(|one| one.what.ends_with(" step"));
    assert_eq!(steps.count(), 12, "each step has its reason");
}

#[test]
fn strain_raises_the_share_of_sft() {
    let mut config = main_part(ScheduleKind::Adaptive, 60);
    config.schedule.adaptive.share_max = 0.5;
    config.schedule.adaptive.gain = 0.2;
    let healthy = {
        let mut world = World::new(config.clone());
        world.play_to_the_end();
        kinds(&world).matches('s').count()
    };
    let mut world = World::new(config);
    world.polluted = true;
    world.play_to_the_end();
    promises::check(&world);
    let strained = kinds(&world).matches('s').count();
    assert!(healthy <= 12 && strained >= 24, "{healthy} and {strained} of 60");
    let last = world.lines.iter().rfind(|line| line.kind == "rl").expect("an RL line");
    assert_eq!(last.values[name::SFT_SHARE], 0.5);
    assert_eq!(last.values[name::STRAIN], 2.0);
    assert!(journaled(&world).iter().any(|one| one.what.starts_with("sft share ")));
}

#[test]
fn a_live_change_acts_on_the_first_step_that_is_not_decided() {
    let mut world = World::new(main_part(ScheduleKind::SftThenRl, 10));
    world.play_until(|world| world.published == 3);
    let decided = world.engine.schedule().decided_step;
    let changed = world.change(&["kind=sft_only", "schedule.steps=8"]).expect("accepted");
    assert_eq!(changed, ChangeAnswer::Set { step: decided + 1, revision: 1 });
    let shown = world.engine.schedule();
    assert_eq!((shown.kind.as_str(), shown.revision), ("sft_only", 1));
    assert!(shown.settings.contains("steps = 8"), "{}", shown.settings);
    world.play_to_the_end();
    let rl = decided as usize;
    assert_eq!(kinds(&world), "r".repeat(rl) + &"s".repeat(8 - rl));
    promises::check(&world);
    let mut entries = world.engine.audit_entries().into_iter();
    let audit = entries.find(|entry| entry.what.contains("kind=sft_only")).expect("kept");
    assert_eq!(audit.who, "somebody");
    assert_eq!((audit.reason.as_str(), audit.refusal.as_str()), ("a test", ""));
}

#[test]
fn a_change_that_is_wrong_or_late_changes_nothing() {
    let mut world = World::new(config());
    let wrong = world.change(&["kind=adaptve", "stps=3"]).expect_err("refused");
    let ChangeRefusal::Invalid(text) = wrong else { panic!("{wrong:?}") };
    assert!(text.contains("2 faults") && text.contains("did you mean `steps`?"), "{text}");
    assert!(matches!(world.change(&[]), Err(ChangeRefusal::Invalid(_))));
    world.change(&["cold_start_steps_max=3"]).expect("the cold start is under way");
    world.play_until(|world| world.published == 4);
    let late = world.change(&["cold_start_steps_max=9"]).expect_err("the cold start is over");
    assert!(matches!(late, ChangeRefusal::Untimely(_)), "{late:?}");
    assert_eq!(world.engine.schedule().revision, 1);
    world.play_to_the_end();
    let late = world.change(&["steps=99"]).expect_err("the run is over");
    assert!(matches!(late, ChangeRefusal::Untimely(_)), "{late:?}");
}

#[test]
fn the_schedule_says_where_it_is_and_what_ends_it() {
    let mut config = config();
    config.schedule.kind = ScheduleKind::Phases;
    config.schedule.phases = relift(5, 2);
    let mut world = World::new(config);
    let shown = world.engine.schedule();
    assert_eq!((shown.kind.as_str(), shown.phase.as_str()), ("phases", "cold_start"));
    assert!(shown.ends.contains("a check at 0.5 or better"), "{}", shown.ends);
    world.play_until(|world| world.published == 3);
    let shown = world.engine.schedule();
    assert_eq!(shown.phase, "explore");
    assert!(shown.ends.starts_with("5 groups without a success"), "{}", shown.ends);
    assert!(shown.decisions.iter().any(|one| one.what == "the cold start ends"));
    world.play_to_the_end();
    assert_eq!(world.engine.schedule().phase, "");
}

/// What these schedules decide is what they decided before phases and the journal of events existed:
/// the sums were taken then, over the plans and assignments of the same play.
#[test]
fn what_was_decided_before_there_were_phases_is_decided_still() {
    let (mut plans, mut assignments) = (Vec::new(), Vec::new());
    for kind in [ScheduleKind::Interleave, ScheduleKind::SftThenRl, ScheduleKind::SftOnly] {
        for staleness_max in [0, 2] {
            let mut config = config();
            config.schedule.kind = kind;
            config.schedule.steps = 25;
            config.rl.staleness_max = staleness_max;
            let mut world = World::new(config);
            world.play_to_the_end();
            plans
                .push(sum(promises::Fates::of(&world).batches.iter().flat_map(|one| numbers(one))));
            let bytes = world.assigned.iter().flat_map(prost::Message::encode_to_vec);
            assignments.push(crc32c::crc32c(&bytes.collect::<Vec<u8>>()));
        }
    }
    assert_eq!(plans, [2126846216, 2126846216, 461401147, 461401147, 2467395338, 2467395338]);
    assert_eq!(assignments, [544480416, 1869168324, 4163325852, 901069539, 1092806848, 1092806848]);
}

fn sum(numbers: impl Iterator<Item = u64>) -> u32 {
    crc32c::crc32c(&numbers.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

/// All that a plan says, but for its place.
fn numbers(plan: &BatchPlanned) -> Vec<u64> {
    let mut numbers = vec![plan.step, plan.kind as u64, plan.learning_rate_bits];
    for group in &plan.groups {
        numbers.push(group.group_id);
        numbers.extend(&group.episodes);
    }
    numbers.extend(&plan.demonstrations);
    numbers
}

#[test]
fn a_joint_step_has_groups_demonstrations_and_a_weight() {
    let mut config = main_part(ScheduleKind::Joint, 4);
    config.schedule.sft_weight = 0.25;
    let mut world = World::new(config);
    world.play_to_the_end();
    promises::check(&world);
    let joint: Vec<_> = world.served.iter().filter(|batch| batch.kind == StepKind::Joint).collect();
    assert_eq!(joint.len(), 4);
    for batch in joint {
        assert_eq!(
            (batch.groups.len(), batch.demonstrations.len(), batch.sft_weight),
            (2, 2, 0.25)
        );
    }
    assert!(world.lines.iter().any(|line| line.kind == "joint"));
}

#[test]
fn a_phase_that_says_so_begins_with_a_new_optimizer() {
    let mut config = main_part(ScheduleKind::Phases, 9);
    config.schedule.phases = relift(1, 2);
    config.schedule.phases[1].reset_optimizer = true;
    config.schedule.repeat = true;
    let mut world = World::new(config);
    world.success_every = 0;
    world.play_to_the_end();
    let resets = |world: &World| -> String {
        let trained = |kind| matches!(kind, StepKind::Rl | StepKind::Sft);
        let batches = world.served.iter().filter(|batch| trained(batch.kind));
        batches.map(|batch| if batch.reset_optimizer { '!' } else { '.' }).collect()
    };
    assert_eq!((kinds(&world).as_str(), resets(&world).as_str()), ("rrssrrssr", "..!...!.."));
}

#[test]
fn sft_imitates_the_tasks_that_were_failed() {
    let mut config = main_part(ScheduleKind::Interleave, 6);
    config.sft.source = SftSource::Failed;
    let mut world = World::new(config);
    world.success_every = 0;
    world.play_to_the_end();
    promises::check(&world);
    let tasks = |batch: &Batch| -> Vec<u64> {
        let seed = |one: &Arc<TrajectorySummary>| one.task.as_ref().map_or(0, |task| task.seed);
        batch.trajectories().map(seed).collect()
    };
    let mut explored = Vec::new();
    let mut imitated = 0;
    for batch in &world.served {
        match batch.kind {
            StepKind::Rl => explored.extend(tasks(batch)),
            StepKind::Sft => {
                assert!(tasks(batch).iter().all(|task| explored.contains(task)), "{batch:?}");
                imitated += 1;
            }
            _ => {}
        }
    }
    assert_eq!(imitated, 2);
}
