//! `cargo xtask bench`: our numbers beside a peer's, measured in turns on this machine.
//!
//! A benchmark is a list of [`Pair`]s. Each side is a command that measures itself and prints
//! `{"tokens_per_s": [...]}`, and `tokens_per_cpu_s` if it can; the sides take turns, so that a machine
//! that slows down slows both.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::checkout::Checkout;
use crate::{command, machine, setup, table};

mod coordinator;
mod quickstart;
mod rollout;

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
    /// Only the rows whose name has TEXT in it.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// Rollout and training tokens/s of the quickstart's model, beside transformers on PyTorch.
    Quickstart,
    /// Sampling at three sizes, beside vLLM, llama.cpp and transformers. Installs them (10 GB).
    Rollout,
    /// Durable appends beside Redis Streams, fjall, SQLite, redb and a bare file; the engine, recovery,
    /// ten thousand actors. Needs redis-server.
    Coordinator,
}

/// One metric and the two commands that measure it.
struct Pair {
    metric: String,
    unit: &'static str,
    peer: &'static str,
    ours: Command,
    theirs: Command,
}

/// Something we measure of ourselves alone: a command, and what its answer means in words.
struct Fact {
    name: String,
    command: Command,
    words: fn(&Value) -> Option<String>,
}

/// One line of the result. `ratio` is ours / peer; above 1 we are faster.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    metric: String,
    unit: &'static str,
    /// Median.
    ours: f64,
    /// Name and version of what we compare with.
    peer: &'static str,
    /// Median.
    peer_value: f64,
    ratio: f64,
    /// The same per second of processor time, where both sides tell: medians and their ratio.
    per_cpu_s: Option<[f64; 3]>,
    /// Measurements of each side.
    runs: usize,
    machine: String,
}

/// What a measuring command prints.
#[derive(Debug, Default, Deserialize)]
struct Measured {
    tokens_per_s: Vec<f64>,
    #[serde(default)]
    tokens_per_cpu_s: Vec<f64>,
}

/// Measures, prints the table and writes the rows.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    if !options.busy {
        check_idle()?;
    }
    setup::run(checkout)?;
    let (mut pairs, mut facts) = match options.name {
        Name::Quickstart => (quickstart::pairs(checkout)?, Vec::new()),
        Name::Rollout => rollout::measurements(checkout)?,
        Name::Coordinator => return coordinator::run(checkout, options.only.as_deref()),
    };
    if let Some(text) = &options.only {
        pairs.retain(|pair| pair.metric.contains(text));
        facts.retain(|fact| fact.name.contains(text));
    }
    let machine = machine::describe();
    let load = machine::load();
    let mut rows = Vec::new();
    for pair in pairs {
        println!("measuring {} beside {} ({TURNS} turns)", pair.metric, pair.peer);
        rows.push(measure(pair, &machine)?);
    }
    let facts = facts.into_iter().map(state).collect::<Result<Vec<_>>>()?;
    println!("\n{}\n{}{machine}", render(&rows), facts.concat());
    if let (Some(before), Some(after)) = (load, machine::load()) {
        println!("load before {before:.2}, after {after:.2}");
    }
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
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for _ in 0..TURNS {
        ours.extend(measured(&mut pair.ours)?);
        theirs.extend(measured(&mut pair.theirs)?);
    }
    let runs = ours.tokens_per_s.len().min(theirs.tokens_per_s.len());
    let (value, peer_value) = (median(ours.tokens_per_s)?, median(theirs.tokens_per_s)?);
    let per_cpu_s = match (median(ours.tokens_per_cpu_s), median(theirs.tokens_per_cpu_s)) {
        (Ok(ours), Ok(theirs)) => Some([ours, theirs, ours / theirs]),
        _ => None,
    };
    Ok(Row {
        metric: pair.metric,
        unit: pair.unit,
        ours: value,
        peer: pair.peer,
        peer_value,
        ratio: value / peer_value,
        per_cpu_s,
        runs,
        machine: machine.to_owned(),
    })
}

/// One line about ourselves.
fn state(mut fact: Fact) -> Result<String> {
    println!("measuring {}", fact.name);
    let answer: Value = last_line(&mut fact.command)?;
    let words = (fact.words)(&answer);
    let words = words.with_context(|| format!("{}: no such measurement in {answer}", fact.name))?;
    Ok(format!("{}: {words}\n", fact.name))
}

impl Measured {
    fn extend(&mut self, more: Self) {
        self.tokens_per_s.extend(more.tokens_per_s);
        self.tokens_per_cpu_s.extend(more.tokens_per_cpu_s);
    }
}

fn measured(command: &mut Command) -> Result<Measured> {
    last_line(command)
}

/// Runs a measuring command; its answer is the last line, after whatever its libraries print.
fn last_line<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let printed = command::stdout(command)?;
    let last = printed.trim_end().lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .with_context(|| format!("a benchmark printed no measurement but {last:?}"))
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
                row.metric.clone(),
                row.unit.to_owned(),
                format!("{:.0}", row.ours),
                row.peer.to_owned(),
                format!("{:.0}", row.peer_value),
                format!("{:.2}", row.ratio),
                row.per_cpu_s.map_or_else(String::new, |[_, _, ratio]| format!("{ratio:.2}")),
                row.runs.to_string(),
            ]
        })
        .collect();
    let header =
        ["metric", "unit", "ours", "peer", "peer value", "ratio", "ratio per CPU-s", "runs"];
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
            metric: "rollout".into(),
            unit: "tokens/s",
            peer: "other",
            ours: prints("{\"tokens_per_s\": [10, 90, 30]}"),
            theirs: prints(
                "noise\n{\"tokens_per_s\": [20, 5, 15], \"tokens_per_cpu_s\": [1, 2, 3]}",
            ),
        };
        let row = measure(pair, "a laptop").expect("both answer");
        assert_eq!((row.ours, row.peer_value, row.ratio, row.runs), (30.0, 15.0, 2.0, 9));
        assert_eq!(row.per_cpu_s, None, "one side did not tell");
    }

    #[test]
    fn a_fact_is_said_in_words_or_is_an_error() {
        let fact = |text| Fact {
            name: "swap".into(),
            command: prints(text),
            words: |answer| Some(format!("{} ms", answer["p99"].as_f64()?)),
        };
        assert_eq!(state(fact("noise\n{\"p99\": 2.5}")).ok().as_deref(), Some("swap: 2.5 ms\n"));
        assert!(state(fact("{}")).is_err());
    }

    #[test]
    fn a_command_that_measures_nothing_is_an_error() {
        assert!(measured(&mut prints("hello")).is_err());
        assert!(median(Vec::new()).is_err());
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]).ok(), Some(2.5));
    }
}
