//! Numbers over trajectories: what the metrics of a batch and of an evaluation are made of.

use std::collections::BTreeMap;

use ballast_proto::v1::{CallStatus, Heartbeat, Role, StructuralState, Trajectory};

use super::batches::{Batch, Group};
use crate::metrics::name;

/// Assistant messages of a trajectory, by what is wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Messages {
    pub(super) all: usize,
    /// Hold a call that is malformed, names no tool, or has bad arguments.
    pub(super) invalid: usize,
    /// Polluted or collapsed.
    pub(super) polluted: usize,
}

/// Counts the assistant messages.
pub(super) fn messages(trajectory: &Trajectory) -> Messages {
    let mut messages = Messages::default();
    for span in trajectory.spans.iter().filter(|span| span.role() == Role::Assistant) {
        let model_failure = |status| {
            matches!(
                status,
                CallStatus::Malformed | CallStatus::UnknownTool | CallStatus::BadArguments
            )
        };
        messages.all += 1;
        messages.invalid += usize::from(span.calls.iter().any(|call| model_failure(call.status())));
        messages.polluted += usize::from(matches!(
            span.state(),
            StructuralState::Polluted | StructuralState::Collapsed
        ));
    }
    messages
}

/// Tool calls the policy asked for.
pub(super) fn calls(trajectory: &Trajectory) -> usize {
    trajectory.spans.iter().map(|span| span.calls.len()).sum()
}

/// Tokens the policy (or the expert) chose.
pub(super) fn sampled_tokens(trajectory: &Trajectory) -> u64 {
    trajectory.loss_mask.iter().filter(|mask| **mask != 0).count() as u64
}

/// Oldest policy version that sampled a token; `None` when none was sampled.
pub(super) fn oldest_version(trajectory: &Trajectory) -> Option<u64> {
    let tokens = trajectory.policy_versions.iter().zip(&trajectory.loss_mask);
    tokens.filter(|(_, mask)| **mask != 0).map(|(version, _)| *version).min()
}

/// What the newest heartbeats of all actors say together; nothing without an actor.
pub(super) fn of_actors<'a>(
    heartbeats: impl Iterator<Item = &'a Heartbeat>,
) -> Vec<(&'static str, f64)> {
    let (mut actors, mut idle) = (0usize, 0.0);
    let (mut computed, mut saved, mut evictions) = (0u64, 0u64, 0u64);
    for heartbeat in heartbeats {
        actors += 1;
        idle += f64::from(heartbeat.idle_share);
        computed = computed.saturating_add(heartbeat.prefill_tokens_computed);
        saved = saved.saturating_add(heartbeat.prefill_tokens_saved);
        evictions = evictions.saturating_add(heartbeat.kv_evictions);
    }
    if actors == 0 {
        return Vec::new();
    }
    let prefill = computed.saturating_add(saved) as f64;
    let mut values =
        vec![(name::IDLE_SHARE, idle / actors as f64), (name::KV_EVICTIONS, evictions as f64)];
    if prefill > 0.0 {
        values.push((name::PREFILL_SAVED_SHARE, saved as f64 / prefill));
    }
    values
}

/// part / whole; 0 when there is nothing.
pub(super) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Whether all siblings got the same reward, so that no advantage is left.
fn has_zero_variance(group: &Group) -> bool {
    let mut rewards = group.trajectories.iter().map(|trajectory| trajectory.reward);
    let first = rewards.next();
    rewards.all(|reward| Some(reward) == first)
}

/// Whether no sibling was fully right.
fn is_all_fail(group: &Group) -> bool {
    !group.trajectories.iter().any(|trajectory| trajectory.success == Some(true))
}

/// The rollout metrics of an RL batch; empty for any other.
pub(super) fn of_batch(batch: &Batch) -> BTreeMap<String, f64> {
    let all: Vec<&Trajectory> =
        batch.groups.iter().flat_map(|group| &group.trajectories).map(AsRef::as_ref).collect();
    if all.is_empty() {
        return BTreeMap::new();
    }
    let mut count = Messages::default();
    for messages in all.iter().map(|trajectory| messages(trajectory)) {
        count.all += messages.all;
        count.invalid += messages.invalid;
        count.polluted += messages.polluted;
    }
    let current = batch.step.saturating_sub(1);
    let staleness = |trajectory: &&Trajectory| {
        oldest_version(trajectory).map(|version| current.saturating_sub(version))
    };
    let successes = all.iter().filter(|one| one.success == Some(true)).count();
    let zero_variance = batch.groups.iter().filter(|group| has_zero_variance(group)).count();
    let all_fail = batch.groups.iter().filter(|group| is_all_fail(group)).count();
    let entries = [
        (name::SUCCESS, Some(share(successes, all.len()))),
        (name::REWARD_MEAN, mean(all.iter().filter_map(|one| one.reward).map(f64::from))),
        (name::CALLS_MEAN, mean(all.iter().map(|one| calls(one) as f64))),
        (name::INVALID_CALL_RATE, Some(share(count.invalid, count.all))),
        (name::POLLUTED_RATE, Some(share(count.polluted, count.all))),
        (
            name::CONTROL_TOKEN_MASS,
            mean(all.iter().filter_map(|one| one.control_token_mass).map(f64::from)),
        ),
        (name::TOKENS_MEAN, mean(all.iter().map(|one| one.token_ids.len() as f64))),
        (name::STALENESS_MAX, all.iter().filter_map(staleness).max().map(|max| max as f64)),
        (name::ZERO_VARIANCE, Some(zero_variance as f64)),
        (name::ALL_FAIL, Some(all_fail as f64)),
    ];
    let present = entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    present.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_are_weighed_by_what_they_did() {
        let heartbeat = |idle_share, computed, saved| Heartbeat {
            idle_share,
            prefill_tokens_computed: computed,
            prefill_tokens_saved: saved,
            kv_evictions: 2,
            ..Heartbeat::default()
        };
        let actors = [heartbeat(0.0, 100, 0), heartbeat(0.5, 100, 600)];
        let values: BTreeMap<_, _> = of_actors(actors.iter()).into_iter().collect();
        assert_eq!(values[name::IDLE_SHARE], 0.25);
        assert_eq!(values[name::PREFILL_SAVED_SHARE], 0.75);
        assert_eq!(values[name::KV_EVICTIONS], 4.0);
        assert!(of_actors(std::iter::empty()).is_empty());
        // An actor that has not run anything has no share.
        let new: BTreeMap<_, _> =
            of_actors(std::iter::once(&Heartbeat::default())).into_iter().collect();
        assert!(!new.contains_key(name::PREFILL_SAVED_SHARE));
    }
}
