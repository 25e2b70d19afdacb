//! `ballast trajectories`: the newest finished ones, without their tokens.

use std::process::ExitCode;

use ballast_proto::v1::{
    self, ListTrajectoriesRequest, ListTrajectoriesResponse, TaskRef, TrajectoryEntry,
};

use super::{Ask, client::Client, wire::word};
use crate::table::{self, number, optional, text};

/// Most that the coordinator lists.
const LIMIT_MAX: i64 = 1000;

/// Flags of `ballast trajectories`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrajectoriesArgs {
    /// Only those that were fully right.
    #[arg(long, conflicts_with = "failed")]
    succeeded: bool,
    /// Only those that were not.
    #[arg(long)]
    failed: bool,
    /// Only those of this mode.
    #[arg(long)]
    mode: Option<Mode>,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    #[command(flatten)]
    ask: Ask,
}

/// How an episode was run.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    /// The policy acted, for RL.
    Explore,
    /// The expert acted, for SFT.
    Demonstrate,
    /// The policy acted on a held-out task.
    Evaluate,
}

impl From<Mode> for v1::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Explore => Self::Explore,
            Mode::Demonstrate => Self::Demonstrate,
            Mode::Evaluate => Self::Evaluate,
        }
    }
}

/// Lists them.
pub(super) async fn trajectories(args: &TrajectoriesArgs) -> anyhow::Result<ExitCode> {
    let request = ListTrajectoriesRequest {
        limit: args.limit,
        success: (args.succeeded || args.failed).then_some(args.succeeded),
        mode: args.mode.map_or(v1::Mode::Unspecified, v1::Mode::from).into(),
    };
    args.ask.show(request, Client::list_trajectories, describe).await
}

fn describe(answer: &ListTrajectoriesResponse) -> String {
    let columns = [
        number("episode"),
        number("group"),
        text("mode"),
        text("task"),
        number("calls"),
        number("tokens"),
        number("policy"),
        number("reward"),
        text("outcome"),
        text("stopped with"),
    ];
    table::render(columns, answer.trajectories.iter().map(row), "no such trajectory yet")
}

fn row(one: &TrajectoryEntry) -> [String; 10] {
    [
        one.episode_id.to_string(),
        optional(one.group_id, |group| group.to_string()),
        word(one.mode().as_str_name(), "MODE_"),
        optional(one.task.as_ref(), task),
        one.calls.to_string(),
        one.tokens.to_string(),
        optional(one.oldest_version, |version| format!("v{version}")),
        optional(one.reward, |reward| format!("{reward:.3}")),
        outcome(one.success).to_owned(),
        word(one.stop_reason().as_str_name(), "STOP_REASON_"),
    ]
}

/// A task as one word.
pub(super) fn task(task: &TaskRef) -> String {
    format!("{}/{}/{}", task.world, task.split, task.seed)
}

/// Whether an episode was fully right.
pub(super) fn outcome(success: Option<bool>) -> &'static str {
    match success {
        Some(true) => "success",
        Some(false) => "failure",
        None => "not scored",
    }
}
