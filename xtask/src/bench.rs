//! `cargo xtask bench`: our numbers beside a peer's, measured in turns on this machine.
//!
//! A benchmark is a list of [`Pair`]s. Each side is a command that measures itself and prints
//! `{"tokens_per_s": [...]}`; the sides take turns, so that a machine that slows down slows both.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::checkout::Checkout;
use crate::{command, machine, setup, table};

mod quickstart;

/// Times that the two sides take turns.
const TURNS: usize = 3;

/// Load per core above which a measurement would tell about the other programs.
const LOAD_PER_CORE_MAX: f64 = 0.5;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which benchmark.
    name: Name,
    /// Also write the rows to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure although other programs keep the machine busy.
    #[arg(long)]
    busy: bool,
}

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// Rollout and training tokens/s of the quickstart's model, beside transformers on PyTorch.
    Quickstart,
}

/// One metric and the two commands that measure it.
struct Pair {
    metric: &'static str,
    unit: &'static str,
    peer: &'static str,
    ours: Command,
    theirs: Command,
}

/// One line of the result. `ratio` is ours / peer; above 1 we are faster.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    metric: &'static str,
    unit: &'static str,
    /// Median.
    ours: f64,
    /// Name and version of what we compare with.
    peer: &'static str,
    /// Median.
    peer_value: f64,
    ratio: f64,
    /// Measurements of each side.
    runs: usize,
    machine: String,
}

/// What a measuring command prints.
#[derive(Debug, Deserialize)]
struct Measured {
    tokens_per_s: Vec<f64>,
}

/// Measures, prints the table and writes the rows.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    if !options.busy {
        check_idle()?;
    }
    setup::run(checkout)?;
    let pairs = match options.name {
        Name::Quickstart => quickstart::pairs(checkout)?,
    };
    let machine = machine::describe();
    let mut rows = Vec::new();
    for pair in pairs {
        println!("measuring {} ({TURNS} turns)", pair.metric);
        rows.push(measure(pair, &machine)?);
    }
    println!("\n{}\n{machine}", render(&rows));
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn check_idle() -> Result<()> {
    let cores = machine::cores();
    if let Some(load) = machine::load().filter(|load| *load > LOAD_PER_CORE_MAX * cores as f64) {
        bail!(
            "the machine is busy (load {load:.1} on {cores} cores), so the numbers would be low: \
             wait until it is idle, or measure anyway with --busy"
        );
    }
    Ok(())
}

fn measure(mut pair: Pair, machine: &str) -> Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.extend(tokens_per_s(&mut pair.ours)?);
        theirs.extend(tokens_per_s(&mut pair.theirs)?);
    }
    let runs = ours.len().min(theirs.len());
    let (ours, peer_value) = (median(ours)?, median(theirs)?);
    Ok(Row {
        metric: pair.metric,
        unit: pair.unit,
        ours,
        peer: pair.peer,
        peer_value,
        ratio: ours / peer_value,
        runs,
        machine: machine.to_owned(),
    })
}

/// Runs a measuring command; its answer is the last line, after whatever its libraries print.
fn tokens_per_s(command: &mut Command) -> Result<Vec<f64>> {
    let printed = command::stdout(command)?;
    let last = printed.trim_end().lines().last().unwrap_or_default();
    let measured: Measured = serde_json::from_str(last)
        .with_context(|| format!("a benchmark printed no measurement but {last:?}"))?;
    Ok(measured.tokens_per_s)
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => bail!("a benchmark measured nothing"),
        values if values.len() % 2 == 0 => Ok(f64::midpoint(values[middle - 1], values[middle])),
        values => Ok(values[middle]),
    }
}

fn render(rows: &[Row]) -> String {
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.metric.to_owned(),
                row.unit.to_owned(),
                format!("{:.0}", row.ours),
                row.peer.to_owned(),
                format!("{:.0}", row.peer_value),
                format!("{:.2}", row.ratio),
                row.runs.to_string(),
            ]
        })
        .collect();
    let header = ["metric", "unit", "ours", "peer", "peer value", "ratio", "runs"];
    table::render(header, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints(text: &str) -> Command {
        let mut echo = Command::new("echo");
        echo.arg(text);
        echo
    }

    #[test]
    fn a_row_compares_medians() {
        let pair = Pair {
            metric: "rollout",
            unit: "tokens/s",
            peer: "other",
            ours: prints("{\"tokens_per_s\": [10, 90, 30]}"),
            theirs: prints("noise\n{\"tokens_per_s\": [20, 5, 15]}"),
        };
        let row = measure(pair, "a laptop").expect("both answer");
        assert_eq!((row.ours, row.peer_value, row.ratio, row.runs), (30.0, 15.0, 2.0, 9));
    }

    #[test]
    fn a_command_that_measures_nothing_is_an_error() {
        assert!(tokens_per_s(&mut prints("hello")).is_err());
        assert!(median(Vec::new()).is_err());
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]).ok(), Some(2.5));
    }
}
