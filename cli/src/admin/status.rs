//! `ballast status` and `ballast watch`: a run's state as text or JSON.

use std::{process::ExitCode, time::Duration};

use ballast_proto::v1::{RunState, StatusRequest, StatusResponse};
use ballast_runtime::backoff::Backoff;
use tokio::time::Instant;

use super::{Ask, client::Client, wire};
use crate::{
    progress::{self, Progress},
    table, terminal,
};

/// A coordinator that goes away is waited for this long: it is restarted, or a standby takes over.
const LOST_WAIT: Duration = Duration::from_secs(60);
const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Flags of `ballast status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Flags of `ballast watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    ask: Ask,
    /// Print lines instead of bars; the default where stderr is no terminal.
    #[arg(long)]
    plain: bool,
}

/// Shows a run's state once.
pub(super) async fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    args.ask.show(StatusRequest {}, Client::status, describe).await
}

/// Follows a run until it is over, its coordinator is gone for good, or nobody reads any more.
pub(super) async fn watch(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let mut viewer = Viewer { progress: (!args.ask.json).then(|| Progress::new(args.plain)) };
    let ended = follow(&args.ask, &mut viewer).await;
    if let Some(progress) = &mut viewer.progress {
        progress.finish();
    }
    if ended? {
        viewer.note("the run is over");
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows status after status; whether the run is over, or nobody reads.
async fn follow(ask: &Ask, viewer: &mut Viewer) -> anyhow::Result<bool> {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, u64::from(std::process::id()));
    let mut lost: Option<Instant> = None;
    loop {
        match ask.call(StatusRequest {}, Client::watch_status).await {
            Ok(mut stream) => {
                // A coordinator that dies ends the stream with an error, one that was deposed without.
                while let Ok(Some(status)) = stream.message().await {
                    lost = None;
                    backoff.reset();
                    if !viewer.show(&status) {
                        return Ok(false);
                    }
                    if status.state() == RunState::Finished {
                        return Ok(true);
                    }
                }
            }
            Err(error) if lost.is_none_or(|since| since.elapsed() > LOST_WAIT) => {
                return Err(error);
            }
            Err(_) => {}
        }
        if lost.is_none() {
            viewer.note("the coordinator is gone: waiting for it, or for the one after it");
            lost = Some(Instant::now());
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Where statuses are shown.
struct Viewer {
    /// `None`: as JSON.
    progress: Option<Progress>,
}

impl Viewer {
    /// Shows one; false when nobody reads any more.
    fn show(&mut self, status: &StatusResponse) -> bool {
        match &mut self.progress {
            Some(progress) => {
                progress.update(status);
                true
            }
            None => terminal::emit(&wire::to_json(status).to_string()),
        }
    }

    fn note(&self, line: &str) {
        match &self.progress {
            Some(progress) => progress.note(line),
            None => terminal::complain(line),
        }
    }
}

/// The state's name in lower case, as in `running`.
pub(crate) fn state_name(state: RunState) -> String {
    wire::word(state.as_str_name(), "RUN_STATE_")
}

/// The status for people.
fn describe(status: &StatusResponse) -> String {
    let problem =
        if status.problem.is_empty() { String::new() } else { format!(" ({})", status.problem) };
    let state = state_name(status.state());
    let head = format!("run {}: {state}{problem}, up {:.0} s", status.run, status.uptime_s);
    format!("{head}\n{}", table::facts(facts(status)))
}

fn facts(status: &StatusResponse) -> Vec<(&'static str, String)> {
    let (phase, done, all) =
        (progress::phase_title(&status.phase), status.phase_step, status.phase_steps);
    let mut facts = vec![("phase", format!("{phase} {done}/{all}, policy v{}", status.step))];
    let newest = progress::facts(status);
    if !newest.is_empty() {
        facts.push(("newest", newest));
    }
    if let Some(episodes) = &status.episodes {
        facts.push((
            "episodes",
            format!(
                "{} dispatched, {} finished, {} in flight, {} cancelled",
                episodes.dispatched, episodes.finished, episodes.in_flight, episodes.cancelled
            ),
        ));
        let cancelled = episodes.cancelled_by_reason.iter();
        facts.extend(cancelled.map(|(why, count)| ("", format!("cancelled as {why}: {count}"))));
    }
    facts.push(match &status.learner {
        Some(learner) => {
            ("learner", format!("{} at {}", learner.learner_id, learner.weights_address))
        }
        None => ("learner", "none connected".to_owned()),
    });
    facts.extend(status.actors.iter().map(|actor| {
        let fact = format!(
            "{}: {} episodes, v{}, heartbeat {:.1} s ago, {} MiB{}",
            actor.actor_id,
            actor.episodes_running,
            actor.policy_version,
            actor.heartbeat_age_s,
            actor.peak_rss_bytes >> 20,
            if actor.draining { ", draining" } else { "" }
        );
        ("actor", fact)
    }));
    let evaluations = status.evaluations.iter().map(progress::evaluation_line);
    facts.extend(evaluations.map(|line| ("evaluation", line)));
    facts.extend(status.checkpoint.iter().map(|checkpoint| ("checkpoint", checkpoint.clone())));
    facts
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
