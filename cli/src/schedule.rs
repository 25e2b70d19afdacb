//! `ballast schedule`: where a run's schedule is, why, and what it decided last; and live changes.

use std::{fmt::Write as _, process::ExitCode};

use ballast_proto::v1::{ScheduleRequest, ScheduleResponse, SetScheduleRequest};
use serde_json::{Value, json};

use crate::{
    admin::{self, Target},
    terminal,
};

/// Decisions that people are shown; `--json` has all that the coordinator keeps.
const DECISIONS_SHOWN: usize = 12;

/// Flags of `ballast schedule`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ScheduleArgs {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    target: Target,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Change {
    /// Change settings of the schedule from the first step on that is not decided yet.
    Set(SetArgs),
}

/// Flags of `ballast schedule set`.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// Keys of the section [schedule] and their new values, for example `kind=adaptive`.
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Why, for the journal.
    #[arg(long, default_value = "")]
    reason: String,
    /// Refuse if the schedule was changed since this revision (`ballast schedule` shows it).
    #[arg(long)]
    revision: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// Shows the schedule, or changes it.
pub(crate) async fn schedule(args: &ScheduleArgs) -> anyhow::Result<ExitCode> {
    if let Some(Change::Set(change)) = &args.change {
        return set(change).await;
    }
    let mut client = args.target.connect().await?;
    let response =
        client.schedule(ScheduleRequest {}).await.map_err(|status| admin::explain(&status))?;
    let schedule = response.into_inner();
    terminal::say(&if args.json { to_json(&schedule).to_string() } else { describe(&schedule) });
    Ok(ExitCode::SUCCESS)
}

async fn set(args: &SetArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect().await?;
    let request = SetScheduleRequest {
        changes: args.changes.clone(),
        reason: args.reason.clone(),
        revision: args.revision,
    };
    let response = client.set_schedule(request).await.map_err(|status| admin::explain(&status))?;
    let changed = response.into_inner();
    terminal::say(&format!(
        "changed from step {} on (revision {}); steps before it are decided already",
        changed.step, changed.revision
    ));
    Ok(ExitCode::SUCCESS)
}

/// The wire message, field by field under the same names.
fn to_json(schedule: &ScheduleResponse) -> Value {
    let decisions: Vec<Value> = schedule
        .decisions
        .iter()
        .map(|one| json!({"step": one.step, "what": one.what, "reason": one.reason, "t": one.t}))
        .collect();
    json!({
        "kind": schedule.kind,
        "phase": schedule.phase,
        "why": schedule.why,
        "ends": schedule.ends,
        "step": schedule.step,
        "decided_step": schedule.decided_step,
        "sft_share": schedule.sft_share,
        "strain": schedule.strain,
        "decisions": decisions,
        "revision": schedule.revision,
        "settings": schedule.settings,
    })
}

/// The schedule for people.
fn describe(schedule: &ScheduleResponse) -> String {
    let mut text = String::new();
    write_description(&mut text, schedule).expect("writing to a String cannot fail");
    text.trim_end().to_owned()
}

fn write_description(text: &mut String, schedule: &ScheduleResponse) -> std::fmt::Result {
    writeln!(text, "schedule     {}, revision {}", schedule.kind, schedule.revision)?;
    let (step, decided) = (schedule.step, schedule.decided_step);
    writeln!(text, "step         {step} finished, decided to step {decided}")?;
    if !schedule.phase.is_empty() {
        writeln!(text, "phase        {}, because {}", schedule.phase, schedule.why)?;
    }
    writeln!(text, "ends with    {}", schedule.ends)?;
    if let Some(share) = schedule.sft_share {
        write!(text, "sft share    {:.1}%", share * 100.0)?;
        match schedule.strain {
            Some(strain) => writeln!(text, ", strain {strain:.2} (1 is the limit)")?,
            None => writeln!(text, ", no RL step measured yet")?,
        }
    }
    let skipped = schedule.decisions.len().saturating_sub(DECISIONS_SHOWN);
    for one in &schedule.decisions[skipped..] {
        writeln!(text, "decision     step {:>5}  {:<20}  {}", one.step, one.what, one.reason)?;
    }
    Ok(())
}
