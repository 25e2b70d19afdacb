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
    time::{Duration, Instant, SystemTime},
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
use crate::{
    admin::target::{self, ADDRESS_FILE},
    progress::Progress,
    terminal,
};

/// File in a run directory that the coordinator writes when the run is over.
const RESULT_FILE: &str = "result.json";
/// End of an address that leaves the port to the system.
const FREE_PORT: &str = ":0";
/// Whoever listens at the address of an earlier start has this long to say which run it serves.
const PROBE_WAIT: Duration = Duration::from_secs(5);

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
    let earlier = earlier_start(&run, &config.run.name).await?;
    let logs = run.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let shutdown = Shutdown::listen().context("cannot listen for signals")?;

    let mut progress = Progress::new(args.plain);
    let mut cluster = Cluster::new(run.join(RESULT_FILE), earlier.is_some());
    let started = Instant::now();
    let plan = Plan {
        config: &config,
        args: &args.config,
        programs: &programs,
        run: &run,
        logs: &logs,
        earlier,
    };
    let outcome = run_cluster(&mut cluster, &plan, &shutdown, &mut progress).await;
    cluster.stop(&outcome).await;
    progress.finish();
    if cluster.is_complete() {
        report::write(&run, &cluster, started.elapsed())
            .with_context(|| format!("cannot write {}", run.join(report::FILE).display()))?;
    }
    conclude(outcome, &plan, &cluster, &progress)
}

/// What is to be started.
struct Plan<'a> {
    config: &'a Config,
    args: &'a ConfigArgs,
    programs: &'a Programs,
    run: &'a Path,
    logs: &'a Path,
    /// When the coordinator of an earlier start wrote its address.
    earlier: Option<SystemTime>,
}

/// When a coordinator of this run last wrote its address; `None` if none did. Refuses a run that is
/// at work: a second coordinator would take its journal away.
async fn earlier_start(run: &Path, name: &str) -> anyhow::Result<Option<SystemTime>> {
    let file = run.join(ADDRESS_FILE);
    let Some(written) = written(&file) else { return Ok(None) };
    if let Ok(address) = target::read_address(&file) {
        let status = tokio::time::timeout(PROBE_WAIT, follow::look(&address)).await;
        // The address may be that of another run by now.
        if status.is_ok_and(|status| status.is_some_and(|status| status.run == name)) {
            bail!(
                "run {name} is at work already, at {address}; follow it with `ballast watch --run \
                 {name}`, or start another one with --set run.name=NAME"
            );
        }
    }
    Ok(Some(written))
}

fn written(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
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
    let address = match await_address(cluster, plan, shutdown).await {
        Ok(address) => address,
        Err(outcome) => return outcome,
    };
    if plan.config.coordinator.listen.ends_with(FREE_PORT) {
        cluster.keep_address(&address);
    }
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
    plan: &Plan<'_>,
    shutdown: &Shutdown,
) -> Result<String, Outcome> {
    let file = plan.run.join(ADDRESS_FILE);
    let token = shutdown.token();
    let written = async {
        while written(&file) == plan.earlier {
            tokio::time::sleep(ADDRESS_POLL).await;
        }
    };
    // Nothing is lost with a dropped branch: the file and the exit stay to be seen.
    tokio::select! {
        biased;
        () = token.cancelled() => Err(Outcome::Interrupted),
        outcome = cluster.coordinator_ended() => Err(outcome),
        waited = tokio::time::timeout(ADDRESS_WAIT, written) => match waited {
            Ok(()) => target::read_address(&file)
                .map_err(|error| Outcome::Failed(format!("{error:#}"))),
            Err(_) => Err(Outcome::Failed(format!(
                "the coordinator did not come up within {} s; see {}",
                ADDRESS_WAIT.as_secs(),
                plan.logs.display()
            ))),
        },
    }
}

fn conclude(
    outcome: Outcome,
    plan: &Plan<'_>,
    cluster: &Cluster,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    let run = plan.run.display();
    let is_over = plan.run.join(RESULT_FILE).exists();
    let aborted = ExitCode::from(u8::try_from(EXIT_CODE_ABORTED).unwrap_or(u8::MAX));
    match outcome {
        Outcome::Finished => {
            progress.note(&format!("ended in order: {run}"));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped if is_over => {
            progress.note(&format!("stopped before the run's end: {run}"));
            Ok(aborted)
        }
        Outcome::Stopped | Outcome::Interrupted => {
            progress.note(&format!("interrupted: {run}; the same command goes on with it"));
            Ok(aborted)
        }
        Outcome::Failed(reason) if is_over || !cluster.is_complete() => bail!("{reason}"),
        Outcome::Failed(reason) => {
            bail!(
                "{reason}\nthe run is not over: once that is mended, the same command goes on with it"
            )
        }
    }
}
