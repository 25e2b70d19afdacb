//! `ballast replay`: a run's training once more, from its journal, and the weights beside the run's.
//!
//! A server (`ballast-coordinator replay`) gives a learner of our own the batches that the journal
//! has, from a checkpoint of the run on. On a CPU the same batches make the same weights, bit for bit,
//! if the learner has as many threads as the run's had.

mod course;
mod tensors;
mod verdict;

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use ballast_runtime::config_file::{self, Difference};
use tokio::time::timeout;

use self::{
    course::{Course, Ready, Server},
    verdict::Verdict,
};
use crate::{
    terminal,
    up::programs::{self, Program},
};

const CONFIG: &str = "config.toml";
const CHECKPOINTS: &str = "checkpoints";
/// After the last batch a process has this long to end by itself.
const END_GRACE: Duration = Duration::from_secs(10);
const NOT_IDENTICAL: &str = "the replay is not the run: its journal or a checkpoint was changed, \
    or the learner ran otherwise; bits are the same only on a CPU, with the run's learner.threads, \
    its kind of processor and its libtorch";

/// Flags of `ballast replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// Directory of the run.
    run: PathBuf,
    /// Step whose checkpoint to start from; 0: the initial one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    from_step: u64,
    /// Last step to make [default: the last one the run has finished]
    #[arg(long, value_name = "M")]
    to_step: Option<u64>,
    /// Directory in which the replay makes itself one, from-N [default: RUN/replay]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write no checkpoint but the last one.
    #[arg(long)]
    last_only: bool,
    /// Override a key of the run's configuration, for example `--set model.checkpoint=DIR` where the
    /// initial checkpoint has been moved; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Print lines instead of a bar; the default where stderr is no terminal.
    #[arg(long)]
    plain: bool,
    /// Directory of ballast-coordinator and ballast-learner; by default beside `ballast`, then PATH.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Trains again, then compares. Exits with 1 where anything differs.
pub(crate) async fn replay(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let start = start(&args.run, args.from_step)?;
    let find = |role: &str| programs::find(args.programs.as_deref(), &format!("ballast-{role}"));
    let (coordinator, learner) = (find("coordinator")?, find("learner")?);
    let parent = args.out.clone().unwrap_or_else(|| args.run.join("replay"));
    let name = format!("from-{}", args.from_step);
    let out = parent.join(&name);
    let logs = prepare(&out)?;

    let program = Program::new("coordinator", &coordinator, server_args(args), &logs);
    let mut server = Server::start(program)?;
    let ready = server.ready().await?;
    let unlike = write_config(args, &ready, &parent, &name)?;
    if let Some(checkpoint) = start {
        adopt(&checkpoint, &out)?;
    }
    let mut course = Course::new(&ready, args.plain);
    course.note(&title(args, &ready, &out));
    for Difference { key, before, after } in &unlike {
        course.note(&format!("unlike the run: {key} = {before} (now {after})"));
    }
    let learner_args = ["--config".into(), out.join(CONFIG).into()];
    let learner_args = [learner_args, ["--coordinator".into(), ready.address.into()]].concat();
    let mut learner = Program::new("learner", &learner, learner_args, &logs);
    train(&mut learner, &mut server, &mut course).await?;
    course.finish();

    let checkpoints = |directory: &Path| directory.join(CHECKPOINTS);
    let (theirs, ours) = (checkpoints(&args.run), checkpoints(&out));
    let verdict = Verdict::new(&theirs, &ours, args.from_step, &course)
        .with_context(|| format!("cannot compare {} with {}", ours.display(), theirs.display()))?;
    if args.json {
        terminal::say(&serde_json::to_string(&verdict)?);
    } else {
        terminal::say(&verdict.table());
    }
    if verdict.is_identical() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("{NOT_IDENTICAL}")
}

/// The checkpoint to start from; `None`: the initial one.
fn start(run: &Path, step: u64) -> anyhow::Result<Option<PathBuf>> {
    let checkpoints = run.join(CHECKPOINTS);
    let cannot_list = || format!("cannot list {}", checkpoints.display());
    if step == 0 {
        return Ok(None);
    }
    let there = verdict::steps(&checkpoints).with_context(cannot_list)?;
    if !there.contains(&step) {
        let there: Vec<String> = there.iter().map(ToString::to_string).collect();
        bail!(
            "{} has no checkpoint of step {step}; --from-step takes 0, for the initial one{}{}",
            run.display(),
            if there.is_empty() { "" } else { ", or one of: " },
            there.join(", ")
        );
    }
    let path = checkpoints.join(format!("step-{step}"));
    let path = path.canonicalize().with_context(|| format!("cannot use {}", path.display()))?;
    Ok(Some(path))
}

/// Refuses a directory that is in use, and makes one with a place for logs.
fn prepare(out: &Path) -> anyhow::Result<PathBuf> {
    if out.join(CONFIG).exists() {
        bail!(
            "{} holds a replay or a run already; delete it, or choose another place with --out DIR",
            out.display()
        );
    }
    let logs = out.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

fn server_args(args: &ReplayArgs) -> Vec<OsString> {
    let mut server: Vec<OsString> = vec!["replay".into(), args.run.clone().into()];
    server.extend(["--from-step".into(), args.from_step.to_string().into()]);
    if let Some(to_step) = args.to_step {
        server.extend(["--to-step".into(), to_step.to_string().into()]);
    }
    if args.last_only {
        server.push("--last-only".into());
    }
    server
}

/// Writes the configuration of the learner: the run's, but for where it keeps its files and where
/// nobody will fetch weights. Returns what is unlike the run on request.
fn write_config(
    args: &ReplayArgs,
    ready: &Ready,
    parent: &Path,
    name: &str,
) -> anyhow::Result<Vec<Difference>> {
    let run = config_file::from_toml(&ready.config)
        .context("the configuration in the journal is of another version of the program")?;
    let mut config = config_file::change(&run, &args.overrides)?;
    let unlike = config_file::differences(&run, &config);
    if ready.from_step == 0 && !config.model.checkpoint.is_dir() {
        bail!(
            "the run began with {}, which is not here; go where the run was started, or name its \
             place with --set model.checkpoint=DIR",
            config.model.checkpoint.display()
        );
    }
    config.run.directory = parent.to_owned();
    config.run.name = name.to_owned();
    config.learner.listen = "127.0.0.1:0".into();
    config.learner.advertise = String::new();
    let path = parent.join(name).join(CONFIG);
    fs::write(&path, config_file::to_toml(&config))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(unlike)
}

/// Gives the replay a checkpoint of the run as its newest one, where the learner looks for it.
fn adopt(checkpoint: &Path, out: &Path) -> anyhow::Result<()> {
    let name = checkpoint.file_name().context("a checkpoint has a name")?;
    let checkpoints = out.join(CHECKPOINTS);
    fs::create_dir_all(&checkpoints)
        .and_then(|()| symlink(checkpoint, checkpoints.join(name)))
        .with_context(|| format!("cannot link a checkpoint into {}", checkpoints.display()))
}

fn title(args: &ReplayArgs, ready: &Ready, out: &Path) -> String {
    let start = match ready.from_step {
        0 => "the initial checkpoint".to_owned(),
        step => format!("the checkpoint of step {step}"),
    };
    let (run, first, out) = (args.run.display(), ready.from_step + 1, out.display());
    format!("{run}: steps {first} to {} again from {start}, into {out}", ready.to_step)
}

/// Runs a learner to the end of the replay.
async fn train(
    program: &mut Program,
    server: &mut Server,
    course: &mut Course,
) -> anyhow::Result<()> {
    let mut learner = program.start().context("cannot start the learner")?;
    let mut followed = Box::pin(course.follow(server));
    let failed =
        |status: ExitStatus| anyhow!("the learner ended ({status}); {}", program.last_words());
    // Neither branch is resumed after the other has ended, but for what follows at once.
    tokio::select! {
        biased;
        followed = &mut followed => followed?,
        status = learner.wait() => {
            let status = status?;
            if !status.success() {
                return Err(failed(status));
            }
            // It has finished; what the server says of that may be on its way.
            timeout(END_GRACE, followed).await.map_err(|_| failed(status))??;
            return Ok(());
        }
    }
    // All is done and written. A learner that does not end is killed with its handle.
    drop(timeout(END_GRACE, learner.wait()).await);
    Ok(())
}
