//! Ten thousand actors that exist only on the wire: what one coordinator holds.
//!
//! Every actor has a connection of its own, a session, slots and heartbeats; an episode is a pause and
//! then a trajectory of the given size. A learner that answers at once keeps admission going. The
//! coordinator is a process of its own, kept to one core, with a run in a new directory. Prints one
//! JSON object.
//!
//! ```text
//! cargo run -p ballast-coordinator --example actor_load -- --program target/debug/ballast-coordinator
//! ```

use std::{
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use ballast_proto::{
    MESSAGE_BYTES_MAX,
    v1::{
        ActorHello, ActorMessage, Assignment, CompleteStepRequest, Heartbeat, NextBatchRequest,
        Role, SampledVersion, SlotsFree, Span, StepKind, StopReason, Trajectory,
        actor_message::Message as Up, coordinator_message::Message as Down,
        rollout_client::RolloutClient, training_client::TrainingClient,
    },
};
use ballast_runtime::net;
use clap::Parser;
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

/// Time everybody has to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(120);
/// Connections opened at once.
const CONNECTING_MAX: usize = 64;

#[derive(Debug, Parser)]
struct Args {
    /// The coordinator's program.
    #[arg(long)]
    program: PathBuf,
    /// Where its run is made; the disk that is measured.
    #[arg(long, default_value = "target")]
    directory: PathBuf,
    /// Its configuration.
    #[arg(long, default_value = "bench/load.toml")]
    config: PathBuf,
    #[arg(long, default_value_t = 10_000)]
    actors: usize,
    /// Episodes an actor runs at once.
    #[arg(long, default_value_t = 4)]
    slots: u32,
    /// Seconds an episode takes, on average.
    #[arg(long, default_value_t = 20.0)]
    episode_s: f64,
    /// Tokens of a trajectory; about nine bytes each.
    #[arg(long, default_value_t = 1000)]
    tokens: usize,
    /// Seconds to measure, after everybody is connected and every slot has run once.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// The coordinator's process and its run.
#[derive(Debug)]
struct Coordinator {
    process: Child,
    directory: PathBuf,
    address: String,
}

impl Coordinator {
    /// Starts it on the first core and waits for its address.
    async fn start(args: &Args) -> Result<Self> {
        let directory = args.directory.join(format!("load-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let process = Command::new("taskset")
            .args(["-c", "0"])
            .arg(&args.program)
            .arg("--config")
            .arg(&args.config)
            .args(["--set", "run.name=load", "--set"])
            .arg(format!("run.directory={}", directory.display()))
            .env("BALLAST_LOG", "warn")
            .spawn()
            .context("cannot start the coordinator under taskset")?;
        let file = directory.join("load/coordinator.address");
        let written = async {
            loop {
                if let Ok(text) = std::fs::read_to_string(&file) {
                    return text.trim().to_owned();
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let address = timeout(CONNECT_PATIENCE, written).await.context("it does not start")?;
        Ok(Self { process, directory, address })
    }

    /// (processor seconds so far, resident bytes).
    fn usage(&self) -> Result<(f64, u64)> {
        /// Clock ticks a second and bytes of a page, as Linux on x86-64 has them.
        const TICKS: f64 = 100.0;
        const PAGE: u64 = 4096;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name, in brackets, may hold spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = (number(11).unwrap_or(0), number(12).unwrap_or(0));
        Ok(((user + system) as f64 / TICKS, number(21).unwrap_or(0) * PAGE))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It has nothing to lose, and neither has whoever runs this.
        self.process.kill().ok();
        self.process.wait().ok();
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// What all actors did.
#[derive(Debug, Default)]
struct Counters {
    connected: AtomicU64,
    reported: AtomicU64,
    acknowledged: AtomicU64,
    steps: AtomicU64,
    /// Milliseconds from report to acknowledgement, while measured.
    latencies_ms: Mutex<Vec<f64>>,
    measuring: std::sync::atomic::AtomicBool,
}

fn hash(version: u64) -> Vec<u8> {
    let mut hash = vec![7; 32];
    hash[..8].copy_from_slice(&version.to_le_bytes());
    hash
}

fn trajectory(assignment: &Assignment, tokens: usize) -> Trajectory {
    let version = assignment.min_policy_version.unwrap_or(0);
    let (end, id) = (tokens as u32, assignment.episode_id);
    Trajectory {
        episode_id: id,
        group_id: assignment.group_id,
        task: assignment.task.clone(),
        mode: assignment.mode,
        token_ids: (0..end).map(|at| (at * 7 + id as u32) % 30_000).collect(),
        loss_mask: vec![1; tokens],
        behavior_logprobs: vec![-0.5; tokens],
        policy_versions: vec![version; tokens],
        sampled_versions: vec![SampledVersion {
            policy_version: version,
            manifest_hash: hash(version),
        }],
        spans: vec![Span { role: Role::Assistant.into(), start: 0, end, ..Span::default() }],
        stop_reason: StopReason::Done.into(),
        reward: Some((id % 2) as f32),
        success: Some(id % 2 == 1),
        sampling_seed: assignment.sampling_seed,
        ..Trajectory::default()
    }
}

/// One actor, until its stream ends.
async fn act(
    args: Arc<Args>,
    address: Arc<str>,
    counters: Arc<Counters>,
    number: usize,
) -> Result<()> {
    let channel = net::endpoint(&address)?.connect().await?;
    let (stream, messages) = mpsc::channel(64);
    let up = |message| ActorMessage { message: Some(message) };
    let hello = ActorHello {
        actor_id: format!("actor-{number}"),
        generation: 1,
        slots: args.slots,
        ..ActorHello::default()
    };
    stream.send(up(Up::Hello(hello))).await?;
    stream.send(up(Up::SlotsFree(SlotsFree { slots: args.slots }))).await?;
    let mut client = RolloutClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
    counters.connected.fetch_add(1, Relaxed);
    let (finished, mut done) = mpsc::channel(args.slots as usize);
    let mut beat = interval(Duration::from_secs(10));
    let mut reported = std::collections::BTreeMap::new();
    loop {
        tokio::select! {
            message = inbound.message() => match message?.and_then(|one| one.message) {
                Some(Down::Assignment(assignment)) => {
                    // Spread by the id, so that no two runs differ in more than the machine.
                    let spread = 0.5 + (assignment.episode_id % 1000) as f64 / 1000.0;
                    let (finished, pause) = (finished.clone(), args.episode_s * spread);
                    tokio::spawn(async move {
                        sleep(Duration::from_secs_f64(pause)).await;
                        drop(finished.send(assignment).await);
                    });
                }
                Some(Down::Acknowledged(one)) => {
                    counters.acknowledged.fetch_add(1, Relaxed);
                    let since: Option<Instant> = reported.remove(&one.episode_id);
                    if let Some(since) = since.filter(|_| counters.measuring.load(Relaxed)) {
                        let ms = since.elapsed().as_secs_f64() * 1e3;
                        counters.latencies_ms.lock().await.push(ms);
                    }
                }
                Some(_) => {}
                None => return Ok(()),
            },
            Some(assignment) = done.recv() => {
                reported.insert(assignment.episode_id, Instant::now());
                let trajectory = trajectory(&assignment, args.tokens);
                stream.send(up(Up::Trajectory(trajectory))).await?;
                stream.send(up(Up::SlotsFree(SlotsFree { slots: 1 }))).await?;
                counters.reported.fetch_add(1, Relaxed);
            }
            _ = beat.tick() => {
                stream.send(up(Up::Heartbeat(Heartbeat::default()))).await?;
            }
        }
    }
}

/// A learner that has every step done at once.
async fn learn(address: Arc<str>, counters: Arc<Counters>) -> Result<()> {
    let channel = net::endpoint(&address)?.connect().await?;
    let mut client = TrainingClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = NextBatchRequest {
        learner_id: "learner".into(),
        generation: 1,
        weights_address: "127.0.0.1:9".into(),
        manifest_hash: hash(0),
        ..NextBatchRequest::default()
    };
    let mut batches = client.next_batch(request).await?.into_inner();
    while let Some(batch) = batches.message().await? {
        let kind = batch.kind();
        if kind == StepKind::Finish {
            break;
        }
        let answer = CompleteStepRequest {
            learner_id: "learner".into(),
            generation: 1,
            step: batch.step,
            kind: kind.into(),
            manifest_hash: hash(batch.step),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("step-{}", batch.step)),
            ..CompleteStepRequest::default()
        };
        client.complete_step(answer).await?;
        counters.steps.fetch_add(1, Relaxed);
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Arc::new(Args::parse());
    let counters = Arc::new(Counters::default());
    let coordinator = Coordinator::start(&args).await?;
    let address: Arc<str> = coordinator.address.as_str().into();
    let (first, second) = (Arc::clone(&address), Arc::clone(&counters));
    tokio::spawn(async move {
        if let Err(error) = learn(first, second).await {
            eprintln!("the learner failed: {error}");
        }
    });
    let connecting = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let started = Instant::now();
    for number in 0..args.actors {
        let (args, counters) = (Arc::clone(&args), Arc::clone(&counters));
        let address = Arc::clone(&address);
        let turn = Arc::clone(&connecting).acquire_owned().await?;
        tokio::spawn(async move {
            let before = counters.connected.load(Relaxed);
            let actor = act(args, address, Arc::clone(&counters), number);
            let waited = async {
                while counters.connected.load(Relaxed) <= before {
                    sleep(Duration::from_millis(1)).await;
                }
                drop(turn);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = actor => if let Err(error) = ended {
                    eprintln!("actor-{number} failed: {error:#}");
                },
                () = waited => {}
            }
        });
    }
    let all = args.actors as u64;
    timeout(CONNECT_PATIENCE, async {
        while counters.connected.load(Relaxed) < all {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .context("not everybody could connect")?;
    let connect_s = started.elapsed().as_secs_f64();
    sleep(Duration::from_secs_f64(args.episode_s * 1.5)).await;
    counters.measuring.store(true, Relaxed);
    let (processor, resident) = coordinator.usage()?;
    let (before, since) = (counters.acknowledged.load(Relaxed), Instant::now());
    sleep(Duration::from_secs_f64(args.seconds)).await;
    let measured = counters.acknowledged.load(Relaxed) - before;
    let seconds = since.elapsed().as_secs_f64();
    let (processor_after, resident_after) = coordinator.usage()?;
    let mut latencies = std::mem::take(&mut *counters.latencies_ms.lock().await);
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((latencies.len() as f64 - 1.0) * share).max(0.0) as usize;
        latencies.get(index).copied().unwrap_or(f64::NAN)
    };
    let result = serde_json::json!({
        "actors": args.actors,
        "connect_s": connect_s,
        "trajectories_per_s": measured as f64 / seconds,
        "acknowledged": measured,
        "steps": counters.steps.load(Relaxed),
        "cores": (processor_after - processor) / seconds,
        "resident_mb_before": resident as f64 / 1e6,
        "resident_mb_after": resident_after as f64 / 1e6,
        "acknowledgement_ms_p50": at(0.5),
        "acknowledgement_ms_p99": at(0.99),
    });
    println!("{result}");
    Ok(())
}
