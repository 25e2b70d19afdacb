//! The control plane: durable appends beside other stores on the same disk, and three facts about
//! ours alone: the engine, recovery, and ten thousand actors on one core.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{TURNS, last_line, machine, median};
use crate::checkout::Checkout;
use crate::{command, table};

/// Records of 1 KiB, each durable before the next one of its client.
const CLIENTS: &[&str] = &["--clients", "50", "--records", "300000"];
/// Records of 1 KiB, 64 in a commit.
const BATCHES: &[&str] = &["--batch", "64", "--records", "500000"];
/// Trajectories of 64 KiB, as many on their way as the intake takes.
const TRAJECTORIES: &[&str] = &["--bytes", "65536", "--records", "16000"];
/// A journal of 1 GB.
const RECOVERY: &[&str] = &["--bytes", "65536", "--records", "16000"];

/// Somebody who keeps records.
struct Keeper {
    name: &'static str,
    command: Command,
    answers: Vec<Value>,
}

/// Measures and prints everything.
pub(super) fn run(checkout: &Checkout, only: Option<&str>) -> Result<()> {
    let examples = ["journal_bench", "engine_speed", "actor_load"];
    let examples = examples.iter().flat_map(|name| ["--example", name]);
    let build = ["build", "--quiet", "-p", "ballast-coordinator", "--bins"];
    command::run(command::cargo(checkout).args(build).args(examples))?;
    let peers = build_peers(checkout)?;
    let load = machine::load();
    let ours = |case: &str, shape: &[&str]| {
        let mut program = example(checkout, "journal_bench");
        program.arg(case).args(["--directory", "target"]).args(shape);
        Keeper { name: "ballast", command: program, answers: Vec::new() }
    };
    let theirs = |name: &'static str, shape: &[&str]| {
        let mut program = command::program(checkout, &peers);
        program.arg(name).args(["--directory", "target"]).args(shape);
        Keeper { name, command: program, answers: Vec::new() }
    };
    let of_batches = ["raw", "fjall", "sqlite", "redb"].map(|name| theirs(name, BATCHES));
    let cases = [
        ("1 KiB, 50 clients", vec![ours("clients", CLIENTS), theirs("redis", CLIENTS)]),
        (
            "1 KiB, commits of 64",
            std::iter::once(ours("batches", BATCHES)).chain(of_batches).collect(),
        ),
        ("64 KiB, streamed", vec![ours("stream", TRAJECTORIES)]),
    ];
    let wanted = |name: &str| only.is_none_or(|text| name.contains(text));
    for (case, mut keepers) in cases.into_iter().filter(|(case, _)| wanted(case)) {
        println!("measuring {case} ({TURNS} turns)");
        for _ in 0..TURNS {
            for keeper in &mut keepers {
                keeper.answers.push(last_line(&mut keeper.command)?);
            }
        }
        println!("\n{case}\n{}\n", render(&keepers)?);
    }
    if wanted("recovery") {
        println!("recovery: {}", recovery(ours("recovery", RECOVERY).command)?);
    }
    if wanted("engine") {
        let answer: Value = last_line(&mut example(checkout, "engine_speed"))?;
        println!("engine alone, 10,000 actors: {answer}");
    }
    if wanted("actors") {
        let mut program = example(checkout, "actor_load");
        program.arg("--program").arg(checkout.program("ballast-coordinator"));
        let answer: Value = last_line(&mut program)?;
        println!("10,000 actors on one core: {answer}");
    }
    println!("{}", machine::describe());
    if let (Some(before), Some(after)) = (load, machine::load()) {
        println!("load before {before:.2}, after {after:.2}");
    }
    Ok(())
}

fn example(checkout: &Checkout, name: &str) -> Command {
    let folder = checkout.program("examples");
    command::program(checkout, folder.join(name))
}

/// Builds the comparators, a crate of their own.
fn build_peers(checkout: &Checkout) -> Result<PathBuf> {
    let folder = checkout.root().join("target/bench-peers");
    let mut cargo = command::cargo(checkout);
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--manifest-path",
        "bench/peers/journal/Cargo.toml",
    ]);
    cargo.arg("--target-dir").arg(&folder);
    command::run(&mut cargo)?;
    let program = folder.join("release/journal-peers");
    if !program.is_file() {
        bail!("bench/peers/journal made no {}", program.display());
    }
    Ok(program)
}

fn recovery(mut command: Command) -> Result<String> {
    let mut seconds = Vec::new();
    let mut bytes = 0.0;
    for _ in 0..TURNS {
        let answer: Value = last_line(&mut command)?;
        seconds.push(answer["seconds"].as_f64().context("no seconds")?);
        bytes = answer["bytes"].as_f64().unwrap_or(0.0);
    }
    Ok(format!("{:.2} GB in {:.2} s", bytes / 1e9, median(seconds)?))
}

/// Medians of every keeper, and how ours, the first, compares.
fn render(keepers: &[Keeper]) -> Result<String> {
    let of = |keeper: &Keeper, key: &str| {
        median(keeper.answers.iter().filter_map(|answer| answer[key].as_f64()).collect())
    };
    let ours = of(keepers.first().context("nobody was measured")?, "records_per_s")?;
    let mut rows = Vec::new();
    for keeper in keepers {
        let rate = of(keeper, "records_per_s")?;
        let say =
            |key| of(keeper, key).map_or_else(|_| String::new(), |value| format!("{value:.2}"));
        rows.push([
            keeper.name.to_owned(),
            format!("{rate:.0}"),
            say("megabytes_per_s"),
            say("p50_ms"),
            say("p99_ms"),
            format!("{:.2}", ours / rate),
        ]);
    }
    Ok(table::render(["keeper", "records/s", "MB/s", "p50 ms", "p99 ms", "ballast / it"], &rows))
}
