//! `ballast trajectory`: one of them, message by message.

use std::process::ExitCode;

use ballast_proto::v1::{
    SampledVersion, ShowTrajectoryRequest, ShowTrajectoryResponse, Span, Trajectory,
};

use super::{
    Ask,
    client::Client,
    trajectories::{outcome, task},
    wire::{hex, word},
};
use crate::table::{self, number, optional, text};

/// Bytes of a manifest hash that people are shown.
const HASH_BYTES_SHOWN: usize = 4;

/// Flags of `ballast trajectory`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrajectoryArgs {
    /// Number of the episode, as `ballast trajectories` shows it.
    episode: u64,
    #[command(flatten)]
    ask: Ask,
}

/// Shows it; its tokens only as JSON.
pub(super) async fn trajectory(args: &TrajectoryArgs) -> anyhow::Result<ExitCode> {
    let request = ShowTrajectoryRequest { episode_id: args.episode };
    args.ask.show(request, Client::show_trajectory, describe).await
}

fn describe(answer: &ShowTrajectoryResponse) -> String {
    // The coordinator says NOT_FOUND rather than leave it out.
    let Some(trajectory) = &answer.trajectory else { return "no such trajectory".to_owned() };
    let columns = [
        number("span"),
        text("role"),
        number("tokens"),
        text("state"),
        text("call"),
        text("as it was written"),
    ];
    let rows = trajectory.spans.iter().enumerate().flat_map(|(index, span)| rows(index, span));
    let spans = table::render(columns, rows, "it has no messages");
    format!("{}\n\n{spans}", table::facts(facts(trajectory)))
}

fn facts(trajectory: &Trajectory) -> Vec<(&'static str, String)> {
    let group = trajectory.group_id.map_or(String::new(), |group| format!(", group {group}"));
    let mode = word(trajectory.mode().as_str_name(), "MODE_");
    let stop = word(trajectory.stop_reason().as_str_name(), "STOP_REASON_");
    let reward = optional(trajectory.reward, |reward| format!("{reward:.3}"));
    let calls = trajectory.task.as_ref().map_or(0, |task| task.calls);
    let versions = trajectory.sampled_versions.iter().map(version).collect::<Vec<_>>();
    let actions = trajectory.loss_mask.iter().filter(|&&mask| mask == 1).count();
    let mass = trajectory.control_token_mass;
    let mut facts = vec![
        ("episode", format!("{}{group}, {mode}", trajectory.episode_id)),
        ("task", format!("{}, {calls} calls", optional(trajectory.task.as_ref(), task))),
        (
            "outcome",
            format!("{}, reward {reward}, stopped with {stop}", outcome(trajectory.success)),
        ),
        ("answer", optional(trajectory.answer.as_ref(), |answer| format!("\"{answer}\""))),
        ("tokens", format!("{}, {actions} of them actions", trajectory.token_ids.len())),
        ("took", format!("{:.1} s", trajectory.duration_ms as f64 / 1000.0)),
        ("seed", trajectory.sampling_seed.to_string()),
    ];
    if !versions.is_empty() {
        facts.push(("policy", versions.join(", ")));
    }
    if let Some(mass) = mass {
        facts.push(("control mass", format!("{mass:.1e}")));
    }
    facts
}

fn version(sampled: &SampledVersion) -> String {
    let shown = sampled.manifest_hash.len().min(HASH_BYTES_SHOWN);
    format!("v{} ({})", sampled.policy_version, hex(&sampled.manifest_hash[..shown]))
}

/// A line for the span, with its first call, and one for each call after that.
fn rows(index: usize, span: &Span) -> Vec<[String; 6]> {
    let state = match span.state {
        0 => String::new(),
        _ => word(span.state().as_str_name(), "STRUCTURAL_STATE_"),
    };
    let tokens = span.end.saturating_sub(span.start);
    let role = word(span.role().as_str_name(), "ROLE_");
    let none = String::new;
    let mut rows = vec![[index.to_string(), role, tokens.to_string(), state, none(), none()]];
    for (number, call) in span.calls.iter().enumerate() {
        if number > 0 {
            rows.push([none(), none(), none(), none(), none(), none()]);
        }
        let [.., status, raw] = &mut rows[number];
        *status = word(call.status().as_str_name(), "CALL_STATUS_");
        *raw = call.raw.trim().to_owned();
    }
    rows
}
