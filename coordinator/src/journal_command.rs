//! `ballast-coordinator journal`: what the files of a run say, without a coordinator.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use ballast_coordinator::{
    check::{Check, Report},
    compaction,
    journal::{Directory, Position, Reader},
};
use ballast_proto::{
    EpisodeId,
    v1::{JournalEntry, journal_entry::Event},
};
use ballast_runtime::config_file;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message as _;

/// Flags of `journal`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum JournalCommand {
    /// Prove a run's promises from its journal: nothing acknowledged is lost, every episode is
    /// counted once, no trajectory is trained twice. Exits with 1 if one does not hold.
    Check {
        /// Directory of the run.
        run: PathBuf,
        /// File of episode ids, one in a line, that actors were told are safe.
        #[arg(long, value_name = "FILE")]
        acknowledged: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write what the journal holds as Parquet, into trajectories/ and events/ of the run, where
    /// DuckDB, pandas and Polars read it (docs/dataset.md). Goes on where it ended last time; works
    /// at any time, also while the run goes on or after it was killed.
    Compact {
        /// Directory of the run.
        run: PathBuf,
    },
}

/// Runs it.
pub(crate) fn run(command: &JournalCommand) -> anyhow::Result<()> {
    match command {
        JournalCommand::Check { run, acknowledged, json } => {
            let report = check(run, acknowledged.as_deref())?;
            let mut out = io::stdout().lock();
            if *json {
                writeln!(out, "{}", serde_json::to_string(&report)?)?;
            } else {
                describe(&report, &mut out)?;
            }
            if !report.violations.is_empty() {
                bail!("{} promises are broken", report.violations.len());
            }
            Ok(())
        }
        JournalCommand::Compact { run } => compact(run),
    }
}

fn compact(run: &Path) -> anyhow::Result<()> {
    let (storage, reader) = open(run)?;
    let start = compaction::covered(run)?;
    let end = compaction::sealed(&*storage, &reader, start)?;
    // Hidden where stderr is no terminal.
    let bar = ProgressBar::new(end.0.saturating_sub(start.0));
    let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} records, {eta}");
    bar.set_style(style.context("the template of the progress bar")?);
    let done = compaction::compact(&reader, end, run, &mut |position| {
        bar.set_position(position.0.saturating_sub(start.0));
        true
    });
    bar.finish_and_clear();
    let (done, mut out) = (done?, io::stdout().lock());
    let (new, run) = (done.end.0 - done.start.0, run.display());
    writeln!(out, "{new} new records; {run}/trajectories and {run}/events have all {}", done.end)?;
    Ok(())
}

/// The journal in the directory of a run.
fn open(run: &Path) -> anyhow::Result<(Arc<Directory>, Reader)> {
    let journal = run.join("journal");
    if !journal.is_dir() {
        bail!("{} has no journal; name the directory of a run", run.display());
    }
    let storage = Arc::new(Directory::create(&journal)?);
    Ok((Arc::clone(&storage), Reader::open(storage)))
}

fn check(run: &Path, acknowledged: Option<&Path>) -> anyhow::Result<Report> {
    let (_, reader) = open(run)?;
    let mut records = reader.records_from(Position(0))?;
    let mut check = None;
    while let Some(next) = records.next_with_payload() {
        let (stored, payload) = next?;
        let check = check.get_or_insert_with(|| Check::new(staleness_bound(&stored.head)));
        check.record(stored.payload.position.0, stored.term.0, stored.head, payload);
    }
    let mut check = check.context("the journal is empty")?;
    if let Some(file) = acknowledged {
        let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let id = line.trim().trim_start_matches('e').parse();
            let id = id.with_context(|| format!("`{line}` is no episode id"))?;
            check.acknowledged(EpisodeId(id));
        }
    }
    Ok(check.finish())
}

/// The bound the run was created with.
fn staleness_bound(first: &[u8]) -> Option<u64> {
    use ballast_runtime::config::Pacing;
    let entry = JournalEntry::decode(first).ok()?;
    let Some(Event::RunCreated(created)) = entry.event else { return None };
    let rl = config_file::from_toml(&created.config_toml).ok()?.rl;
    Some(match rl.pacing {
        Pacing::Serial => 0,
        Pacing::OneStep => 1,
        Pacing::Async => rl.staleness_max,
    })
}

fn describe(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { records, terms, dispatched, finished, cancelled, in_flight, .. } = report;
    writeln!(out, "{records} records of {terms} leaderships")?;
    writeln!(
        out,
        "episodes    {dispatched} dispatched = {finished} finished + {cancelled} cancelled + \
         {in_flight} in flight"
    )?;
    writeln!(
        out,
        "training    step {}, {} batches, {} sampled trajectories, at most {} versions stale",
        report.step, report.batches, report.trained, report.staleness_max
    )?;
    for violation in &report.violations {
        writeln!(out, "BROKEN      {violation}")?;
    }
    if report.violations.is_empty() {
        writeln!(out, "every promise holds: J1 J2 J3 S1 G1 V1 L1")?;
    }
    Ok(())
}
