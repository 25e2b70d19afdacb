//! `ballast-sim`: plays many seeds, or one of them with everything that happens.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use ballast_sim::{Outcome, Plant, Totals, play};
use clap::{Parser, ValueEnum as _};
use indicatif::{ProgressBar, ProgressStyle};

/// Broken seeds that are shown before it stops.
const BROKEN_MAX: usize = 5;

/// Simulates whole runs under faults and checks every promise at every event.
///
/// One seed is one run, always the same. A broken promise is shown with the command that plays its
/// seed again.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    cargo run -p ballast-sim -- --seeds 10000\n  \
    cargo run -p ballast-sim -- --seed 42 --trace\n  \
    cargo run -p ballast-sim -- --seeds 100 --plant acknowledge-early"
)]
struct Args {
    /// Seeds to play.
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0, conflicts_with = "seed")]
    from: u64,
    /// Play this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant a bug, to see it caught.
    #[arg(long)]
    plant: Option<Plant>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (from, seeds) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let bar = progress(seeds, args.trace);
    let (mut totals, mut time, mut broken) = (Totals::default(), Duration::ZERO, 0);
    let (began, mut played) = (Instant::now(), 0);
    for seed in from..from.saturating_add(seeds) {
        let outcome = play(seed, args.plant, args.trace);
        totals.add(&outcome.totals);
        time += outcome.time;
        played += 1;
        bar.inc(1);
        if outcome.violation.is_some() {
            broken += 1;
            bar.suspend(|| show(&outcome, args.plant));
        }
        if args.seed.is_some() {
            println!("seed {seed}: trace {:016x}", outcome.hash);
        }
        if broken == BROKEN_MAX {
            break;
        }
    }
    bar.finish_and_clear();
    summarize(&totals, played, time, began.elapsed());
    if broken > 0 {
        println!("{broken} seeds broke a promise");
        return ExitCode::FAILURE;
    }
    println!("no promise was broken");
    ExitCode::SUCCESS
}

fn progress(seeds: u64, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left");
    // The template is one that indicatif knows, and the default is as good.
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(seeds).with_style(style)
}

/// A broken promise, what happened last, and how to see it again.
fn show(outcome: &Outcome, plant: Option<Plant>) {
    let Some(violation) = &outcome.violation else { return };
    println!("seed {} breaks {violation}", outcome.seed);
    for line in &outcome.newest {
        println!("  {line}");
    }
    let plant = plant.and_then(|plant| plant.to_possible_value());
    let plant = plant.map_or(String::new(), |plant| format!(" --plant {}", plant.get_name()));
    println!("play it again: cargo run -p ballast-sim -- --seed {} --trace{plant}\n", outcome.seed);
}

fn summarize(totals: &Totals, seeds: u64, time: Duration, took: Duration) {
    let hours = time.as_secs_f64() / 3600.0;
    let (seconds, rate) = (took.as_secs_f64(), seeds as f64 / took.as_secs_f64());
    println!("{seeds} seeds, {hours:.1} simulated hours, {seconds:.1} s, {rate:.1} seeds/s");
    println!(
        "{} events; {} records in {} commits; {} takeovers, {} from a snapshot, {} leaders fenced, \
         {} coordinators died",
        totals.events,
        totals.records,
        totals.commits,
        totals.takeovers,
        totals.snapshots_used,
        totals.fenced,
        totals.crashes
    );
    println!(
        "{} episodes; {} optimizer steps, {} of them again; {} changes by people",
        totals.episodes, totals.steps, totals.steps_again, totals.changes
    );
    let faults: Vec<String> =
        totals.faults().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", faults.join(", "));
}
