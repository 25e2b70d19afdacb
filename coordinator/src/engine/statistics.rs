//! Numbers over trajectories: what the metrics of a batch and of an evaluation are made of.

use std::{collections::BTreeMap, sync::Arc};

use ballast_proto::v1::{
    CallStatus, Heartbeat, Role, StructuralState, Trajectory, TrajectorySummary,
};

use super::batches::{Batch, Group};
use crate::metrics::name;

/// Assistant messages of a trajectory, by what is wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Messages {
    all: u32,
    /// Hold a call that is malformed, names no tool, or has bad arguments.
    invalid: u32,
    /// Polluted or collapsed.
    polluted: u32,
}

/// All of a trajectory that decisions are made from.
#[must_use]
pub fn summarize(trajectory: &Trajectory) -> TrajectorySummary {
    let messages = messages(trajectory);
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let sampled = trajectory.policy_versions.iter().zip(&trajectory.loss_mask);
    let is_demonstration = trajectory.mode() == ballast_proto::v1::Mode::Demonstrate;
    let oldest = sampled.filter(|(_, mask)| **mask != 0).map(|(version, _)| *version).min();
    TrajectorySummary {
        episode_id: trajectory.episode_id,
        group_id: trajectory.group_id,
        task: trajectory.task.clone(),
        mode: trajectory.mode,
        sampling_seed: trajectory.sampling_seed,
        stop_reason: trajectory.stop_reason,
        reward: trajectory.reward,
        success: trajectory.success,
        tokens: count(trajectory.token_ids.len()),
        tokens_sampled: count(trajectory.loss_mask.iter().filter(|mask| **mask != 0).count()),
        token_id_max: trajectory.token_ids.iter().copied().max().unwrap_or(0),
        oldest_version: oldest.filter(|_| !is_demonstration),
        sampled_versions: trajectory.sampled_versions.clone(),
        messages: messages.all,
        messages_invalid: messages.invalid,
        messages_polluted: messages.polluted,
        calls: count(trajectory.spans.iter().map(|span| span.calls.len()).sum()),
        control_token_mass: trajectory.control_token_mass.filter(|mass| mass.is_finite()),
        duration_ms: trajectory.duration_ms,
    }
}

fn messages(trajectory: &Trajectory) -> Messages {
    let mut messages = Messages::default();
    for span in trajectory.spans.iter().filter(|span| span.role() == Role::Assistant) {
        let model_failure = |status| {
            matches!(
                status,
                CallStatus::Malformed | CallStatus::UnknownTool | CallStatus::BadArguments
            )
        };
        messages.all += 1;
        messages.invalid += u32::from(span.calls.iter().any(|call| model_failure(call.status())));
        messages.polluted += u32::from(matches!(
            span.state(),
            StructuralState::Polluted | StructuralState::Collapsed
        ));
    }
    messages
}

/// What the newest heartbeats of all actors say together; nothing without an actor.
#[must_use]
pub fn of_actors<'a>(heartbeats: impl Iterator<Item = &'a Heartbeat>) -> BTreeMap<String, f64> {
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
        return BTreeMap::new();
    }
    let prefill = computed.saturating_add(saved) as f64;
    let mut values = BTreeMap::from([
        (name::IDLE_SHARE.to_owned(), idle / actors as f64),
        (name::KV_EVICTIONS.to_owned(), evictions as f64),
    ]);
    if prefill > 0.0 {
        values.insert(name::PREFILL_SAVED_SHARE.to_owned(), saved as f64 / prefill);
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

/// Whether all of them got the same reward, so that no advantage is left.
pub(super) fn is_flat<'a>(siblings: impl Iterator<Item = &'a Arc<TrajectorySummary>>) -> bool {
    let mut rewards = siblings.map(|trajectory| trajectory.reward);
    let first = rewards.next();
    rewards.all(|reward| Some(reward) == first)
}

/// Whether no sibling was fully right.
pub(super) fn is_all_fail(group: &Group) -> bool {
    !group.trajectories.iter().any(|trajectory| trajectory.success == Some(true))
}

/// The rollout metrics of an RL batch; empty for any other.
pub(super) fn of_batch(batch: &Batch) -> BTreeMap<String, f64> {
    let all: Vec<&TrajectorySummary> =
        batch.groups.iter().flat_map(|group| &group.trajectories).map(AsRef::as_ref).collect();
    if all.is_empty() {
        return BTreeMap::new();
    }
    let total = |count: fn(&TrajectorySummary) -> u32| {
        all.iter().map(|one| count(one) as usize).sum::<usize>()
    };
    let messages = total(|one| one.messages);
    let current = batch.step.saturating_sub(1);
    let staleness = |trajectory: &&TrajectorySummary| {
        trajectory.oldest_version.map(|version| current.saturating_sub(version))
    };
    let successes = all.iter().filter(|one| one.success == Some(true)).count();
    let zero_variance =
        batch.groups.iter().filter(|group| is_flat(group.trajectories.iter())).count();
    let all_fail = batch.groups.iter().filter(|group| is_all_fail(group)).count();
    let entries = [
        (name::SUCCESS, Some(share(successes, all.len()))),
        (name::REWARD_MEAN, mean(all.iter().filter_map(|one| one.reward).map(f64::from))),
        (name::CALLS_MEAN, mean(all.iter().map(|one| f64::from(one.calls)))),
        (name::INVALID_CALL_RATE, Some(share(total(|one| one.messages_invalid), messages))),
        (name::POLLUTED_RATE, Some(share(total(|one| one.messages_polluted), messages))),
        (
            name::CONTROL_TOKEN_MASS,
            mean(all.iter().filter_map(|one| one.control_token_mass).map(f64::from)),
        ),
        (name::TOKENS_MEAN, mean(all.iter().map(|one| f64::from(one.tokens)))),
        (name::STALENESS_MAX, all.iter().filter_map(staleness).max().map(|max| max as f64)),
        (name::ZERO_VARIANCE, Some(zero_variance as f64)),
        (name::ALL_FAIL, Some(all_fail as f64)),
        (name::REPLACED, Some(batch.replaced.len() as f64)),
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
        let values = of_actors(actors.iter());
        assert_eq!(values[name::IDLE_SHARE], 0.25);
        assert_eq!(values[name::PREFILL_SAVED_SHARE], 0.75);
        assert_eq!(values[name::KV_EVICTIONS], 4.0);
        assert!(of_actors(std::iter::empty()).is_empty());
        // An actor that has not run anything has no share.
        let new = of_actors(std::iter::once(&Heartbeat::default()));
        assert!(!new.contains_key(name::PREFILL_SAVED_SHARE));
    }
}
