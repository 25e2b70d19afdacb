//! `ballast checkpoint` and `ballast checkpoints`.

use std::process::ExitCode;

use ballast_proto::v1::{CheckpointRequest, ListCheckpointsRequest, ListCheckpointsResponse};

use super::{Ask, client::Client};
use crate::table::{self, number, text};

/// Flags of `ballast checkpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    /// Why, for the journal.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    ask: Ask,
}

/// Flags of `ballast checkpoints`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointsArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Asks for a checkpoint.
pub(super) async fn checkpoint(args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let request = CheckpointRequest { reason: args.reason.clone() };
    let done = |step| {
        format!("a checkpoint is written after step {step}; then `ballast checkpoints` lists it")
    };
    args.ask.show(request, Client::checkpoint, |answer| done(answer.step)).await
}

/// Lists what was written.
pub(super) async fn checkpoints(args: &CheckpointsArgs) -> anyhow::Result<ExitCode> {
    args.ask.show(ListCheckpointsRequest {}, Client::list_checkpoints, describe).await
}

fn describe(answer: &ListCheckpointsResponse) -> String {
    let rows = answer.checkpoints.iter().map(|one| [one.step.to_string(), one.path.clone()]);
    table::render([number("step"), text("directory")], rows, "no checkpoint yet")
}
