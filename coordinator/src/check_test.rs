use ballast_proto::v1::{
    BatchGroup, EpisodeCancelled, EpisodeFinished, Role, SampledVersion, Span, StepFinished,
    StepKind, StopReason, TaskRef,
};

use super::*;
use crate::engine::summarize;

fn trajectory(id: u64, version: u64) -> Trajectory {
    let entry = SampledVersion { policy_version: version, manifest_hash: vec![0; 32] };
    Trajectory {
        episode_id: id,
        group_id: Some(id / 2),
        task: Some(TaskRef::default()),
        mode: Mode::Explore.into(),
        token_ids: vec![1],
        loss_mask: vec![1],
        behavior_logprobs: vec![-0.5],
        policy_versions: vec![version],
        sampled_versions: vec![entry],
        spans: vec![Span { role: Role::Assistant.into(), start: 0, end: 1, ..Span::default() }],
        stop_reason: StopReason::Done.into(),
        reward: Some(1.0),
        ..Trajectory::default()
    }
}

/// A journal in the making.
#[derive(Default)]
struct Records(Vec<(JournalEntry, Bytes)>);

impl Records {
    fn effect(&mut self, effect: effect::Effect) {
        let effects = vec![Effect { effect: Some(effect) }];
        self.0.push((JournalEntry { effects, ..JournalEntry::default() }, Bytes::new()));
    }

    fn dispatch(&mut self, id: u64) {
        self.effect(effect::Effect::Dispatched(EpisodeDispatched {
            episode_id: id,
            group_id: Some(id / 2),
            mode: Mode::Explore.into(),
            ..EpisodeDispatched::default()
        }));
    }

    fn finish(&mut self, id: u64, version: u64) {
        let one = trajectory(id, version);
        self.effect(effect::Effect::Finished(EpisodeFinished { episode_id: id }));
        let last = self.0.last_mut().expect("just pushed");
        last.0.event = Some(Event::TrajectoryReported(summarize(&one)));
        last.1 = one.encode_to_vec().into();
    }

    fn cancel(&mut self, id: u64) {
        self.effect(effect::Effect::Cancelled(EpisodeCancelled {
            episode_id: id,
            ..EpisodeCancelled::default()
        }));
    }

    fn batch(&mut self, index: u64, step: u64, groups: &[(u64, &[u64])]) {
        let group = |(id, episodes): &(u64, &[u64])| BatchGroup {
            group_id: *id,
            episodes: episodes.to_vec(),
        };
        self.effect(effect::Effect::Batch(BatchPlanned {
            index,
            step,
            kind: StepKind::Rl.into(),
            groups: groups.iter().map(group).collect(),
            ..BatchPlanned::default()
        }));
    }

    fn step(&mut self, step: u64) {
        self.effect(effect::Effect::Step(StepFinished { step, ..StepFinished::default() }));
    }

    fn report(&self, terms: &[u64]) -> Report {
        let mut check = Check::new(Some(1));
        for (position, (entry, payload)) in self.0.iter().enumerate() {
            let term = terms.get(position).copied().unwrap_or(9);
            let head = entry.encode_to_vec().into();
            check.record(position as u64, term, head, payload.clone());
        }
        check.finish()
    }

    /// The promises it breaks.
    fn broken(&self) -> Vec<&'static str> {
        self.report(&[]).violations.iter().map(|one| one.promise).collect()
    }
}

/// Two groups of two, of which one sibling was cancelled and run again; one step.
fn sound() -> Records {
    let mut records = Records::default();
    (0..4).for_each(|id| records.dispatch(id));
    (0..4).for_each(|id| records.finish(id, 0));
    records.batch(0, 1, &[(0, &[0, 1]), (1, &[2, 3])]);
    records.step(1);
    records
}

#[test]
fn a_sound_journal_breaks_nothing() {
    let report = sound().report(&[1, 1, 1, 2]);
    assert_eq!(report.violations, []);
    assert_eq!((report.dispatched, report.finished, report.trained), (4, 4, 4));
    assert_eq!((report.records, report.terms, report.step, report.batches), (10, 3, 1, 1));
}

#[test]
fn each_promise_is_seen_to_break() {
    type Plant = fn(&mut Records);
    let plants: [(&str, Plant); 12] = [
        ("J2", |records| records.dispatch(3)),
        ("J2", |records| records.dispatch(9)),
        ("J2", |records| records.cancel(2)),
        ("J2", |records| records.finish(2, 0)),
        ("J2", |records| records.cancel(77)),
        ("J1", |records| {
            records.dispatch(4);
            records.finish(4, 0);
            records.0.last_mut().expect("there").1 = Bytes::new();
        }),
        ("J3", |records| records.batch(1, 2, &[(1, &[3])])),
        ("J3", |records| {
            records.dispatch(4);
            records.finish(4, 1);
            records.batch(7, 2, &[(2, &[4])]);
        }),
        ("S1", |records| {
            records.dispatch(4);
            records.finish(4, 0);
            records.batch(1, 3, &[(2, &[4])]);
        }),
        ("G1", |records| {
            records.dispatch(4);
            records.dispatch(5);
            records.finish(4, 1);
            records.batch(1, 2, &[(2, &[4])]);
        }),
        ("V1", |records| records.step(3)),
        ("V1", |records| records.step(1)),
    ];
    for (index, (promise, plant)) in plants.into_iter().enumerate() {
        let mut records = sound();
        plant(&mut records);
        assert!(records.broken().contains(&promise), "plant {index}: {:?}", records.broken());
    }
}

#[test]
fn a_term_that_falls_and_an_acknowledgement_without_a_trajectory_are_seen() {
    let broken: Vec<_> = sound().report(&[3, 2]).violations;
    assert_eq!(broken[0].promise, "L1");
    let mut check = Check::new(None);
    check.acknowledged(EpisodeId(0));
    assert_eq!(check.finish().violations[0].promise, "J1");
}
