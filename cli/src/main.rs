//! `ballast`: starts a local cluster, is the admin client, and draws a run's plots.
//!
//! Owns: what people see of a run on a terminal. Does not know: torch, tasks, how anything is
//! decided; all it shows comes from the admin API or from files in the run directory.

#![deny(unsafe_code)]

mod admin;
mod interval;
mod plot;
mod progress;
mod replay;
mod schedule;
mod status;
mod terminal;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Train tool-using language models with RL, and keep them from falling apart.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ballast up --config examples/market/quickstart.toml   run a whole cluster on this machine
  ballast up --set run.name=long --set schedule.steps=400
  ballast status                                        one look at the newest run
  ballast watch --run long                              follow a run
  ballast schedule                                      where training is, why, and what ends it
  ballast schedule set kind=adaptive --reason \"it forgets\"
  ballast stop                                          checkpoint, drain, exit
  ballast replay runs/long --from-step 100              train again from there, compare bit for bit
  ballast plot runs/long                                draw runs/long/plots/*.{svg,png}";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a coordinator, a learner and actors on this machine and see them through the run.
    Up(up::UpArgs),
    /// Show a run's state once.
    Status(status::StatusArgs),
    /// Follow a run until it ends.
    Watch(status::WatchArgs),
    /// Show where the schedule is and why, or change it in the running run.
    Schedule(schedule::ScheduleArgs),
    /// Stop handing out tasks and batches; what runs is finished.
    Pause(admin::Target),
    /// Continue a paused run.
    Resume(admin::Target),
    /// End a run in order: finish the step at hand, write a checkpoint, drain the actors.
    Stop(admin::Target),
    /// Train on a run's recorded batches again and compare the weights, bit for bit.
    Replay(replay::ReplayArgs),
    /// Draw a run's curves from its metrics.
    Plot(plot::PlotArgs),
}

/// One thread is enough, and `up` relies on it: a child process dies with the *thread* that
/// started it, so that thread must be the one that lives as long as the process.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(args) => up::up(&args).await,
        Command::Status(args) => status::status(&args).await,
        Command::Watch(args) => status::watch(&args).await,
        Command::Schedule(args) => schedule::schedule(&args).await,
        Command::Pause(target) => admin::pause(&target).await,
        Command::Resume(target) => admin::resume(&target).await,
        Command::Stop(target) => admin::stop(&target).await,
        Command::Replay(args) => replay::replay(&args).await,
        Command::Plot(args) => plot::plot(&args),
    };
    result.unwrap_or_else(|error| {
        terminal::complain(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
