//! `ballast`: starts a local cluster, is the admin client, and draws a run's plots.
//!
//! Owns: what people see of a run on a terminal. Does not know: torch, tasks, how anything is
//! decided; all it shows comes from the admin API or from files in the run directory.

#![deny(unsafe_code)]

mod admin;
mod help;
mod interval;
mod plot;
mod progress;
mod replay;
mod table;
mod terminal;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Train tool-using language models with RL, and keep them from falling apart.
#[derive(Debug, Parser)]
#[command(name = "ballast", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a coordinator, a learner and actors here, and see the run through.
    #[command(after_help = "Examples:\n  \
        ballast up --config examples/market/quickstart.toml\n  \
        ballast up --config run.toml --set run.name=long --set schedule.steps=400\n\n\
        The same command goes on with a run that was interrupted.")]
    Up(up::UpArgs),
    #[command(flatten)]
    Admin(Box<admin::Command>),
    /// Train on a run's recorded batches again and compare the weights, bit for bit.
    #[command(after_help = "Example:\n  ballast replay runs/long --from-step 100")]
    Replay(replay::ReplayArgs),
    /// Draw a run's curves from its metrics.
    #[command(
        after_help = "Example:\n  ballast plot runs/long     into runs/long/plots/*.{svg,png}"
    )]
    Plot(plot::PlotArgs),
}

/// One thread is enough, and `up` relies on it: a child process dies with the *thread* that
/// started it, so that thread must be the one that lives as long as the process.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli: Cli = help::parse();
    let result = match cli.command {
        Command::Up(args) => up::up(&args).await,
        Command::Admin(command) => command.run().await,
        Command::Replay(args) => replay::replay(&args).await,
        Command::Plot(args) => plot::plot(&args),
    };
    result.unwrap_or_else(|error| {
        terminal::complain(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
