//! What an episode comes to: a small trajectory that keeps M1, or one with something wrong with it.

use ballast_proto::v1::{
    Assignment, Mode, Role, SampledVersion, Span, StopReason, StructuralState, Trajectory,
};

use crate::{
    dice::Dice,
    env::{Env, Held},
    invariants::Blemish,
    scenario::VOCABULARY,
};

/// Makes the trajectory of an episode that was sampled under these versions.
pub(super) fn make(
    env: &Env,
    dice: &mut Dice,
    assignment: &Assignment,
    versions: &[Held],
) -> (Trajectory, Option<Blemish>) {
    let mut trajectory = sound(dice, assignment, versions);
    let blemish = choose(env, dice, assignment);
    if let Some(blemish) = blemish {
        apply(env, dice, assignment, &mut trajectory, blemish);
    }
    (trajectory, blemish)
}

fn sound(dice: &mut Dice, assignment: &Assignment, versions: &[Held]) -> Trajectory {
    let sampled = assignment.mode() != Mode::Demonstrate;
    let success = dice.chance(0.5);
    let mut trajectory = Trajectory {
        episode_id: assignment.episode_id,
        group_id: assignment.group_id,
        task: assignment.task.clone(),
        mode: assignment.mode,
        stop_reason: StopReason::Done.into(),
        reward: Some(if success { 1.0 } else { 0.0 }),
        success: Some(success || !sampled),
        sampling_seed: assignment.sampling_seed,
        duration_ms: dice.between(1, 1000),
        ..Trajectory::default()
    };
    let mut push = |mask: u8, logprob: f32, version: u64| {
        trajectory.token_ids.push(dice.between(0, u64::from(VOCABULARY) - 1) as u32);
        trajectory.loss_mask.push(mask);
        trajectory.behavior_logprobs.push(logprob);
        trajectory.policy_versions.push(version);
    };
    push(0, 0.0, 0);
    for (version, _) in versions {
        if sampled { push(1, -0.5, *version) } else { push(1, 0.0, 0) }
    }
    if sampled {
        let named = |(version, hash): &Held| SampledVersion {
            policy_version: *version,
            manifest_hash: hash.to_vec(),
        };
        trajectory.sampled_versions = versions.iter().map(named).collect();
    }
    let end = trajectory.token_ids.len() as u32;
    trajectory.spans = vec![
        Span { role: Role::User.into(), start: 0, end: 1, ..Span::default() },
        Span {
            role: Role::Assistant.into(),
            start: 1,
            end,
            state: StructuralState::HealthyResponse.into(),
            ..Span::default()
        },
    ];
    trajectory
}

fn choose(env: &Env, dice: &mut Dice, assignment: &Assignment) -> Option<Blemish> {
    let mishaps = env.scenario.mishaps;
    let spare = if env.healed { 0.0 } else { 1.0 };
    if dice.chance(mishaps.infrastructure * spare) {
        return Some(Blemish::Infrastructure);
    }
    if !dice.chance(mishaps.blemished * spare) {
        return None;
    }
    let of_samples = [
        Blemish::Unscored,
        Blemish::Mangled,
        Blemish::WrongTask,
        Blemish::OutsideVocabulary,
        Blemish::UnknownWeights,
        Blemish::Stale,
    ];
    let blemish = match assignment.mode() {
        Mode::Demonstrate => {
            dice.pick(&[Blemish::FailedDemonstration, Blemish::Mangled, Blemish::WrongTask])
        }
        _ => dice.pick(&of_samples),
    };
    let possible = match blemish {
        Blemish::OutsideVocabulary => env.scenario.says_vocabulary,
        Blemish::Stale => assignment.min_policy_version.is_some_and(|version| version > 0),
        _ => true,
    };
    possible.then_some(blemish)
}

fn apply(
    env: &Env,
    dice: &mut Dice,
    assignment: &Assignment,
    trajectory: &mut Trajectory,
    blemish: Blemish,
) {
    match blemish {
        Blemish::Infrastructure => {
            trajectory.stop_reason = StopReason::Infrastructure.into();
            (trajectory.reward, trajectory.success) = (None, None);
        }
        Blemish::Unscored => (trajectory.reward, trajectory.success) = (None, None),
        Blemish::FailedDemonstration => trajectory.success = Some(false),
        Blemish::Mangled => {
            trajectory.loss_mask.pop();
        }
        Blemish::WrongTask => {
            if let Some(task) = &mut trajectory.task {
                task.seed += 1;
            }
        }
        Blemish::OutsideVocabulary => {
            if let Some(token) = trajectory.token_ids.last_mut() {
                *token = VOCABULARY + dice.between(0, 5) as u32;
            }
        }
        Blemish::UnknownWeights => {
            for sampled in &mut trajectory.sampled_versions {
                sampled.manifest_hash = vec![dice.between(0, 255) as u8; 32];
            }
        }
        Blemish::Stale => {
            let version = assignment.min_policy_version.unwrap_or(1).saturating_sub(1);
            let hash = env.weights.all.get(&version).copied().unwrap_or_default();
            let masked = trajectory.policy_versions.iter_mut().zip(&trajectory.loss_mask);
            masked.filter(|(_, mask)| **mask != 0).for_each(|(token, _)| *token = version);
            trajectory.sampled_versions =
                vec![SampledVersion { policy_version: version, manifest_hash: hash.to_vec() }];
        }
    }
}
