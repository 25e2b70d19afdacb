use super::*;

/// Makes a state.
type Make = fn() -> Batches;

fn batch(step: u64, kind: StepKind) -> Arc<Batch> {
    Arc::new(Batch {
        step,
        kind,
        learning_rate: 0.1,
        phase: Phase::Rl,
        groups: Vec::new(),
        demonstrations: Vec::new(),
        replaced: Vec::new(),
        sft_weight: 0.0,
        reset_optimizer: false,
    })
}

fn request(last_step: u64) -> NextBatchRequest {
    NextBatchRequest { learner_id: "l".into(), generation: 1, last_step, ..Default::default() }
}

/// Steps 1 and 2, the checkpoint of 2, and step 3.
fn batches() -> Batches {
    let mut batches = Batches::default();
    let kinds =
        [(1, StepKind::Sft), (2, StepKind::Rl), (2, StepKind::Checkpoint), (3, StepKind::Rl)];
    for (step, kind) in kinds {
        batches.record(batch(step, kind));
    }
    batches
}

fn served(batches: &mut Batches) -> Vec<(u64, StepKind)> {
    std::iter::from_fn(|| batches.serve()).map(|(_, batch)| (batch.step, batch.kind)).collect()
}

fn answer(batches: &mut Batches, step: u64, kind: StepKind) -> Result<Completion, Refusal> {
    let answer = batches.complete("l", Generation(1), step, kind);
    batches.check_invariants();
    answer
}

#[test]
fn batches_are_served_in_order_two_ahead_at_most() {
    let mut batches = batches();
    assert!(served(&mut batches).is_empty(), "nobody is connected");
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    assert_eq!(served(&mut batches), [(1, StepKind::Sft), (2, StepKind::Rl)]);
    answer(&mut batches, 1, StepKind::Sft).expect("in order");
    assert_eq!(served(&mut batches), [(2, StepKind::Checkpoint)]);
}

#[test]
fn answers_out_of_order_or_of_others_are_refused_and_old_ones_change_nothing() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    served(&mut batches);
    assert!(matches!(
        answer(&mut batches, 2, StepKind::Rl),
        Err(Refusal::OutOfOrder { step: 2, .. })
    ));
    assert!(matches!(answer(&mut batches, 1, StepKind::Rl), Err(Refusal::OutOfOrder { .. })));
    assert!(matches!(answer(&mut batches, 1, StepKind::Sft), Ok(Completion::First(_))));
    assert!(matches!(answer(&mut batches, 1, StepKind::Sft), Ok(Completion::Duplicate)));
    let other = batches.complete("other", Generation(1), 2, StepKind::Rl);
    assert!(matches!(other, Err(Refusal::NotTheLearner { .. })));
    let older = batches.complete("l", Generation(0), 2, StepKind::Rl);
    assert!(matches!(older, Err(Refusal::NotTheLearner { .. })));
}

#[test]
fn a_second_learner_is_told_who_holds_the_stream() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    let second = NextBatchRequest { generation: 2, ..request(0) };
    let refusal = batches.connect(StreamId(2), &second).expect_err("held").to_string();
    assert!(refusal.contains("learner l (gen1)") && refusal.contains("stop it"), "{refusal}");
    assert!(!batches.disconnect(StreamId(2)), "the refused one is not the holder");
    batches.connect(StreamId(3), &request(0)).expect("its own stale stream does not keep it out");
    assert!(!batches.disconnect(StreamId(1)), "the stale stream ends late");
    assert!(batches.disconnect(StreamId(3)));
    batches.connect(StreamId(2), &second).expect("free again");
}

/// The batches of [`batches`] after a learner of generation 1 has answered this many of them.
fn after(answers: usize) -> Batches {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("the first one");
    let mut served = served(&mut batches);
    for index in 0..answers {
        let (step, kind) = served[index];
        answer(&mut batches, step, kind).expect("in order");
        served.extend(self::served(&mut batches));
    }
    batches
}

#[test]
fn every_learner_that_comes_gets_what_it_lacks() {
    fn gone(answers: usize) -> Batches {
        let mut batches = after(answers);
        batches.disconnect(StreamId(1));
        batches
    }
    let states: [(&str, Make); 5] = [
        ("nobody was here", batches),
        ("steps 1 and 2 were served", || gone(0)),
        ("they are answered", || gone(2)),
        ("and so is the checkpoint", || gone(3)),
        ("a learner is here", || after(0)),
    ];
    let told = |mut batches: Batches, generation, last_step| {
        let request = NextBatchRequest { generation, ..request(last_step) };
        match batches.connect(StreamId(2), &request) {
            Ok(implied) => {
                batches.check_invariants();
                let implied: Vec<_> = implied.iter().map(|one| (one.step, one.kind)).collect();
                let next = batches.serve().map(|(_, batch)| (batch.step, batch.kind));
                format!("finished {implied:?}, then {next:?}")
            }
            Err(Refusal::OldGeneration { .. }) => "old generation".into(),
            Err(Refusal::TooOld { .. }) => "too old".into(),
            Err(Refusal::TooNew { .. }) => "too new".into(),
            Err(Refusal::Held { .. }) => "held".into(),
            Err(refusal) => panic!("{refusal}"),
        }
    };
    // Columns: a learner that holds step 0, 1, 2, 3.
    let table = [
        ["finished [], then Some((1, Sft))", "too new", "too new", "too new"],
        [
            "finished [], then Some((1, Sft))",
            "finished [(1, Sft)], then Some((2, Rl))",
            "finished [(1, Sft), (2, Rl)], then Some((2, Checkpoint))",
            "too new",
        ],
        [
            "finished [], then Some((1, Sft))",
            "finished [], then Some((2, Rl))",
            "finished [], then Some((2, Checkpoint))",
            "finished [(2, Checkpoint), (3, Rl)], then None",
        ],
        ["too old", "too old", "finished [], then Some((3, Rl))", "finished [(3, Rl)], then None"],
        ["held"; 4],
    ];
    for ((state, make), row) in states.into_iter().zip(table) {
        for (last_step, expected) in (0..).zip(row) {
            assert_eq!(told(make(), 2, last_step), expected, "{state}, {last_step}");
            // The one that is here may take its own place.
            let same =
                if state == "a learner is here" { table[1][last_step as usize] } else { expected };
            assert_eq!(told(make(), 1, last_step), same, "{state}, {last_step}");
            let older = match state {
                "nobody was here" | "a learner is here" => expected,
                _ => "old generation",
            };
            assert_eq!(told(make(), 0, last_step), older, "{state}, {last_step}");
        }
    }
}

#[test]
fn every_answer_is_taken_by_what_is_next() {
    let again = || {
        let mut batches = after(1);
        batches.disconnect(StreamId(1));
        batches.connect(StreamId(2), &request(0)).expect("free");
        served(&mut batches);
        batches
    };
    let states: [(&str, Make); 6] = [
        ("nobody is here", batches),
        ("1 and 2 are served", || after(0)),
        ("1 is answered", || after(1)),
        ("1 was answered before a crash", again),
        ("the checkpoint is answered", || after(3)),
        ("all are answered", || after(4)),
    ];
    use StepKind::{Checkpoint, Rl, Sft};
    let events = [(1, Sft), (1, Rl), (2, Rl), (2, Checkpoint), (3, Rl), (9, Rl)];
    let table = [
        ["no learner"; 6],
        ["first", "order", "order", "order", "order", "order"],
        ["duplicate", "duplicate", "first", "order", "order", "order"],
        ["again", "order", "order", "order", "order", "order"],
        ["duplicate", "duplicate", "duplicate", "duplicate", "first", "order"],
        ["duplicate", "duplicate", "duplicate", "duplicate", "duplicate", "order"],
    ];
    for ((state, make), row) in states.into_iter().zip(table) {
        for ((step, kind), expected) in events.into_iter().zip(row) {
            let taken = match answer(&mut make(), step, kind) {
                Ok(Completion::First(_)) => "first",
                Ok(Completion::Again) => "again",
                Ok(Completion::Duplicate) => "duplicate",
                Err(Refusal::OutOfOrder { .. }) => "order",
                Err(Refusal::NotTheLearner { .. }) => "no learner",
                Err(refusal) => panic!("{refusal}"),
            };
            assert_eq!(taken, expected, "{state}: {kind:?} of {step}");
            for (learner, generation) in [("other", 1), ("l", 0), ("l", 2)] {
                let other = make().complete(learner, Generation(generation), step, kind);
                assert!(matches!(other, Err(Refusal::NotTheLearner { .. })), "{state}");
            }
        }
    }
}

/// A learner that was served steps, crashed, came back from an older checkpoint and crashed again
/// may come back from the newest one it wrote, heard of or not.
#[test]
fn what_was_ever_served_can_be_held() {
    let mut batches = after(2);
    batches.disconnect(StreamId(1));
    batches.connect(StreamId(2), &request(0)).expect("from the first checkpoint");
    batches.disconnect(StreamId(2));
    batches.connect(StreamId(3), &request(3)).expect("from step 3, which was served");
}

#[test]
fn a_crashed_learner_gets_the_same_batches_again() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    served(&mut batches);
    answer(&mut batches, 1, StepKind::Sft).expect("in order");
    answer(&mut batches, 2, StepKind::Rl).expect("in order");
    batches.disconnect(StreamId(1));
    batches.connect(StreamId(2), &request(0)).expect("accepted");
    assert_eq!(served(&mut batches), [(1, StepKind::Sft), (2, StepKind::Rl)]);
    assert!(matches!(answer(&mut batches, 1, StepKind::Sft), Ok(Completion::Again)));
    assert!(matches!(answer(&mut batches, 2, StepKind::Rl), Ok(Completion::Again)));
    assert_eq!(served(&mut batches), [(2, StepKind::Checkpoint), (3, StepKind::Rl)]);
    assert!(matches!(answer(&mut batches, 2, StepKind::Checkpoint), Ok(Completion::First(_))));
}

#[test]
fn a_checkpoint_frees_what_is_behind_it() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    for (step, kind) in [(1, StepKind::Sft), (2, StepKind::Rl), (2, StepKind::Checkpoint)] {
        served(&mut batches);
        answer(&mut batches, step, kind).expect("in order");
    }
    served(&mut batches);
    assert_eq!(batches.recorded.len(), 1);
    batches.disconnect(StreamId(1));
    let refusal = batches.connect(StreamId(2), &request(1)).expect_err("too old").to_string();
    assert!(refusal.contains("checkpoint of step 2"), "{refusal}");
    let refusal = batches.connect(StreamId(2), &request(9)).expect_err("too new").to_string();
    assert!(refusal.contains("another run"), "{refusal}");
    batches.connect(StreamId(2), &request(2)).expect("accepted");
    assert_eq!(served(&mut batches), [(3, StepKind::Rl)]);
}

#[test]
fn a_checkpoint_that_was_not_reported_is_asked_for_again() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    for (step, kind) in [(1, StepKind::Sft), (2, StepKind::Rl)] {
        served(&mut batches);
        answer(&mut batches, step, kind).expect("in order");
    }
    batches.disconnect(StreamId(1));
    batches.connect(StreamId(2), &request(2)).expect("accepted");
    assert_eq!(served(&mut batches), [(2, StepKind::Checkpoint), (3, StepKind::Rl)]);
}

#[test]
fn a_step_whose_answer_was_lost_counts_as_finished() {
    let mut batches = batches();
    batches.connect(StreamId(1), &request(0)).expect("accepted");
    served(&mut batches);
    batches.disconnect(StreamId(1));
    let implied = batches.connect(StreamId(2), &request(1)).expect("accepted");
    assert_eq!(implied.iter().map(|batch| batch.step).collect::<Vec<_>>(), [1]);
    assert_eq!(served(&mut batches), [(2, StepKind::Rl), (2, StepKind::Checkpoint)]);
    assert!(matches!(answer(&mut batches, 1, StepKind::Sft), Ok(Completion::Duplicate)));
}
