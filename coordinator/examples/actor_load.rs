//! Ten thousand actors that exist only on the wire: what one coordinator holds.
//!
//! Every actor has a connection of its own, a session, slots and heartbeats; an episode is a pause and
//! then a trajectory of the given size. A learner that answers at once keeps admission going. Prints
//! one JSON object.
//!
//! ```text
//! ballast-coordinator --config bench/load.toml --set run.name=load --set run.directory=DIR &
//! cargo run -p ballast-coordinator --example actor_load -- --address ADDR --actors 10000
//! ```

use std::{
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
    /// Address of the coordinator, HOST:PORT.
    #[arg(long)]
    address: String,
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
async fn act(args: Arc<Args>, counters: Arc<Counters>, number: usize) -> Result<()> {
    let channel = net::endpoint(&args.address)?.connect().await?;
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
async fn learn(args: Arc<Args>, counters: Arc<Counters>) -> Result<()> {
    let channel = net::endpoint(&args.address)?.connect().await?;
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
    let (first, second) = (Arc::clone(&args), Arc::clone(&counters));
    tokio::spawn(async move {
        if let Err(error) = learn(first, second).await {
            eprintln!("the learner failed: {error}");
        }
    });
    let connecting = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let started = Instant::now();
    for number in 0..args.actors {
        let (args, counters) = (Arc::clone(&args), Arc::clone(&counters));
        let turn = Arc::clone(&connecting).acquire_owned().await?;
        tokio::spawn(async move {
            let before = counters.connected.load(Relaxed);
            let actor = act(args, Arc::clone(&counters), number);
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
    let (before, since) = (counters.acknowledged.load(Relaxed), Instant::now());
    sleep(Duration::from_secs_f64(args.seconds)).await;
    let measured = counters.acknowledged.load(Relaxed) - before;
    let seconds = since.elapsed().as_secs_f64();
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
        "acknowledgement_ms_p50": at(0.5),
        "acknowledgement_ms_p99": at(0.99),
    });
    println!("{result}");
    Ok(())
}
