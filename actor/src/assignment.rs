//! One assigned episode, read from the wire and checked.

use std::time::Duration;

use ballast_proto::{
    EpisodeId, GroupId, PolicyVersion,
    v1::{self, Mode, TaskRef},
};

use crate::decoder::Sampling;

/// What to run and within which bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Id under which the trajectory is reported.
    pub episode_id: EpisodeId,
    /// The rollout group it is a sibling of.
    pub group_id: Option<GroupId>,
    /// The task.
    pub task: TaskRef,
    /// Who acts: the policy or the expert.
    pub mode: Mode,
    /// The episode starts under this policy version or a newer one.
    pub min_policy_version: Option<PolicyVersion>,
    /// How its tokens are sampled.
    pub sampling: Sampling,
    /// Its bounds.
    pub limits: Limits,
}

/// Bounds of one episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Assistant messages.
    pub turns_max: u32,
    /// Tokens of one assistant message.
    pub message_tokens_max: usize,
    /// Tokens of the whole trajectory.
    pub trajectory_tokens_max: usize,
    /// Wall time from the start of the episode, tool calls included.
    pub duration_max: Duration,
}

/// Why an assignment cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAssignment {
    /// A required field is absent or unknown.
    #[error("assignment {episode} has no usable {field}")]
    Missing {
        /// Episode id.
        episode: EpisodeId,
        /// Field name.
        field: &'static str,
    },
}

impl Assignment {
    /// Checks a message of the coordinator.
    ///
    /// # Errors
    /// The first field that is absent, unknown or out of range.
    pub fn from_wire(wire: v1::Assignment) -> Result<Self, InvalidAssignment> {
        let episode = EpisodeId(wire.episode_id);
        let missing = |field| InvalidAssignment::Missing { episode, field };
        let mode = wire.mode();
        if mode == Mode::Unspecified {
            return Err(missing("mode"));
        }
        if mode == Mode::Explore && wire.group_id.is_none() {
            return Err(missing("group_id"));
        }
        if !(wire.temperature.is_finite() && wire.temperature >= 0.0) {
            return Err(missing("temperature"));
        }
        Ok(Self {
            episode_id: episode,
            group_id: wire.group_id.map(GroupId),
            task: wire.task.ok_or_else(|| missing("task"))?,
            mode,
            min_policy_version: wire.min_policy_version.map(PolicyVersion),
            sampling: Sampling::new(wire.sampling_seed, wire.temperature),
            limits: wire.limits.and_then(Limits::from_wire).ok_or_else(|| missing("limits"))?,
        })
    }
}

impl Limits {
    /// `None` when a bound is 0: no episode fits in it.
    fn from_wire(wire: v1::EpisodeLimits) -> Option<Self> {
        let limits = Self {
            turns_max: wire.turns_max,
            message_tokens_max: wire.message_tokens_max as usize,
            trajectory_tokens_max: wire.trajectory_tokens_max as usize,
            duration_max: Duration::from_millis(wire.duration_ms_max),
        };
        let possible = limits.turns_max > 0
            && limits.message_tokens_max > 0
            && limits.trajectory_tokens_max > 0
            && !limits.duration_max.is_zero();
        possible.then_some(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::Assignment {
        v1::Assignment {
            episode_id: 4,
            group_id: Some(1),
            task: Some(TaskRef::default()),
            mode: Mode::Explore.into(),
            min_policy_version: Some(2),
            sampling_seed: 9,
            temperature: 1.0,
            limits: Some(v1::EpisodeLimits {
                turns_max: 8,
                message_tokens_max: 48,
                trajectory_tokens_max: 512,
                duration_ms_max: 1000,
            }),
        }
    }

    #[test]
    fn a_sound_assignment_is_read() {
        let assignment = Assignment::from_wire(wire()).expect("a sound assignment");
        assert_eq!(assignment.episode_id, EpisodeId(4));
        assert_eq!(assignment.min_policy_version, Some(PolicyVersion(2)));
        assert_eq!(assignment.limits.duration_max, Duration::from_secs(1));
    }

    #[test]
    fn each_fault_is_named() {
        type Fault = (&'static str, fn(&mut v1::Assignment));
        let faults: [Fault; 7] = [
            ("mode", |a| a.mode = 77),
            ("group_id", |a| a.group_id = None),
            ("task", |a| a.task = None),
            ("temperature", |a| a.temperature = f32::NAN),
            ("temperature", |a| a.temperature = -1.0),
            ("limits", |a| a.limits = None),
            ("limits", |a| a.limits.as_mut().expect("limits").turns_max = 0),
        ];
        for (field, plant) in faults {
            let mut broken = wire();
            plant(&mut broken);
            let message = Assignment::from_wire(broken).expect_err(field).to_string();
            assert_eq!(message, format!("assignment e4 has no usable {field}"));
        }
    }
}
