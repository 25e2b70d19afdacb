use std::sync::atomic::Ordering::Relaxed;

use ballast_proto::v1::{CallStatus, StopReason};

use super::*;
use crate::{
    decoder::Sampling,
    testing::{
        TableFactory, assignment, babbles, config_json, engine, engine_of, finish, plays,
        plays_demonstrations, staged, tokenizer, trajectory,
    },
};

const RUN: RunIndex = RunIndex(1);

fn run(engine: &mut Engine, mode: Mode, episodes: std::ops::Range<u64>) -> Vec<Trajectory> {
    for id in episodes {
        engine.assign(RUN, assignment(id, mode)).expect("a free slot");
    }
    finish(engine)
}

fn demonstrations(episodes: std::ops::Range<u64>) -> Vec<Trajectory> {
    let (mut engine, _) = engine(plays(&[]), 64);
    engine.adopt(&staged(0)).expect("adopted");
    run(&mut engine, Mode::Demonstrate, episodes)
}

#[test]
fn the_expert_succeeds_in_the_live_world() {
    let demonstrations = demonstrations(0..24);
    assert_eq!(demonstrations.len(), 24);
    for demonstration in demonstrations {
        assert_eq!(demonstration.success, Some(true), "episode {}", demonstration.episode_id);
        assert_eq!(demonstration.stop_reason(), StopReason::Done);
        assert!(demonstration.behavior_logprobs.iter().all(|logprob| *logprob == 0.0));
        assert!(demonstration.sampled_versions.is_empty());
        assert_eq!(demonstration.control_token_mass, None);
        let calls: usize = demonstration.spans.iter().map(|span| span.calls.len()).sum();
        assert_eq!(calls as u32, demonstration.task.expect("a task").calls);
    }
}

#[test]
fn a_policy_that_plays_the_expert_gets_the_same_trajectory() {
    let demonstrations = demonstrations(0..24);
    let (mut engine, _) = engine(plays_demonstrations(&demonstrations), 24);
    engine.adopt(&staged(5)).expect("adopted");
    let explored = run(&mut engine, Mode::Explore, 0..24);
    assert_eq!(explored.len(), 24);
    for (explored, demonstrated) in explored.iter().zip(&demonstrations) {
        assert_eq!(explored.reward, Some(1.0));
        assert_eq!(explored.token_ids, demonstrated.token_ids);
        assert_eq!(explored.loss_mask, demonstrated.loss_mask);
        assert_eq!(explored.sampled_versions[0].policy_version, 5);
        assert_eq!(explored.sampled_versions[0].manifest_hash, [5; 32]);
    }
    let sampled: usize =
        explored.iter().flat_map(|t| &t.loss_mask).filter(|mask| **mask == 1).count();
    assert_eq!(engine.counters.tokens_sampled(), sampled as u64);
    let processed: usize = explored.iter().map(|t| t.token_ids.len()).sum();
    assert_eq!(engine.counters.tokens_processed(), processed as u64);
}

#[test]
fn garbage_fails_as_the_model_s_fault_and_is_kept() {
    let (mut engine, _) = engine(plays(&["<tool_call>\nlamp please\n</tool_call>", "42"]), 1);
    engine.adopt(&staged(0)).expect("adopted");
    let [trajectory] = run(&mut engine, Mode::Explore, 3..4).try_into().expect("one");
    assert_eq!((trajectory.reward, trajectory.success), (Some(0.0), Some(false)));
    assert_eq!(trajectory.stop_reason(), StopReason::Done);
    let calls: Vec<_> = trajectory.spans.iter().flat_map(|span| &span.calls).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].status(), CallStatus::Malformed);
    assert_eq!(calls[0].raw, "\nlamp please\n");
    assert!(tokenizer().decode(&trajectory.token_ids).contains(r#"{"error": "malformed call"}"#));
}

#[test]
fn model_and_tool_failures_are_told_apart() {
    let call = |name: &str, arguments: &str| {
        format!(r#"<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>"#)
    };
    let cases = [
        (call("compute", r#"{"op": "add", "a": 1, "b": 2}"#), CallStatus::Ok),
        (call("teleport", "{}"), CallStatus::UnknownTool),
        (call("product", r#"{"colour": "red"}"#), CallStatus::BadArguments),
        (call("product", r#"{"name": "unobtainium"}"#), CallStatus::ToolError),
    ];
    for (text, expected) in cases {
        let (mut engine, _) = engine(plays(&[&text, "0"]), 1);
        engine.adopt(&staged(0)).expect("adopted");
        let [trajectory] = run(&mut engine, Mode::Evaluate, 0..1).try_into().expect("one");
        assert_eq!(trajectory.spans[2].calls[0].status(), expected, "{text}");
    }
}

#[test]
fn any_babble_gives_sound_trajectories_that_do_not_depend_on_the_batch() {
    let run = |slots: usize| {
        let (mut engine, _) = engine(babbles(), slots);
        engine.adopt(&staged(2)).expect("adopted");
        let ids: Vec<u64> = (0..96).collect();
        ids.chunks(slots)
            .flat_map(|ids| run(&mut engine, Mode::Explore, ids[0]..ids[ids.len() - 1] + 1))
            .collect::<Vec<_>>()
    };
    let trajectories = run(32);
    // The engine reports nothing that fails M1; a returned episode would panic in `finish`.
    assert_eq!(trajectories.len(), 96);
    let reasons: std::collections::BTreeSet<_> =
        trajectories.iter().map(|trajectory| trajectory.stop_reason).collect();
    assert!(reasons.len() >= 2, "babble should end in more than one way: {reasons:?}");
    let malformed = |t: &Trajectory| {
        t.spans.iter().flat_map(|s| &s.calls).any(|c| c.status() == CallStatus::Malformed)
    };
    assert!(trajectories.iter().any(malformed));
    assert_eq!(run(1), trajectories);
}

#[test]
fn an_episode_waits_for_the_version_it_must_not_be_older_than() {
    let (mut engine, _) = engine(plays(&["1"]), 2);
    let late =
        Assignment { min_policy_version: Some(PolicyVersion(4)), ..assignment(0, Mode::Explore) };
    engine.assign(RUN, late).expect("a free slot");
    assert!(!engine.is_runnable(), "no policy at all");
    engine.adopt(&staged(3)).expect("adopted");
    assert!(!engine.is_runnable(), "v3 is too old");
    assert_eq!(engine.step(), []);
    engine.adopt(&staged(4)).expect("adopted");
    let [trajectory] = finish(&mut engine).try_into().expect("one");
    assert_eq!(trajectory.sampled_versions[0].policy_version, 4);
    assert_eq!(engine.counters.policy_version(), 4);
}

#[test]
fn tokens_after_a_swap_carry_the_new_version() {
    let (mut engine, _) = engine(plays(&["one two three four five"]), 1);
    engine.adopt(&staged(7)).expect("adopted");
    engine.assign(RUN, assignment(0, Mode::Explore)).expect("a free slot");
    assert_eq!(engine.step(), []);
    assert_eq!(engine.step(), []);
    engine.adopt(&staged(8)).expect("adopted");
    let [trajectory] = finish(&mut engine).try_into().expect("one");
    let sampled = trajectory.policy_versions.iter().zip(&trajectory.loss_mask);
    let versions: Vec<u64> = sampled.filter(|(_, mask)| **mask == 1).map(|(v, _)| *v).collect();
    assert_eq!(versions[..3], [7, 7, 8]);
    assert!(versions[2..].iter().all(|version| *version == 8));
    let bound: Vec<u64> = trajectory.sampled_versions.iter().map(|v| v.policy_version).collect();
    assert_eq!(bound, [7, 8]);
}

#[test]
fn a_failing_decoder_is_not_the_policy_s_fault() {
    let (mut engine, _) =
        engine_of(TableFactory { failing_from: 1, ..TableFactory::new(plays(&["12"])) }, 2);
    engine.adopt(&staged(0)).expect("adopted");
    let trajectories = run(&mut engine, Mode::Explore, 0..2);
    assert_eq!(trajectories.len(), 2);
    for trajectory in trajectories {
        assert_eq!(trajectory.stop_reason(), StopReason::Infrastructure);
        assert_eq!(trajectory.reward, None);
    }
}

#[test]
fn an_unknown_world_is_not_the_policy_s_fault() {
    let (mut engine, _) = engine(plays(&[]), 1);
    engine.adopt(&staged(0)).expect("adopted");
    let mut lost = assignment(0, Mode::Explore);
    lost.task.world = "atlantis".into();
    engine.assign(RUN, lost).expect("a free slot");
    let [trajectory] = finish(&mut engine).try_into().expect("one");
    assert_eq!(trajectory.stop_reason(), StopReason::Infrastructure);
}

#[test]
fn the_wall_clock_ends_an_episode_with_a_score() {
    let (mut engine, hand) = engine(plays(&["one two three four"]), 1);
    engine.adopt(&staged(0)).expect("adopted");
    engine.assign(RUN, assignment(0, Mode::Explore)).expect("a free slot");
    assert_eq!(engine.step(), []);
    hand.store(60_000, Relaxed);
    let [report] = engine.step().try_into().expect("one");
    let trajectory = trajectory(report);
    assert_eq!(trajectory.stop_reason(), StopReason::TimeLimit);
    assert_eq!((trajectory.reward, trajectory.duration_ms), (Some(0.0), 60_000));
}

#[test]
fn slots_are_bounded_and_can_be_given_back() {
    let (mut engine, _) = engine(plays(&["1"]), 1);
    engine.assign(RUN, assignment(0, Mode::Explore)).expect("a free slot");
    assert_eq!(engine.assign(RUN, assignment(1, Mode::Explore)), Err(NoFreeSlot));
    let [report] = engine.return_waiting("drain").try_into().expect("one");
    let outcome = Outcome::Returned { episode_id: EpisodeId(0), reason: "drain".into(), tokens: 0 };
    assert_eq!(report, Report { run: RUN, outcome });
    engine.assign(RUN, assignment(2, Mode::Explore)).expect("a free slot");
    engine.adopt(&staged(0)).expect("adopted");
    assert_eq!(engine.step(), []);
    assert_eq!(engine.return_waiting("drain"), [], "a running episode is finished, not returned");
    engine.abandon();
    assert!(!engine.is_runnable());
    // The table decoder panics if the abandoned sequence were still open.
    assert_eq!(run(&mut engine, Mode::Explore, 3..4).len(), 1);
}

#[test]
fn siblings_share_the_prefill_of_their_opening() {
    let (mut engine, _) = engine(plays(&["one two"]), 8);
    engine.adopt(&staged(0)).expect("adopted");
    for sibling in 0..8 {
        let of_one_task = Assignment {
            sampling: Sampling::new(sibling, 1.0),
            ..Assignment { episode_id: EpisodeId(sibling), ..assignment(5, Mode::Explore) }
        };
        engine.assign(RUN, of_one_task).expect("a free slot");
    }
    let trajectories = finish(&mut engine);
    let opening = trajectories[0].loss_mask.iter().position(|mask| *mask == 1).expect("a sample");
    let work = engine.counters.decoder_work();
    // Once, and the last token of each sibling: what is sampled after it is its own.
    assert_eq!(work.prefill_computed as usize, opening - 1 + 8);
    assert_eq!(work.prefill_saved as usize, 7 * (opening - 1));
}

#[test]
fn too_little_memory_delays_episodes_and_changes_nothing_else() {
    let run = |memory: usize| {
        let (mut engine, _) =
            engine_of(TableFactory { memory, ..TableFactory::new(babbles()) }, 32);
        engine.adopt(&staged(2)).expect("adopted");
        (run(&mut engine, Mode::Explore, 0..32), engine.counters.decoder_work())
    };
    let (roomy, _) = run(32);
    let (tight, work) = run(3);
    assert_eq!(tight, roomy);
    // Tools answer at once here, so that no episode ever waits with its room unused.
    assert_eq!(work.evictions, 0);
}

#[test]
fn one_episode_can_be_cancelled() {
    let (mut engine, _) = engine(plays(&["one two three"]), 2);
    engine.adopt(&staged(0)).expect("adopted");
    engine.assign(RUN, assignment(0, Mode::Explore)).expect("a free slot");
    assert_eq!(engine.step(), []);
    engine.assign(RUN, assignment(1, Mode::Explore)).expect("a free slot");
    for (episode, left) in [(0, 1), (1, 0)] {
        let report = engine.cancel(EpisodeId(episode)).expect("it is here");
        let Outcome::Returned { episode_id, reason, tokens } = report.outcome else {
            panic!("it was not finished")
        };
        assert_eq!((report.run, episode_id, &*reason), (RUN, EpisodeId(episode), "cancelled"));
        // The first has its prompt and a token, the second has not started.
        assert_eq!(tokens > 100, episode == 0, "{tokens}");
        assert_eq!(engine.counters.episodes_running(), left);
    }
    assert_eq!(engine.cancel(EpisodeId(0)), None);
    // The table decoder panics if a cancelled sequence were still open.
    assert_eq!(run(&mut engine, Mode::Explore, 2..4).len(), 2);
}

fn with_template(staged: StagedPolicy, source: &str) -> StagedPolicy {
    let file = ("chat_template.jinja".to_owned(), source.as_bytes().to_vec());
    StagedPolicy { template_files: TemplateFiles::from_iter([file]), ..staged }
}

#[test]
fn episodes_speak_the_template_that_came_with_the_policy() {
    let source = ballast_chat::CHAT_TEMPLATE.replace("<tools>", "Your tools:");
    let (mut engine, _) = engine(plays(&["1"]), 1);
    engine.adopt(&with_template(staged(1), &source)).expect("adopted");
    let [trajectory] = run(&mut engine, Mode::Explore, 0..1).try_into().expect("one");
    let text = tokenizer().decode(&trajectory.token_ids);
    assert!(text.starts_with("<|im_start|>system\nYour tools:\n{\"name\": \"product\""), "{text}");
}

#[test]
fn a_template_that_episodes_cannot_be_told_with_is_not_adopted() {
    let (mut engine, _) = engine(plays(&["1"]), 1);
    let deaf = ballast_chat::CHAT_TEMPLATE.replace("'tool'", "'nobody'");
    let error = engine.adopt(&with_template(staged(1), &deaf)).expect_err("no results");
    let expected = "chat template of the published policy: chat_template.jinja ";
    assert!(error.to_string().starts_with(expected), "{error}");
    engine.adopt(&staged(1)).expect("adopted");
}

#[test]
fn a_policy_that_cannot_be_used_changes_nothing() {
    let (mut engine, _) = engine(plays(&["1"]), 1);
    let mut foreign = staged(1);
    foreign.config_json = config_json(9).into();
    let error = engine.adopt(&foreign).expect_err("too few rows").to_string();
    let tokens = tokenizer().vocab_size();
    let named = format!("vocab_size 9, but tokenizer.json has {tokens} tokens");
    assert!(error.contains(&named), "{error}");
    engine.adopt(&staged(1)).expect("adopted");
    let mut other = staged(2);
    other.config_json = b"{}".to_vec().into();
    assert_eq!(engine.adopt(&other), Err(AdoptError::AnotherModel));
    let other = with_template(staged(2), ballast_chat::CHAT_TEMPLATE);
    assert_eq!(engine.adopt(&other), Err(AdoptError::AnotherModel));
    assert_eq!(run(&mut engine, Mode::Explore, 0..1)[0].sampled_versions[0].policy_version, 1);
}

/// What the base model was trained to read, as it was when that was done: another prompt format
/// would change what the quickstart shows.
#[test]
fn the_base_model_reads_what_it_always_read() {
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/market/base");
    let file = |name: &str| std::fs::read(base.join(name)).expect("a file of the base model");
    let base = StagedPolicy {
        config_json: file("config.json").into(),
        tokenizer_json: file("tokenizer.json").into(),
        ..staged(0)
    };
    let (mut engine, _) = engine(plays(&[]), 64);
    engine.adopt(&base).expect("adopted");
    let mut hasher = blake3::Hasher::new();
    for trajectory in run(&mut engine, Mode::Demonstrate, 0..64) {
        assert_eq!(trajectory.success, Some(true));
        for (id, mask) in trajectory.token_ids.iter().zip(&trajectory.loss_mask) {
            hasher.update(format!("{id}/{mask} ").as_bytes());
        }
        for span in &trajectory.spans {
            hasher.update(format!("{:?}:{}-{}\n", span.role(), span.start, span.end).as_bytes());
        }
    }
    let expected = "60dad0c6f86d1a82d41861f60863ccc0dfafb8100b5a8f27b5af506bdd343417";
    assert_eq!(hasher.finalize().to_hex().as_str(), expected);
}
