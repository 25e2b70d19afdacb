//! `ballast status` and `ballast watch`: a run's state as text or JSON.

use std::{fmt::Write as _, process::ExitCode};

use ballast_proto::v1::{RunState, StatusRequest, StatusResponse};
use serde_json::{Value, json};

use crate::{
    admin::{self, Target},
    progress::{self, Progress},
    terminal,
};

/// Flags of `ballast status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Flags of `ballast watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object per change.
    #[arg(long)]
    json: bool,
    /// Print lines instead of bars; the default where stderr is no terminal.
    #[arg(long)]
    plain: bool,
}

/// Shows a run's state once.
pub(crate) async fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect().await?;
    let response =
        client.status(StatusRequest {}).await.map_err(|status| admin::explain(&status))?;
    let status = response.into_inner();
    terminal::say(&if args.json { to_json(&status).to_string() } else { describe(&status) });
    Ok(ExitCode::SUCCESS)
}

/// Follows a run until its coordinator ends or nobody reads any more.
pub(crate) async fn watch(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect().await?;
    let response =
        client.watch_status(StatusRequest {}).await.map_err(|status| admin::explain(&status))?;
    let mut stream = response.into_inner();
    let mut progress = (!args.json).then(|| Progress::new(args.plain));
    // The stream ends with an error when the coordinator exits; that is the end of the run.
    while let Ok(Some(status)) = stream.message().await {
        match &mut progress {
            Some(progress) => progress.update(&status),
            None if !terminal::say(&to_json(&status).to_string()) => break,
            None => {}
        }
    }
    if let Some(progress) = &mut progress {
        progress.finish();
        progress.note("the coordinator has ended");
    }
    Ok(ExitCode::SUCCESS)
}

/// The state's name in lower case, as in `running`.
pub(crate) fn state_name(state: RunState) -> String {
    state.as_str_name().trim_start_matches("RUN_STATE_").to_lowercase()
}

/// The whole status as JSON: the wire message, field by field under the same names.
fn to_json(status: &StatusResponse) -> Value {
    let actors: Vec<Value> = status
        .actors
        .iter()
        .map(|actor| {
            json!({
                "actor_id": actor.actor_id,
                "generation": actor.generation,
                "episodes_running": actor.episodes_running,
                "policy_version": actor.policy_version,
                "heartbeat_age_s": actor.heartbeat_age_s,
                "peak_rss_bytes": actor.peak_rss_bytes,
                "draining": actor.draining,
            })
        })
        .collect();
    let learner = status.learner.as_ref().map(|learner| {
        json!({
            "learner_id": learner.learner_id,
            "generation": learner.generation,
            "weights_address": learner.weights_address,
        })
    });
    json!({
        "run": status.run,
        "state": state_name(status.state()),
        "problem": status.problem,
        "phase": status.phase,
        "step": status.step,
        "phase_steps": status.phase_steps,
        "phase_step": status.phase_step,
        "episodes": episodes_json(status),
        "actors": actors,
        "learner": learner,
        "metrics": status.metrics,
        "evaluations": evaluations_json(status),
        "checkpoint": status.checkpoint,
        "uptime_s": status.uptime_s,
    })
}

fn episodes_json(status: &StatusResponse) -> Option<Value> {
    let episodes = status.episodes.as_ref()?;
    Some(json!({
        "dispatched": episodes.dispatched,
        "finished": episodes.finished,
        "cancelled": episodes.cancelled,
        "in_flight": episodes.in_flight,
        "cancelled_by_reason": episodes.cancelled_by_reason,
    }))
}

fn evaluations_json(status: &StatusResponse) -> Vec<Value> {
    let evaluation = |result: &ballast_proto::v1::EvaluationResult| {
        json!({
            "name": result.name,
            "policy_version": result.policy_version,
            "episodes": result.episodes,
            "successes": result.successes,
            "calls_mean": result.calls_mean,
            "invalid_call_rate": result.invalid_call_rate,
        })
    };
    status.evaluations.iter().map(evaluation).collect()
}

/// The status for people.
fn describe(status: &StatusResponse) -> String {
    let mut text = String::new();
    write_description(&mut text, status).expect("writing to a String cannot fail");
    text.trim_end().to_owned()
}

fn write_description(text: &mut String, status: &StatusResponse) -> std::fmt::Result {
    let (state, phase) = (state_name(status.state()), progress::phase_title(&status.phase));
    write!(text, "run {}: {state}", status.run)?;
    if !status.problem.is_empty() {
        write!(text, " ({})", status.problem)?;
    }
    writeln!(text, ", up {:.0} s", status.uptime_s)?;
    let (done, all) = (status.phase_step, status.phase_steps);
    writeln!(text, "phase        {phase} {done}/{all}, policy v{}", status.step)?;
    let facts = progress::facts(status);
    if !facts.is_empty() {
        writeln!(text, "newest       {facts}")?;
    }
    if let Some(episodes) = &status.episodes {
        writeln!(
            text,
            "episodes     {} dispatched, {} finished, {} in flight, {} cancelled",
            episodes.dispatched, episodes.finished, episodes.in_flight, episodes.cancelled
        )?;
        for (reason, count) in &episodes.cancelled_by_reason {
            writeln!(text, "             cancelled as {reason}: {count}")?;
        }
    }
    match &status.learner {
        Some(learner) => {
            writeln!(text, "learner      {} at {}", learner.learner_id, learner.weights_address)?;
        }
        None => writeln!(text, "learner      none connected")?,
    }
    for actor in &status.actors {
        write!(
            text,
            "actor        {}: {} episodes, v{}, heartbeat {:.1} s ago, {} MiB",
            actor.actor_id,
            actor.episodes_running,
            actor.policy_version,
            actor.heartbeat_age_s,
            actor.peak_rss_bytes >> 20
        )?;
        writeln!(text, "{}", if actor.draining { ", draining" } else { "" })?;
    }
    for evaluation in &status.evaluations {
        writeln!(text, "evaluation   {}", progress::evaluation_line(evaluation))?;
    }
    if let Some(checkpoint) = &status.checkpoint {
        writeln!(text, "checkpoint   {checkpoint}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::{ActorStatus, EpisodeCounts, EvaluationResult, LearnerStatus};

    use super::*;

    fn status_sample() -> StatusResponse {
        StatusResponse {
            run: "demo".into(),
            state: RunState::Running.into(),
            phase: "rl".into(),
            step: 42,
            phase_steps: 120,
            phase_step: 12,
            episodes: Some(EpisodeCounts {
                dispatched: 10,
                finished: 7,
                cancelled: 1,
                in_flight: 2,
                cancelled_by_reason: [("actor_lost".to_owned(), 1)].into(),
            }),
            actors: vec![ActorStatus { actor_id: "actor-0".into(), ..Default::default() }],
            learner: Some(LearnerStatus { learner_id: "learner".into(), ..Default::default() }),
            metrics: [("rollout/success".to_owned(), 0.5)].into(),
            evaluations: vec![EvaluationResult {
                name: "after_cold_start".into(),
                policy_version: 30,
                episodes: 400,
                successes: 180,
                calls_mean: 2.5,
                invalid_call_rate: 0.02,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn json_keeps_the_wire_names_and_absence() {
        let value = to_json(&status_sample());
        assert_eq!(value["state"], "running");
        assert_eq!(value["episodes"]["cancelled_by_reason"]["actor_lost"], 1);
        assert_eq!(value["evaluations"][0]["successes"], 180);
        assert_eq!(value["learner"]["learner_id"], "learner");
        let bare = to_json(&StatusResponse::default());
        assert!(bare["learner"].is_null() && bare["checkpoint"].is_null());
    }

    #[test]
    fn the_text_names_what_matters() {
        let text = describe(&status_sample());
        for expected in [
            "run demo: running",
            "training 12/120, policy v42",
            "success 50.0%",
            "10 dispatched, 7 finished, 2 in flight, 1 cancelled",
            "cancelled as actor_lost: 1",
            "actor-0: 0 episodes",
            "after cold start",
            "180/400",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
