//! `ballast up`: a whole cluster of real processes on this machine, seen through to the end.

mod cluster;
mod follow;
pub(crate) mod programs;
mod report;
mod restarts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use ballast_runtime::{
    config::Config,
    config_file::{self, ConfigArgs},
    shutdown::{EXIT_CODE_ABORTED, Shutdown},
};

use self::{
    cluster::{Cluster, Outcome},
    programs::{Program, Programs},
};
use crate::{admin, progress::Progress, terminal};

/// The coordinator has this long to write its address.
const ADDRESS_WAIT: Duration = Duration::from_secs(60);
const ADDRESS_POLL: Duration = Duration::from_millis(50);

/// Flags of `ballast up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print lines instead of bars; the default where stderr is no terminal.
    #[arg(long)]
    plain: bool,
    /// Directory of ballast-coordinator, ballast-learner and ballast-actor; by default beside
    /// `ballast`, then PATH.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Starts the cluster, shows its progress, and waits for the end of the run.
pub(crate) async fn up(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    if args.config.dry_run {
        terminal::say(&config_file::to_toml(&config));
        return Ok(ExitCode::SUCCESS);
    }
    let programs = Programs::find(args.programs.as_deref())?;
    let run = config.run.directory.join(&config.run.name);
    let logs = prepare(&run)?;
    let shutdown = Shutdown::listen().context("cannot listen for signals")?;

    let mut progress = Progress::new(args.plain);
    let mut cluster = Cluster::default();
    let started = Instant::now();
    let outcome = run_cluster(
        &mut cluster,
        &Plan { config: &config, args: &args.config, programs: &programs, run: &run, logs: &logs },
        &shutdown,
        &mut progress,
    )
    .await;
    cluster.stop(&outcome).await;
    progress.finish();
    report::write(&run, &cluster, started.elapsed())
        .with_context(|| format!("cannot write {}", run.join(report::FILE).display()))?;
    conclude(outcome, &run, &progress)
}

/// What is to be started.
struct Plan<'a> {
    config: &'a Config,
    args: &'a ConfigArgs,
    programs: &'a Programs,
    run: &'a Path,
    logs: &'a Path,
}

/// Refuses a run that exists, and makes the run's directories.
fn prepare(run: &Path) -> anyhow::Result<PathBuf> {
    if run.join(admin::ADDRESS_FILE).exists() {
        bail!(
            "{} holds a run already; choose another name with --set run.name=NAME, or delete it",
            run.display()
        );
    }
    let logs = run.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

/// Coordinator first, since the others need its address; then supervision until the end.
async fn run_cluster(
    cluster: &mut Cluster,
    plan: &Plan<'_>,
    shutdown: &Shutdown,
    progress: &mut Progress,
) -> Outcome {
    let program = |name: &str, path: &Path, extra: &[&str]| {
        let extra = extra.iter().map(Into::into);
        let args = plan.args.to_args().into_iter().chain(extra).collect();
        Program::new(name, path, args, plan.logs)
    };
    progress.note(&format!("run {}: logs in {}", plan.config.run.name, plan.logs.display()));
    if let Err(outcome) = cluster.start(program("coordinator", &plan.programs.coordinator, &[])) {
        return outcome;
    }
    let address = match await_address(cluster, plan.run, shutdown).await {
        Ok(address) => address,
        Err(outcome) => return outcome,
    };
    let mut members =
        vec![program("learner", &plan.programs.learner, &["--coordinator", &address])];
    for index in 0..plan.config.actor.count {
        let id = format!("actor-{index}");
        let extra = ["--coordinator", &address, "--actor-id", &id];
        members.push(program(&id, &plan.programs.actor, &extra));
    }
    for member in members {
        if let Err(outcome) = cluster.start(member) {
            return outcome;
        }
    }
    let mut status = follow::follow(&address);
    cluster.supervise(&shutdown.token(), &mut status, progress).await
}

/// Waits until the coordinator serves, or ends instead.
async fn await_address(
    cluster: &mut Cluster,
    run: &Path,
    shutdown: &Shutdown,
) -> Result<String, Outcome> {
    let file = run.join(admin::ADDRESS_FILE);
    let token = shutdown.token();
    let written = async {
        while !file.exists() {
            tokio::time::sleep(ADDRESS_POLL).await;
        }
    };
    // Nothing is lost with a dropped branch: the file and the exit stay to be seen.
    tokio::select! {
        biased;
        () = token.cancelled() => Err(Outcome::Interrupted),
        outcome = cluster.coordinator_ended() => Err(outcome),
        waited = tokio::time::timeout(ADDRESS_WAIT, written) => match waited {
            Ok(()) => admin::read_address(&file)
                .map_err(|error| Outcome::Failed(format!("{error:#}"))),
            Err(_) => Err(Outcome::Failed(format!(
                "the coordinator did not come up within {} s; see {}",
                ADDRESS_WAIT.as_secs(),
                run.join("logs").display()
            ))),
        },
    }
}

fn conclude(outcome: Outcome, run: &Path, progress: &Progress) -> anyhow::Result<ExitCode> {
    match outcome {
        Outcome::Finished => {
            progress.note(&format!("ended in order: {}", run.display()));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted => {
            progress.note(&format!("stopped before the run's end: {}", run.display()));
            Ok(ExitCode::from(u8::try_from(EXIT_CODE_ABORTED).unwrap_or(u8::MAX)))
        }
        Outcome::Failed(reason) => bail!("{reason}"),
    }
}
