//! `ballast audit`: who changed what.

use std::process::ExitCode;

use ballast_proto::v1::{AuditRequest, AuditResponse};

use super::{Ask, client::Client};
use crate::table::{self, number, text};

/// Flags of `ballast audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Shows the newest changes; all of them are in the journal.
pub(super) async fn audit(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    args.ask.show(AuditRequest {}, Client::audit, describe).await
}

fn describe(answer: &AuditResponse) -> String {
    let rows = answer.entries.iter().map(|one| {
        let outcome = if one.refusal.is_empty() {
            "done".to_owned()
        } else {
            format!("refused: {}", one.refusal)
        };
        let reason = if one.reason.is_empty() { "-" } else { &one.reason };
        [table::clock(one.t), one.who.clone(), one.what.clone(), reason.to_owned(), outcome]
    });
    let columns = [number("time"), text("who"), text("what"), text("why"), text("outcome")];
    table::render(columns, rows, "nobody has changed anything")
}
