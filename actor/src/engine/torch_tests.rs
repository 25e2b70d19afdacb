//! The engine over a real network, where the numbers matter.

use ballast_policy::{Policy, Tensor};

use super::*;
use crate::{
    decoder::Sampling,
    testing::{assignment, engine_of, finish, network, staged_network},
    torch_decoder::{CacheConfig, TorchDecoderFactory},
};

const RUN: RunIndex = RunIndex(1);
/// Seeds of two networks that differ in every weight.
const BEFORE: u64 = 1;
const AFTER: u64 = 2;

fn engine(slots: usize, recompute_on_swap: bool) -> Engine {
    let cache = CacheConfig { bytes_max: None, recompute_on_swap };
    let factory = TorchDecoderFactory::new("cpu", 1).expect("a CPU").with_cache(cache);
    engine_of(factory, slots).0
}

fn siblings(engine: &mut Engine, count: u64) {
    for sibling in 0..count {
        let of_one_task = Assignment {
            episode_id: EpisodeId(sibling),
            sampling: Sampling::new(sibling, 1.0),
            ..assignment(5, Mode::Explore)
        };
        engine.assign(RUN, of_one_task).expect("a free slot");
    }
}

/// Largest difference between the recorded log-probabilities of the tokens that `version` sampled and
/// those of the whole trajectory under `policy`.
fn worst_gap(trajectory: &Trajectory, version: u64, policy: &Policy) -> f64 {
    let tokens: Vec<i64> = trajectory.token_ids.iter().map(|token| i64::from(*token)).collect();
    let logits = policy.forward(&Tensor::from_slice(&tokens).unsqueeze(0)).squeeze_dim(0);
    let logprobs = logits.log_softmax(-1, None);
    let sampled_by =
        |at: &usize| trajectory.loss_mask[*at] == 1 && trajectory.policy_versions[*at] == version;
    let mut count = 0;
    let gap = |at: usize| {
        count += 1;
        let scored = logprobs.double_value(&[at as i64 - 1, tokens[at]]);
        (scored - f64::from(trajectory.behavior_logprobs[at])).abs()
    };
    let worst = (0..tokens.len()).filter(sampled_by).map(gap).fold(0.0, f64::max);
    assert!(count > 5, "{count} tokens of v{version}");
    worst
}

#[test]
fn a_group_of_eight_shows_one_prefill_of_its_prompt() {
    let mut engine = engine(8, true);
    engine.adopt(&staged_network(1, BEFORE)).expect("adopted");
    siblings(&mut engine, 8);
    assert_eq!(engine.step(), []);
    let work = engine.counters.decoder_work();
    let trajectories = finish(&mut engine);
    let prompt = trajectories[0].loss_mask.iter().position(|mask| *mask == 1).expect("a sample");
    assert_eq!(work.prefill_computed as usize, prompt - 1 + 8);
    assert_eq!(work.prefill_saved as usize, 7 * (prompt - 1));
    for trajectory in &trajectories {
        let gap = worst_gap(trajectory, 1, &network(BEFORE));
        assert!(gap < 1e-4, "episode {}: {gap}", trajectory.episode_id);
    }
}

/// Trajectories of four siblings that live through a swap after twelve tokens.
fn swapped_in_flight(recompute_on_swap: bool) -> Vec<Trajectory> {
    let mut engine = engine(4, recompute_on_swap);
    engine.adopt(&staged_network(1, BEFORE)).expect("adopted");
    siblings(&mut engine, 4);
    for _ in 0..12 {
        assert_eq!(engine.step(), []);
    }
    engine.adopt(&staged_network(2, AFTER)).expect("adopted");
    let trajectories = finish(&mut engine);
    for trajectory in &trajectories {
        let bound: Vec<u64> =
            trajectory.sampled_versions.iter().map(|version| version.policy_version).collect();
        assert_eq!(bound, [1, 2]);
    }
    trajectories
}

#[test]
fn each_part_of_a_trajectory_is_that_of_its_version() {
    for trajectory in swapped_in_flight(true) {
        for (version, seed) in [(1, BEFORE), (2, AFTER)] {
            let gap = worst_gap(&trajectory, version, &network(seed));
            assert!(gap < 1e-4, "episode {} v{version}: {gap}", trajectory.episode_id);
        }
    }
}

#[test]
fn kept_keys_make_the_later_part_that_of_no_single_version() {
    for trajectory in swapped_in_flight(false) {
        assert!(worst_gap(&trajectory, 1, &network(BEFORE)) < 1e-4);
        // The two networks have nothing in common, so the difference is large.
        assert!(worst_gap(&trajectory, 2, &network(AFTER)) > 1e-2);
    }
}
