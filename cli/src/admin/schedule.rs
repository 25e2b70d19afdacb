//! `ballast schedule`: where a run's schedule is, why, and what it decided last; and live changes.

use std::process::ExitCode;

use ballast_proto::v1::{ScheduleRequest, ScheduleResponse, SetScheduleRequest};

use super::{
    Ask,
    client::Client,
    settings::{self, Changes},
};
use crate::table::{self, number, text};

/// Decisions that people are shown; `--json` has all that the coordinator keeps.
const DECISIONS_SHOWN: usize = 12;

/// Flags of `ballast schedule`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ScheduleArgs {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, clap::Subcommand)]
enum Change {
    /// Change settings of the schedule from the first step on that is not decided yet.
    #[command(after_help = "Examples:\n  \
        ballast schedule set kind=adaptive --reason \"it forgets the format\"\n  \
        ballast schedule set rl_steps=5 sft_steps=1 --revision 2")]
    Set(SetArgs),
}

/// Flags of `ballast schedule set`.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// Keys of the section [schedule] and their new values, for example `kind=adaptive`.
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    how: Changes,
    #[command(flatten)]
    ask: Ask,
}

/// Shows the schedule, or changes it.
pub(super) async fn schedule(args: &ScheduleArgs) -> anyhow::Result<ExitCode> {
    match &args.change {
        Some(Change::Set(change)) => set(change).await,
        None => args.ask.show(ScheduleRequest {}, Client::schedule, describe).await,
    }
}

async fn set(args: &SetArgs) -> anyhow::Result<ExitCode> {
    let Changes { reason, revision } = args.how.clone();
    let request = SetScheduleRequest { changes: args.changes.clone(), reason, revision };
    let done = Client::set_schedule;
    args.ask.show(request, done, |done| settings::changed(done.step, done.revision)).await
}

/// The schedule for people.
fn describe(schedule: &ScheduleResponse) -> String {
    let (step, decided) = (schedule.step, schedule.decided_step);
    let mut facts = vec![
        ("schedule", format!("{}, revision {}", schedule.kind, schedule.revision)),
        ("step", format!("{step} finished, decided to step {decided}")),
    ];
    if !schedule.phase.is_empty() {
        facts.push(("phase", format!("{}, because {}", schedule.phase, schedule.why)));
    }
    facts.push(("ends with", schedule.ends.clone()));
    if let Some(share) = schedule.sft_share {
        let strain = match schedule.strain {
            Some(strain) => format!("strain {strain:.2} (1 is the limit)"),
            None => "no RL step measured yet".to_owned(),
        };
        facts.push(("sft share", format!("{:.1}%, {strain}", share * 100.0)));
    }
    let skipped = schedule.decisions.len().saturating_sub(DECISIONS_SHOWN);
    let decisions = schedule.decisions[skipped..].iter().map(|one| {
        [one.step.to_string(), table::clock(one.t), one.what.clone(), one.reason.clone()]
    });
    let columns = [number("step"), number("time"), text("decision"), text("reason")];
    let decisions = table::render(columns, decisions, "no decision yet");
    format!("{}\n\n{decisions}", table::facts(facts))
}
