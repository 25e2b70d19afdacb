//! `ballast-learner`: trains on the coordinator's batches and publishes every policy version.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use ballast_learner::{
    bench,
    driver::{self, Driver},
    new_model::{self, Shape},
    rpc::{LearnerIdentity, WeightsService},
    worker::{Worker, load_policy},
};
use ballast_policy::{ModelConfig, WEIGHTS_FILE, read_weights, write_weights_bf16};
use ballast_proto::{
    Generation,
    v1::weights_server::{self, WeightsServer},
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
use tonic::transport::Server;

/// Trains the policy: takes batches from the coordinator, makes one optimizer step of each and
/// publishes the new weights to the actors. Continues from the run's newest checkpoint.
#[derive(Debug, Parser)]
#[command(name = "ballast-learner", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
    /// HOST:PORT of the coordinator to train for, or of each process that may lead, separated by
    /// commas [default: coordinator.listen of the config]
    #[arg(long, value_name = "ADDRESSES")]
    coordinator: Option<String>,
    /// Name of this learner
    #[arg(long, default_value = "learner-0")]
    learner_id: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new small model: a tokenizer for a world's transcripts and random weights
    New {
        /// Checkpoint directory to write
        #[arg(long)]
        out: PathBuf,
        /// World whose transcripts train the tokenizer
        #[arg(long, default_value = "market")]
        world: String,
        /// Seed of the random weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[command(flatten)]
        shape: Shape,
    },
    /// Rewrite a checkpoint's weights in bf16, half the size
    Shrink {
        /// Checkpoint directory, changed in place
        #[arg(long)]
        checkpoint: PathBuf,
    },
    /// Print the logits of a sequence of token ids as JSON, to compare with other implementations
    Logits {
        /// Checkpoint directory
        #[arg(long)]
        checkpoint: PathBuf,
        /// Token ids, separated by commas
        #[arg(long, value_delimiter = ',', required = true)]
        prompt_ids: Vec<i64>,
    },
    /// Measure optimizer steps on this machine and print tokens per second as JSON
    Bench {
        /// Checkpoint directory
        #[arg(long)]
        checkpoint: PathBuf,
        /// Sequences per step
        #[arg(long, default_value_t = 32)]
        batch: usize,
        /// Tokens per sequence
        #[arg(long, default_value_t = 256)]
        tokens: usize,
        /// Steps measured
        #[arg(long, default_value_t = 5)]
        repeat: usize,
        /// Threads libtorch uses
        #[arg(long, default_value_t = 1)]
        threads: u32,
    },
}

fn main() -> ExitCode {
    telemetry::init("learner");
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Some(command) => tool(command),
        None => train(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failure(error.as_ref()),
    }
}

fn train(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config.load().map_err(exit::unusable)?;
    if arguments.config.dry_run {
        println!("{}", to_toml(&config));
        return Ok(());
    }
    let worker = Worker::open(&config).map_err(exit::unusable)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(serve(arguments, &config, worker))
}

async fn serve(arguments: &Arguments, config: &Config, worker: Worker) -> anyhow::Result<()> {
    let coordinator = arguments.coordinator.as_deref().unwrap_or(&config.coordinator.listen);
    let coordinator = Search::new(coordinator, "the coordinator").map_err(exit::unusable)?;
    let shutdown = Shutdown::listen().context("listen for signals")?;
    let (listener, bound) = net::bind(&config.learner.listen).await.map_err(exit::unusable)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<WeightsServer<WeightsService>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(ballast_proto::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(weights_server::SERVICE_NAME)
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
    };
    let weights = WeightsServer::new(WeightsService::new(worker.store().clone()));
    let server = Server::builder()
        .http2_keepalive_interval(Some(net::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(net::KEEPALIVE_TIMEOUT))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        // What many clients still speak, those of Python among them.
        .add_service(reflection().build_v1alpha()?)
        .add_service(weights)
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let advertised = &config.learner.advertise;
    let weights_address =
        if advertised.is_empty() { bound.to_string() } else { advertised.clone() };
    tracing::info!("weights at {weights_address}");
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = LearnerIdentity {
        learner_id: arguments.learner_id.clone(),
        generation: Generation(u64::try_from(started.as_millis()).unwrap_or(u64::MAX)),
        weights_address,
    };
    let driver = Driver::new(coordinator, identity, worker, shutdown.token());
    tokio::select! {
        ended = driver.run() => ended.map_err(|error| match error {
            driver::Error::Refused { .. } => exit::unusable(error).into(),
            error => error.into(),
        }),
        served = server => served.context("serve the weights"),
    }
}

fn tool(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::New { out, world, seed, shape } => new_model::create(out, world, shape, *seed),
        Command::Shrink { checkpoint } => {
            let path = checkpoint.join(WEIGHTS_FILE);
            let weights: Vec<_> = read_weights(&path)?.into_iter().collect();
            Ok(write_weights_bf16(&path, &weights)?)
        }
        Command::Logits { checkpoint, prompt_ids } => {
            let policy = load_policy(checkpoint, tch::Device::Cpu)?;
            check_ids(prompt_ids, policy.config())?;
            let tokens = tch::Tensor::from_slice(prompt_ids).unsqueeze(0);
            let logits = policy.forward(&tokens).squeeze_dim(0);
            let rows = Vec::<Vec<f32>>::try_from(logits)?;
            println!("{}", serde_json::json!({ "logits": rows }));
            Ok(())
        }
        Command::Bench { checkpoint, batch, tokens, repeat, threads } => {
            let rates = bench::tokens_per_second(checkpoint, *batch, *tokens, *repeat, *threads)?;
            println!("{}", serde_json::json!({ "tokens_per_s": rates }));
            Ok(())
        }
    }
}

/// libtorch aborts on an index that is out of range.
fn check_ids(prompt_ids: &[i64], config: &ModelConfig) -> anyhow::Result<()> {
    let vocabulary = 0..config.vocab_size;
    if let Some(id) = prompt_ids.iter().find(|id| !vocabulary.contains(id)) {
        anyhow::bail!("--prompt-ids: {id} is no token id; allowed: 0 to {}", vocabulary.end - 1);
    }
    let positions = config.positions_max;
    if i64::try_from(prompt_ids.len()).is_ok_and(|length| length > positions) {
        anyhow::bail!("--prompt-ids: the network takes at most {positions} tokens");
    }
    Ok(())
}
