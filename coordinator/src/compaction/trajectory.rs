//! The row of a finished episode.

use ballast_proto::v1::{Role, SampledVersion, Span, ToolCall, Trajectory, TrajectorySummary};

use super::{
    rows::{Actor, hex, name_of, task},
    value::{Row, Value},
};
use crate::journal::Position;

/// The columns of `trajectories`, in order.
pub(super) fn row(
    position: Position,
    t_s: f64,
    actor: Option<&Actor>,
    summary: &TrajectorySummary,
    trajectory: Trajectory,
) -> Row {
    let mode = name_of(trajectory.mode().as_str_name(), "MODE_");
    let stop_reason = name_of(trajectory.stop_reason().as_str_name(), "STOP_REASON_");
    let versions = &trajectory.sampled_versions;
    let newest_version = versions.iter().map(|sampled| sampled.policy_version).max();
    let [world, split, task_seed, task_calls] = task(trajectory.task.unwrap_or_default());
    vec![
        position.0.into(),
        t_s.into(),
        trajectory.episode_id.into(),
        trajectory.group_id.into(),
        actor.map(|actor| actor.id.as_str()).into(),
        actor.map(|actor| actor.generation).into(),
        world,
        split,
        task_seed,
        task_calls,
        mode,
        Value::bits(trajectory.sampling_seed),
        stop_reason,
        trajectory.reward.into(),
        trajectory.success.into(),
        trajectory.answer.into(),
        summary.tokens.into(),
        summary.tokens_sampled.into(),
        summary.messages.into(),
        summary.messages_invalid.into(),
        summary.messages_polluted.into(),
        summary.calls.into(),
        trajectory.control_token_mass.into(),
        summary.oldest_version.into(),
        newest_version.into(),
        trajectory.duration_ms.into(),
        Value::List(versions.iter().map(sampled_version).collect()),
        Value::List(trajectory.spans.into_iter().map(span).collect()),
        trajectory.token_ids.into(),
        trajectory.loss_mask.into(),
        trajectory.behavior_logprobs.into(),
        trajectory.policy_versions.into(),
    ]
}

fn sampled_version(sampled: &SampledVersion) -> Value {
    Value::Group(vec![sampled.policy_version.into(), hex(&sampled.manifest_hash)])
}

fn span(span: Span) -> Value {
    let role = name_of(span.role().as_str_name(), "ROLE_");
    let state = name_of(span.state().as_str_name(), "STRUCTURAL_STATE_");
    let state = if span.role() == Role::Assistant { state } else { Value::Absent };
    let calls = span.calls.into_iter().map(call).collect();
    Value::Group(vec![role, span.start.into(), span.end.into(), state, Value::List(calls)])
}

fn call(call: ToolCall) -> Value {
    let status = name_of(call.status().as_str_name(), "CALL_STATUS_");
    Value::Group(vec![call.name.into(), call.arguments_json.into(), status, call.raw.into()])
}
