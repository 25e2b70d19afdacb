//! `ballast quarantine`: trajectories that were refused.

use std::process::ExitCode;

use ballast_proto::v1::{ListQuarantinedRequest, ListQuarantinedResponse};

use super::{Ask, client::Client};
use crate::table::{self, number, text};

/// Flags of `ballast quarantine`.
#[derive(Debug, clap::Args)]
pub(crate) struct QuarantineArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Lists them.
pub(super) async fn quarantine(args: &QuarantineArgs) -> anyhow::Result<ExitCode> {
    args.ask.show(ListQuarantinedRequest {}, Client::list_quarantined, describe).await
}

fn describe(answer: &ListQuarantinedResponse) -> String {
    let rows = answer.trajectories.iter().map(|one| {
        let episode = one.episode_id.to_string();
        [table::clock(one.t), episode, one.actor_id.clone(), one.fault.clone()]
    });
    let columns = [number("time"), number("episode"), text("actor"), text("what is wrong")];
    let listed = answer.trajectories.len() as u64;
    let table = table::render(columns, rows, "no trajectory was refused");
    if answer.total <= listed {
        return table;
    }
    format!("{table}\n\n{} more are too old to be listed", answer.total - listed)
}
