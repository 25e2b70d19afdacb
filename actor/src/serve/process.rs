//! The server as a process: open the model, bind, decode on a thread, wait for a signal, drain.

use std::{
    future::IntoFuture as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use ballast_chat::Tokenizer;
use ballast_runtime::{exit, net, shutdown::Shutdown};

use super::{
    batch::Batch,
    decoding,
    http::{Server, unix_seconds},
    metrics::Metrics,
    prompt::Prompter,
    queue::Queue,
    reload,
    served_model::ServedModel,
    weight_updates::WeightUpdates,
};
use crate::model::{Model, ModelArgs};

/// Environment variable with the key that requests must bring, if it is set.
const API_KEY_VARIABLE: &str = "BALLAST_API_KEY";

/// How long running completions may go on after the first signal.
const DRAIN_MAX: Duration = Duration::from_secs(25);
/// Context of a model whose own is longer, unless `--context` says otherwise: the cache is allocated
/// for it at start.
const CONTEXT_DEFAULT_MAX: usize = 8192;
/// Threads of the async runtime: it moves messages only; decoding has its own thread.
const RUNTIME_THREADS: usize = 2;

/// Serve a checkpoint over HTTP as OpenAI's API does.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on, HOST:PORT; port 0 takes a free one. Whoever reaches it may use it,
    /// unless BALLAST_API_KEY is set.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: String,
    /// Name clients call the model by [default: DIR as given].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Completions decoded at once; further ones wait.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: u16,
    /// Tokens of a prompt and its completion together [default: the model's, at most 8192].
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Seed of the requests that bring none [default: the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Take new weights (POST /update_weights_from_disk) also when other machines can reach the
    /// address: whoever does may then replace the model by another checkpoint on this machine.
    #[arg(long)]
    allow_weight_updates: bool,
}

/// Serves until a signal.
///
/// # Errors
/// The model cannot be used, or the address is taken.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("the async runtime does not start")?;
    runtime.block_on(serve(args))
}

async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("signals cannot be handled")?;
    let (listener, bound) = net::bind(&args.listen).await.map_err(exit::unusable)?;
    let model = Model::open(&args.model).map_err(exit::unusable)?;
    let served = describe(args, &model).map_err(exit::unusable)?;
    let name = served.name.clone();
    let updates = WeightUpdates::new(args.model.model.clone(), reload::reader(&model));
    let api_key = std::env::var(API_KEY_VARIABLE).ok().filter(|key| !key.is_empty());
    if api_key.is_none() && !net::is_loopback(&bound.to_string()) {
        tracing::warn!(
            "{bound} can be reached from other machines and asks for no key; set {API_KEY_VARIABLE}"
        );
    }

    let (queue, metrics) = (Arc::new(Queue::default()), Arc::new(Metrics::default()));
    let (slots, context) = (usize::from(args.slots), served.context_tokens);
    let (tokenizer, threads) = (served.tokenizer.clone(), args.model.threads());
    let build = move || {
        ballast_policy::set_threads(threads);
        Batch::new(model.into_decoder(slots, context), slots, Some(tokenizer))
    };
    let thread = decoding::spawn(build, Arc::clone(&queue), Arc::clone(&metrics));
    let thread = thread.context("the decoding thread does not start")?;
    let seed = args.seed.unwrap_or_else(clock_seed);
    let mut server = Server::new(served, Arc::clone(&queue), metrics, seed, api_key, thread);
    if args.allow_weight_updates || net::is_loopback(&bound.to_string()) {
        server = server.with_weight_updates(updates);
    }

    println!("serving {name} at http://{bound}/v1");
    let token = shutdown.token();
    let stopped = token.clone();
    let serving = axum::serve(listener, server.router())
        .with_graceful_shutdown(async move { stopped.cancelled().await })
        .into_future();
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        served = serving => served.context("the HTTP server failed")?,
        () = overdue => tracing::warn!("completions still ran {DRAIN_MAX:?} after the signal; they are cut off"),
    }
    queue.close();
    Ok(())
}

/// What requests need to know of the model.
fn describe(args: &ServeArgs, model: &Model) -> anyhow::Result<ServedModel> {
    let tokenizer = model.tokenizer()?;
    let own = model.context_tokens();
    let context_tokens = args.context.unwrap_or(own.min(CONTEXT_DEFAULT_MAX));
    anyhow::ensure!(
        (2..=own).contains(&context_tokens),
        "--context {context_tokens}: this model takes from 2 to {own} tokens"
    );
    Ok(ServedModel {
        name: args.name.clone().unwrap_or_else(|| args.model.model.display().to_string()),
        created: unix_seconds(),
        prompter: Prompter::open(model.directory(), tokenizer.clone())
            .inspect_err(|error| tracing::warn!("no chat, only completions: {error}"))
            .map_err(|error| error.to_string()),
        stop_tokens: stop_tokens(model, &tokenizer),
        tokenizer,
        vocab_size: model.vocab_size(),
        context_tokens,
    })
}

/// What the checkpoint says, and the control tokens that end an assistant's message.
fn stop_tokens(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut stop_tokens = model.stop_tokens();
    stop_tokens.extend(tokenizer.control().stops());
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    stop_tokens
}

fn clock_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
