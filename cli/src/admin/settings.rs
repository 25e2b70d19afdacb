//! `ballast settings` and `ballast set`: what can be changed while a run goes on, and changing it.

use std::process::ExitCode;

use ballast_proto::v1::{SetRequest, SettingsRequest};

use super::{Ask, client::Client};

/// Flags of `ballast settings`.
#[derive(Debug, clap::Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Flags of a change of settings.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Changes {
    /// Why, for the journal.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) reason: String,
    /// Refuse if somebody changed settings since this revision (`ballast settings` shows it).
    #[arg(long, value_name = "N")]
    pub(super) revision: Option<u64>,
}

/// Flags of `ballast set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Keys as in the configuration and their new values, for example `rl.learning_rate=1e-5`.
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    how: Changes,
    #[command(flatten)]
    ask: Ask,
}

/// Shows the settings as TOML; the revision is in a comment, so that it stays TOML.
pub(super) async fn settings(args: &SettingsArgs) -> anyhow::Result<ExitCode> {
    args.ask
        .show(SettingsRequest {}, Client::settings, |answer| {
            let head =
                format!("# revision {}; change any with `ballast set KEY=VALUE`", answer.revision);
            format!("{head}\n\n{}", answer.settings.trim_end())
        })
        .await
}

/// Changes settings.
pub(super) async fn set(args: &SetArgs) -> anyhow::Result<ExitCode> {
    let Changes { reason, revision } = args.how.clone();
    let request = SetRequest { changes: args.changes.clone(), reason, revision };
    args.ask.show(request, Client::set, |done| changed(done.step, done.revision)).await
}

/// What is said after a change.
pub(super) fn changed(step: u64, revision: u64) -> String {
    format!(
        "changed from step {step} on (revision {revision}); steps before it are decided already"
    )
}
