//! `ballast-coordinator`: parse the config, build, bind, serve until the run is over.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use ballast_coordinator::process::Coordinator;
use ballast_runtime::{
    config_file::{self, ConfigArgs},
    exit,
    shutdown::Shutdown,
    telemetry,
};
use clap::Parser;

mod journal_command;
mod replay_command;

/// Runs the control plane of one training run.
///
/// It waits for one learner and any number of actors, hands out episodes, decides which batch is
/// trained next, and ends when the schedule is done. Files go to <run.directory>/<run.name>:
/// config.toml, journal/, metrics.jsonl, coordinator.address, and result.json at the end. Started
/// again in the directory of a run that is not over, it goes on where the journal ends.
///
/// SIGINT or SIGTERM ends the run in order: the step at hand, a checkpoint, drained actors. A second
/// signal exits at once. BALLAST_LOG sets the log level (for example "debug").
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    ballast-coordinator --config run.toml\n  \
    ballast-coordinator --config run.toml --set run.name=second --set run.seed=2\n  \
    ballast-coordinator --config run.toml --dry-run"
)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Listen beyond loopback without TLS or tokens. Only for a network in which every peer is
    /// trusted, for example a cluster closed by a network policy.
    #[arg(long)]
    insecure_listen: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read the journal of a run.
    #[command(subcommand)]
    Journal(journal_command::JournalCommand),
    /// Serve the batches of a run again, as its journal has them. `ballast replay` trains on them.
    Replay(replay_command::ReplayCommand),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failure(error.as_ref()),
    }
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    match &args.command {
        Some(Command::Journal(command)) => return journal_command::run(command),
        Some(Command::Replay(command)) => return replay_command::run(command),
        None => {}
    }
    let config = args.config.load().map_err(exit::unusable)?;
    if args.config.dry_run {
        std::io::stdout().write_all(config_file::to_toml(&config).as_bytes())?;
        return Ok(());
    }
    telemetry::init("coordinator");
    tokio::runtime::Runtime::new().context("cannot start the async runtime")?.block_on(async {
        let shutdown = Shutdown::listen().context("cannot listen for signals")?;
        let run = config.run.directory.join(&config.run.name);
        let stop = shutdown.token();
        let coordinator = Coordinator::build(config, args.insecure_listen, &stop).await;
        let coordinator = match coordinator {
            Err(error) if error.is_lasting() => return Err(exit::unusable(error).into()),
            other => other?,
        };
        let Some(coordinator) = coordinator else { return Ok(()) };
        tracing::info!("listening on {}, run in {}", coordinator.address(), run.display());
        coordinator.run(stop).await?;
        let result = run.join("result.json");
        if result.exists() {
            tracing::info!("the run is over; see {}", result.display());
        } else {
            tracing::info!("left the run to another coordinator");
        }
        Ok(())
    })
}
