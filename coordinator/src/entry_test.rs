use std::collections::BTreeMap;

use ballast_proto::v1::{
    AdminChange, CheckpointRequest, CompleteStepRequest, DrainActorRequest, EpisodeCancelled,
    EpisodeDispatched, EpisodeFinished, EvaluateRequest, NextBatchRequest, PauseRequest,
    ResumeRequest, SampledVersion, SetRequest, StopRequest, TaskRef, TrajectorySummary,
    admin_change::Change,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..8).prop_map(String::from_iter)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

/// Any but NaN, which equals nothing.
fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("a number", |value| !value.is_nan())
}

fn values() -> impl Strategy<Value = BTreeMap<String, f64>> {
    proptest::collection::btree_map(text(), number(), 0..4)
}

prop_compose! {
    fn task()(world in text(), split in text(), seed: u64, calls: u32) -> TaskRef {
        TaskRef { world, split, seed, calls }
    }
}

prop_compose! {
    fn summary()(
        ids in any::<(u64, Option<u64>, u64, Option<u64>, u64)>(),
        counts in any::<(u32, u32, u32, u32, u32, u32, u32)>(),
        kinds in any::<(i32, i32)>(),
        task in proptest::option::of(task()),
        reward in proptest::option::of(0.0f32..1.0),
        success: Option<bool>,
        control_token_mass in proptest::option::of(0.0f32..1.0),
        sampled in proptest::collection::vec((any::<u64>(), bytes()), 0..3),
    ) -> TrajectorySummary {
        let sampled = sampled.into_iter().map(|(policy_version, manifest_hash)| {
            SampledVersion { policy_version, manifest_hash }
        });
        TrajectorySummary {
            episode_id: ids.0,
            group_id: ids.1,
            task,
            mode: kinds.0,
            sampling_seed: ids.2,
            stop_reason: kinds.1,
            reward,
            success,
            tokens: counts.0,
            tokens_sampled: counts.1,
            token_id_max: counts.2,
            oldest_version: ids.3,
            sampled_versions: sampled.collect(),
            messages: counts.3,
            messages_invalid: counts.4,
            messages_polluted: counts.5,
            calls: counts.6,
            control_token_mass,
            duration_ms: ids.4,
        }
    }
}

prop_compose! {
    fn next_batch()(
        learner_id in text(), generation: u64, last_step: u64, weights_address in text(),
        manifest_hash in bytes(), run_id in text(), vocabulary: u32,
    ) -> NextBatchRequest {
        NextBatchRequest {
            learner_id, generation, last_step, weights_address, manifest_hash, run_id, vocabulary,
        }
    }
}

prop_compose! {
    fn complete_step()(
        learner_id in text(), generation: u64, step: u64, kind: i32, manifest_hash in bytes(),
        skipped: bool, metrics in values(), checkpoint in proptest::option::of(text()),
    ) -> CompleteStepRequest {
        CompleteStepRequest {
            learner_id, generation, step, kind, manifest_hash, skipped, metrics, checkpoint,
        }
    }
}

fn change() -> impl Strategy<Value = Option<Change>> {
    let set = (proptest::collection::vec(text(), 0..3), text(), any::<Option<u64>>()).prop_map(
        |(changes, reason, revision)| Change::Set(SetRequest { changes, reason, revision }),
    );
    let drain = (text(), text())
        .prop_map(|(actor_id, reason)| Change::DrainActor(DrainActorRequest { actor_id, reason }));
    prop_oneof![
        Just(None),
        Just(Some(Change::Pause(PauseRequest {}))),
        Just(Some(Change::Resume(ResumeRequest {}))),
        Just(Some(Change::Stop(StopRequest {}))),
        text().prop_map(|reason| Some(Change::Checkpoint(CheckpointRequest { reason }))),
        text().prop_map(|reason| Some(Change::Evaluate(EvaluateRequest { reason }))),
        set.prop_map(Some),
        drain.prop_map(Some),
    ]
}

fn actor_event() -> impl Strategy<Value = Event> {
    let session = || any::<u64>().prop_map(SessionId);
    let episode = || any::<u64>().prop_map(EpisodeId);
    let actor = || (text().prop_map(ActorId), any::<u64>().prop_map(Generation));
    let claims = proptest::collection::vec(episode(), 0..5);
    let hello = (actor(), any::<u32>(), claims).prop_map(|((actor, generation), slots, claims)| {
        Hello { actor, generation, slots, claims }
    });
    prop_oneof![
        (session(), hello).prop_map(|(session, hello)| Event::ActorConnected { session, hello }),
        session().prop_map(|session| Event::ActorDisconnected { session }),
        actor().prop_map(|(actor, generation)| Event::LeaseExpired { actor, generation }),
        (session(), any::<u32>()).prop_map(|(session, slots)| Event::SlotsFreed { session, slots }),
        (session(), summary()).prop_map(|(session, trajectory)| Event::TrajectoryReported {
            session,
            trajectory: Arc::new(trajectory)
        }),
        (session(), episode(), text()).prop_map(|(session, episode, fault)| {
            Event::TrajectoryInvalid { session, episode, fault }
        }),
        (session(), episode(), text(), any::<u32>()).prop_map(
            |(session, episode, reason, tokens)| {
                Event::EpisodeGivenBack { session, episode, reason, tokens }
            }
        ),
    ]
}

/// Any event; calls are number 0, which is what a journal makes of them.
fn event() -> impl Strategy<Value = Event> {
    let call = CallId(0);
    let stream = || any::<u64>().prop_map(StreamId);
    prop_oneof![
        actor_event(),
        any::<u64>().prop_map(|term| Event::CoordinatorStarted { term }),
        (stream(), next_batch())
            .prop_map(|(stream, request)| Event::LearnerConnected { stream, request }),
        stream().prop_map(|stream| Event::LearnerDisconnected { stream }),
        (complete_step(), values()).prop_map(move |(request, actors)| Event::StepCompleted {
            call,
            request,
            actors
        }),
        (text(), text(), change()).prop_map(move |(who, reason, change)| Event::AdminRequested {
            call,
            who,
            change: AdminChange { reason, change }
        }),
        Just(Event::DeadlineReached),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// The rebuilt engine is told exactly what the one that died was told.
    #[test]
    fn an_event_comes_back_from_the_journal_as_it_was(event in event(), micros in 0u64..1 << 50) {
        let now = whole_micros(Duration::from_nanos(micros * 1000 + 999));
        let bytes = of_event(now, &event).encode_to_vec();
        let entry = read(JournalEntry::decode(bytes.as_slice()).expect("decodes"));
        prop_assert_eq!(entry, Ok(Entry::Handled { now, event, effects: Vec::new() }));
    }
}

#[test]
fn an_entry_that_lacks_a_part_says_which() {
    assert_eq!(read(JournalEntry::default()), Err(Unreadable("its event")));
    let of = |event| read(JournalEntry { event: Some(event), ..JournalEntry::default() });
    let stream = Err(Unreadable("its stream"));
    assert_eq!(of(Wire::SlotsFreed(v1::SlotsFreed { slots: 1 })), stream);
    assert_eq!(of(Wire::TrajectoryReported(TrajectorySummary::default())), stream);
    assert_eq!(
        of(Wire::StepCompleted(v1::StepCompleted::default())),
        Err(Unreadable("a finished step"))
    );
    assert_eq!(
        of(Wire::AdminRequested(v1::AdminRequested::default())),
        Err(Unreadable("a change"))
    );
    assert!(matches!(of(Wire::RunCreated(RunCreated::default())), Ok(Entry::Created(_))));
}

#[test]
fn a_payload_is_kept_once_and_only_if_somebody_waited_for_it() {
    let session = SessionId(1);
    let reported =
        Event::TrajectoryReported { session, trajectory: Arc::new(TrajectorySummary::default()) };
    let invalid = Event::TrajectoryInvalid { session, episode: EpisodeId(0), fault: String::new() };
    let given_back = Event::EpisodeGivenBack {
        session,
        episode: EpisodeId(0),
        reason: String::new(),
        tokens: 0,
    };
    let of = |effect| [Effect { effect: Some(effect) }];
    let finished = of(effect::Effect::Finished(EpisodeFinished::default()));
    let cancelled = of(effect::Effect::Cancelled(EpisodeCancelled::default()));
    let dispatched = of(effect::Effect::Dispatched(EpisodeDispatched::default()));
    assert!(keeps_payload(&reported, &finished));
    assert!(keeps_payload(&reported, &cancelled), "it was not the episode assigned");
    assert!(keeps_payload(&invalid, &cancelled));
    for event in [&reported, &invalid, &given_back] {
        assert!(!keeps_payload(event, &dispatched));
        assert!(!keeps_payload(event, &[]));
    }
    assert!(!keeps_payload(&given_back, &cancelled), "there is none");
}
