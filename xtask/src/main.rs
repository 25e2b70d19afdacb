//! Ballast's developer commands. `cargo xtask --help` lists them.
//!
//! This crate builds in seconds and without libtorch, because it is what brings libtorch.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::checkout::Checkout;

mod base;
mod bench;
mod checkout;
mod command;
mod compare;
mod interval;
mod kustomize;
mod machine;
mod python;
mod quickstart;
mod setup;
mod table;
mod test;
mod verify;

/// Developer commands of Ballast. New here? Run `cargo xtask quickstart`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Train a small model with RL on this machine and show what it gained.
    ///
    /// Brings the tools, builds, starts a cluster of real processes, trains, evaluates on held-out
    /// tasks beside an SFT-only arm, and leaves everything in runs/NAME: a Hugging Face checkpoint,
    /// metrics.jsonl, summary.json and plots.
    Quickstart(quickstart::Options),
    /// Bring libtorch, protoc and an etcd server into the checkout's .tools folder.
    ///
    /// Versions and hashes are pinned; an interrupted download goes on where it stopped; a second
    /// run does nothing. Needs Python 3 with pip (to find the files), a C++ compiler and no root.
    /// With LIBTORCH or PROTOC set, yours is used instead.
    Setup,
    /// Set up and run every test.
    Test {
        /// Passed on to `cargo nextest run`, such as a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check format, lints, documentation, dependencies, licences and manifests; changes no source.
    ///
    /// All checks run before the verdict, each on a line of its own.
    Verify(verify::Options),
    /// Measure Ballast beside a peer on this machine.
    ///
    /// The peers are installed into .tools at the first run.
    Bench(bench::Options),
    /// Compare a checkpoint's logits with those of Hugging Face transformers.
    ///
    /// Both compute in fp32 on three prompts; fails if any logit differs by more than 1e-4.
    CompareTransformers(compare::Options),
    /// Make the base model of examples/market again (about 15 minutes).
    Base(base::Options),
    /// Print the Kubernetes manifests that a kustomization renders to.
    K8s {
        /// Folder of the kustomization, relative to the checkout.
        #[arg(default_value = "k8s/base")]
        folder: String,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let checkout = Checkout::find();
    match task {
        Task::Quickstart(options) => quickstart::run(&checkout, &options),
        Task::Setup => setup::run(&checkout),
        Task::Test { arguments } => test::run(&checkout, &arguments),
        Task::Verify(options) => verify::run(&checkout, &options),
        Task::Bench(options) => bench::run(&checkout, &options),
        Task::CompareTransformers(options) => compare::run(&checkout, &options),
        Task::Base(options) => base::run(&checkout, &options),
        Task::K8s { folder } => {
            println!("{}", kustomize::render(&checkout, &folder)?);
            Ok(())
        }
    }
}
