//! The actor process: parse, build, join the coordinator, drain.

#![forbid(unsafe_code)]

#[cfg(feature = "torch")]
use std::io::{BufWriter, stdout};
use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ballast_actor::{
    decoder::DecoderFactory,
    engine::{self, Engine},
    external::ExternalDecoderFactory,
    health,
    session::{Session, SessionError},
    weights,
};
use ballast_runtime::{
    config::Config,
    config_file::{ConfigArgs, to_toml},
    exit,
    leader::Search,
    net,
    shutdown::Shutdown,
    telemetry,
};
use clap::{Parser, Subcommand};
use tokio::sync::watch;

/// Environment variable with the key that an external engine's server asks for, if it does.
const ENGINE_KEY_VARIABLE: &str = "BALLAST_ENGINE_API_KEY";
/// Directory in the run directory through which an external engine gets its weights.
const ENGINE_SPOOL: &str = "engine";
/// Threads of the async runtime: it moves messages only; decoding has the engine's own thread.
const RUNTIME_THREADS: usize = 2;

/// Runs tool episodes for a Ballast run: takes assignments from the coordinator, follows the
/// learner's newest weights, and reports every trajectory. It keeps no state; start and stop as
/// many as you like. SIGTERM or Ctrl-C finishes what runs first, a second one does not.
#[derive(Debug, Parser)]
#[command(name = "ballast-actor", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
    /// HOST:PORT of the coordinator, or of each process that may lead, separated by commas
    /// [default: coordinator.listen of the configuration].
    #[arg(long, value_name = "ADDRESSES")]
    coordinator: Option<String>,
    /// Name of this actor, unique in the run and stable over restarts [default: HOSTNAME-PID].
    #[arg(long, value_name = "NAME")]
    actor_id: Option<String>,
    /// Serve grpc.health.v1 here: SERVING while the coordinator has welcomed this actor.
    #[arg(long, value_name = "ADDRESS")]
    health_listen: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "torch")]
    Bench(ballast_actor::bench::BenchArgs),
    #[cfg(feature = "torch")]
    Score(ballast_actor::score::ScoreArgs),
    #[cfg(feature = "torch")]
    Generate(ballast_actor::generate::GenerateArgs),
    #[cfg(feature = "torch")]
    Serve(ballast_actor::serve::ServeArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init("actor");
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failure(error.as_ref()),
    }
}

fn run(mut args: Args) -> Result<()> {
    if let Some(command) = args.command.take() {
        return tool(command);
    }
    let config = args.config.load().map_err(exit::unusable)?;
    if args.config.dry_run {
        print!("{}", to_toml(&config));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("the async runtime does not start")?;
    runtime.block_on(serve(args, config))
}

/// What this program does beside running episodes.
fn tool(command: Command) -> Result<()> {
    match command {
        #[cfg(feature = "torch")]
        Command::Bench(args) => ballast_actor::bench::run(&args, &mut stdout()),
        #[cfg(feature = "torch")]
        Command::Score(args) => ballast_actor::score::run(&args, &mut BufWriter::new(stdout())),
        #[cfg(feature = "torch")]
        Command::Generate(args) => {
            ballast_actor::generate::run(&args, &mut BufWriter::new(stdout()))
        }
        #[cfg(feature = "torch")]
        Command::Serve(args) => ballast_actor::serve::run(&args),
    }
}

async fn serve(args: Args, config: Config) -> Result<()> {
    let coordinator = args.coordinator.as_deref().unwrap_or(&config.coordinator.listen);
    let coordinator = Search::new(coordinator, "the coordinator").map_err(exit::unusable)?;
    let shutdown = Shutdown::listen().context("signals cannot be handled")?;
    let started = Instant::now();
    let actor_id = args.actor_id.unwrap_or_else(default_actor_id);
    let engine = engine::spawn(Engine::new(
        decoder_factory(&config, &actor_id).map_err(exit::unusable)?,
        config.actor.slots as usize,
        config.episode.trajectory_tokens_max as usize,
        Box::new(move || started.elapsed()),
    ))
    .context("the engine's thread does not start")?;

    let (weight_source, source) = watch::channel(None);
    let mailbox = Arc::clone(&engine.mailbox);
    let stage = move |policy| mailbox.stage(policy);
    let counters = Arc::clone(&engine.counters);
    tokio::spawn(weights::subscribe(source, stage, counters, shutdown.token()));

    let (registered, follow) = watch::channel(false);
    if let Some(address) = &args.health_listen {
        let (listener, _) = net::bind(address).await?;
        let served = health::serve(listener, follow, shutdown.token());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!("health checks are no longer answered: {error}");
            }
        });
    }

    let session = Session {
        actor_id,
        coordinator,
        slots: config.actor.slots,
        engine: Arc::clone(&engine.mailbox),
        reports: engine.reports,
        counters: engine.counters,
        weight_source,
        registered,
    };
    let ended = session.run(shutdown.token()).await;
    shutdown.request();
    engine.mailbox.stop();
    join(engine.thread)?;
    ended.map_err(|error| match error {
        SessionError::Refused { .. } => exit::unusable(error).into(),
        SessionError::EngineGone => error.into(),
    })
}

fn decoder_factory(config: &Config, actor_id: &str) -> Result<Box<dyn DecoderFactory>> {
    let engine = &config.actor.engine;
    if engine.kind == "libtorch" {
        return torch_decoder_factory(config);
    }
    let spool = if engine.spool.as_os_str().is_empty() {
        config.run.directory.join(&config.run.name).join(ENGINE_SPOOL)
    } else {
        engine.spool.clone()
    };
    let api_key = std::env::var(ENGINE_KEY_VARIABLE).ok().filter(|key| !key.is_empty());
    // Below a shared directory every actor has its own.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
    let own = spool.join(actor_id.chars().map(plain).collect::<String>());
    let factory = ExternalDecoderFactory::new(engine, own, api_key)?;
    Ok(Box::new(factory))
}

#[cfg(feature = "torch")]
fn torch_decoder_factory(config: &Config) -> Result<Box<dyn DecoderFactory>> {
    use ballast_actor::torch_decoder::{CacheConfig, TorchDecoderFactory};
    let actor = &config.actor;
    let cache = CacheConfig::from_mib(actor.kv_cache_mib, actor.recompute_on_swap);
    let factory = TorchDecoderFactory::new(&actor.device, actor.threads)?;
    Ok(Box::new(factory.with_cache(cache).with_dtype(&actor.dtype)?))
}

#[cfg(not(feature = "torch"))]
const NO_DECODER: &str =
    "this ballast-actor was built without the feature `torch`; set actor.engine.kind to a server";

#[cfg(not(feature = "torch"))]
fn torch_decoder_factory(_config: &Config) -> Result<Box<dyn DecoderFactory>> {
    anyhow::bail!(NO_DECODER)
}

/// Waits for the engine's thread, which ends after the decode step at hand.
fn join(engine: std::thread::JoinHandle<()>) -> Result<()> {
    const STEP_MAX: Duration = Duration::from_secs(5);
    let until = Instant::now() + STEP_MAX;
    while !engine.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    if !engine.is_finished() {
        tracing::warn!("the engine did not finish its step in time");
        return Ok(());
    }
    engine.join().map_err(|_| anyhow::anyhow!("the engine panicked; its last words are in the log"))
}

fn default_actor_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "actor" } else { host.trim() };
    format!("{host}-{}", std::process::id())
}
