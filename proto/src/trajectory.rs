//! The promises a trajectory must keep before anybody stores it or trains on it (M1).

use crate::v1::{Mode, Role, StopReason, Trajectory};

/// Why a trajectory is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrajectory {
    /// A per-token array differs in length from `token_ids`.
    #[error("episode {episode}: {field} has {length} entries for {tokens} tokens")]
    Length {
        /// Episode id.
        episode: u64,
        /// Field name.
        field: &'static str,
        /// Its length.
        length: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// The spans leave a gap, overlap, or do not cover the tokens.
    #[error("episode {episode}: its spans do not cover the tokens exactly (at token {at})")]
    Spans {
        /// Episode id.
        episode: u64,
        /// First token where coverage fails.
        at: u32,
    },
    /// A token outside the assistant's messages carries loss.
    #[error("episode {episode}: token {token} carries loss but is not the assistant's")]
    ForeignLoss {
        /// Episode id.
        episode: u64,
        /// Token index.
        token: usize,
    },
    /// A required field is absent or an enum has no known value.
    #[error("episode {episode}: {field} is missing or unknown")]
    Missing {
        /// Episode id.
        episode: u64,
        /// Field name.
        field: &'static str,
    },
    /// A number is not finite, or a log-probability is positive.
    #[error("episode {episode}: {field} holds an impossible number")]
    Number {
        /// Episode id.
        episode: u64,
        /// Field name.
        field: &'static str,
    },
    /// A sampled token names a policy version whose manifest hash is not listed.
    #[error("episode {episode}: no manifest hash for the sampled version v{version}")]
    UnboundVersion {
        /// Episode id.
        episode: u64,
        /// Policy version.
        version: u64,
    },
}

/// Checks M1 and the closed enums: equal lengths, spans that tile the tokens, loss only on the
/// assistant's tokens, finite numbers, and a manifest hash for each sampled version.
///
/// # Errors
/// The first fault found.
pub fn verify_trajectory(trajectory: &Trajectory) -> Result<(), InvalidTrajectory> {
    let episode = trajectory.episode_id;
    let tokens = trajectory.token_ids.len();
    let lengths = [
        ("loss_mask", trajectory.loss_mask.len()),
        ("behavior_logprobs", trajectory.behavior_logprobs.len()),
        ("policy_versions", trajectory.policy_versions.len()),
    ];
    for (field, length) in lengths {
        if length != tokens {
            return Err(InvalidTrajectory::Length { episode, field, length, tokens });
        }
    }
    let missing = |field| InvalidTrajectory::Missing { episode, field };
    if trajectory.task.is_none() {
        return Err(missing("task"));
    }
    if trajectory.mode() == Mode::Unspecified {
        return Err(missing("mode"));
    }
    if trajectory.stop_reason() == StopReason::Unspecified {
        return Err(missing("stop_reason"));
    }
    if trajectory.mode() == Mode::Explore && trajectory.group_id.is_none() {
        return Err(missing("group_id"));
    }
    verify_spans(trajectory)?;
    verify_numbers(trajectory)
}

fn verify_spans(trajectory: &Trajectory) -> Result<(), InvalidTrajectory> {
    let episode = trajectory.episode_id;
    let tokens = trajectory.token_ids.len();
    let mut at = 0u32;
    for span in &trajectory.spans {
        if span.start != at || span.end < span.start || span.end as usize > tokens {
            return Err(InvalidTrajectory::Spans { episode, at });
        }
        let range = span.start as usize..span.end as usize;
        let carries_loss = trajectory.loss_mask[range].iter().position(|mask| *mask != 0);
        if let (Some(offset), true) = (carries_loss, span.role() != Role::Assistant) {
            let token = span.start as usize + offset;
            return Err(InvalidTrajectory::ForeignLoss { episode, token });
        }
        at = span.end;
    }
    if at as usize != tokens {
        return Err(InvalidTrajectory::Spans { episode, at });
    }
    Ok(())
}

fn verify_numbers(trajectory: &Trajectory) -> Result<(), InvalidTrajectory> {
    let episode = trajectory.episode_id;
    // A log-probability computed in fp32 may exceed 0 by rounding.
    let possible = |logprob: &f32| logprob.is_finite() && *logprob <= 1e-4;
    if !trajectory.behavior_logprobs.iter().all(possible) {
        return Err(InvalidTrajectory::Number { episode, field: "behavior_logprobs" });
    }
    if trajectory.reward.is_some_and(|reward| !(0.0..=1.0).contains(&reward)) {
        return Err(InvalidTrajectory::Number { episode, field: "reward" });
    }
    if trajectory.mode() == Mode::Demonstrate {
        return Ok(());
    }
    let sampled = trajectory.policy_versions.iter().zip(&trajectory.loss_mask);
    for (version, _) in sampled.filter(|(_, mask)| **mask != 0) {
        let bound = |entry: &crate::v1::SampledVersion| {
            entry.policy_version == *version && entry.manifest_hash.len() == 32
        };
        if !trajectory.sampled_versions.iter().any(bound) {
            return Err(InvalidTrajectory::UnboundVersion { episode, version: *version });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{SampledVersion, Span, TaskRef};

    fn trajectory() -> Trajectory {
        Trajectory {
            episode_id: 7,
            group_id: Some(1),
            task: Some(TaskRef::default()),
            mode: Mode::Explore.into(),
            token_ids: vec![1, 2, 3, 4],
            loss_mask: vec![0, 0, 1, 1],
            behavior_logprobs: vec![0.0, 0.0, -0.5, -1.0],
            policy_versions: vec![0, 0, 3, 3],
            sampled_versions: vec![SampledVersion {
                policy_version: 3,
                manifest_hash: vec![0; 32],
            }],
            spans: vec![
                Span { role: Role::User.into(), start: 0, end: 2, ..Default::default() },
                Span { role: Role::Assistant.into(), start: 2, end: 4, ..Default::default() },
            ],
            stop_reason: StopReason::Done.into(),
            reward: Some(1.0),
            ..Default::default()
        }
    }

    #[test]
    fn a_sound_trajectory_is_accepted() {
        assert_eq!(verify_trajectory(&trajectory()), Ok(()));
    }

    #[test]
    fn each_fault_is_named() {
        type Fault = (&'static str, fn(&mut Trajectory));
        let faults: [Fault; 8] = [
            ("loss_mask has 3 entries", |t| {
                t.loss_mask.pop();
            }),
            ("mode is missing", |t| t.mode = 0),
            ("stop_reason is missing", |t| t.stop_reason = 99),
            ("group_id is missing", |t| t.group_id = None),
            ("token 1 carries loss", |t| t.loss_mask[1] = 1),
            ("spans do not cover", |t| t.spans[1].start = 3),
            ("behavior_logprobs holds an impossible", |t| t.behavior_logprobs[3] = f32::NAN),
            ("no manifest hash for the sampled version v3", |t| t.sampled_versions.clear()),
        ];
        for (expected, plant) in faults {
            let mut broken = trajectory();
            plant(&mut broken);
            let message = verify_trajectory(&broken).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
