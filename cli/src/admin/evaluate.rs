//! `ballast evaluate`.

use std::process::ExitCode;

use ballast_proto::v1::EvaluateRequest;

use super::{Ask, client::Client};

/// Flags of `ballast evaluate`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvaluateArgs {
    /// Why, for the journal.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    ask: Ask,
}

/// Asks for an evaluation.
pub(super) async fn evaluate(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    let request = EvaluateRequest { reason: args.reason.clone() };
    let done = "an evaluation follows the steps that are planned already; `ballast status` will \
                show it as `requested`";
    args.ask.show(request, Client::evaluate, |_| done.to_owned()).await
}
