use super::*;

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
    let refusal = batches.connect(StreamId(2), &request(0)).expect_err("held").to_string();
    assert!(refusal.contains("learner l (gen1)") && refusal.contains("stop it"), "{refusal}");
    assert!(!batches.disconnect(StreamId(2)), "the refused one is not the holder");
    assert!(batches.disconnect(StreamId(1)));
    batches.connect(StreamId(2), &request(0)).expect("free again");
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
