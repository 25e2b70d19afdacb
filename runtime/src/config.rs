//! The run's configuration: one TOML file that every role reads, each its own part.
//!
//! Every field has a default that trains the built-in world on a laptop, so a config file holds only
//! what differs. Loading, overrides and the check of all faults at once are in [`crate::config_file`].

mod schedule;
mod store;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use schedule::{Adaptive, PhaseEnd, PhaseKind, Schedule, ScheduleKind, SchedulePhase};
pub use store::{Store, StoreKind};

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Identity of the run and where it keeps its files.
    pub run: Run,
    /// The network to start from.
    pub model: Model,
    /// Which tasks are demonstrated, explored and evaluated.
    pub tasks: Tasks,
    /// How optimizer steps are divided between RL and SFT.
    pub schedule: Schedule,
    /// Reinforcement learning: groups, sampling, loss.
    pub rl: Rl,
    /// Supervised fine-tuning on demonstrations.
    pub sft: Sft,
    /// Optimizer settings that RL and SFT share.
    pub optimizer: Optimizer,
    /// Held-out evaluation.
    pub evaluation: Evaluation,
    /// Bounds of an episode.
    pub episode: Episode,
    /// Control-plane process.
    pub coordinator: Coordinator,
    /// Training process.
    pub learner: Learner,
    /// Rollout processes.
    pub actor: Actor,
}

/// Identity of the run and where it keeps its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Name; the run directory is `<directory>/<name>`.
    pub name: String,
    /// Seed of everything random in the run: tasks, sampling, batch order.
    pub seed: u64,
    /// Parent of all run directories, relative to the working directory.
    pub directory: PathBuf,
}

/// The network to start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Hugging Face checkpoint directory: config.json, tokenizer.json, model.safetensors.
    pub checkpoint: PathBuf,
    /// How the model writes tool calls: "hermes", "llama3", "qwen_xml" or "pythonic". Empty: as its
    /// config.json says in `tool_call_format`, else as its tokenizer suggests. Saved checkpoints
    /// keep what is said here.
    pub tool_call_format: String,
    /// Variables of the chat template, such as `enable_thinking = false`: every conversation of the
    /// run is rendered with them. Empty: as its config.json says in `chat_template_kwargs`, where
    /// saved checkpoints keep what is said here.
    pub template_variables: toml::Table,
}

/// Which tasks are demonstrated, explored and evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// World the tasks come from.
    pub world: String,
    /// Number of expert trajectories the actors record before training starts.
    pub demonstrations: u32,
    /// Number of calls of a demonstrated task; tasks cycle through these.
    pub demonstration_calls: Vec<u32>,
    /// Number of calls of an explored task, drawn uniformly; repeat one to weigh it.
    pub calls: Vec<u32>,
}

/// Reinforcement learning: groups, sampling, loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rl {
    /// Sibling episodes of one task (G).
    pub group_size: u32,
    /// Groups in one RL batch.
    pub groups_per_batch: u32,
    /// How rollout and training overlap.
    pub pacing: Pacing,
    /// With pacing "async": versions the learner may be ahead of the oldest token it trains on (S1).
    pub staleness_max: u64,
    /// Groups of a batch that are left out and replaced by later ones because all of their siblings
    /// got the same reward, so that they teach nothing; at most this many for one batch, 0: none.
    pub replaced_max: u32,
    /// Softmax temperature of exploration.
    pub temperature: f32,
    /// Learning rate of an RL step.
    pub learning_rate: f64,
    /// Lower clip of the importance ratio: ratios below 1 - clip_low are cut (PPO; Schulman 2017).
    pub clip_low: f64,
    /// Upper clip of the importance ratio: ratios above 1 + clip_high are cut.
    pub clip_high: f64,
    /// Divide the advantage by the group's standard deviation (GRPO); false: mean only (Dr.GRPO).
    pub advantage_std: bool,
}

/// How rollout and training overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pacing {
    /// They take turns: an episode begins only when the step before its own is finished. Every token
    /// is sampled under exactly the version its step starts from, so a run repeats bit for bit.
    Serial,
    /// Rollout is one step ahead.
    OneStep,
    /// Rollout is up to `staleness_max` steps ahead.
    Async,
}

/// Supervised fine-tuning on demonstrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// Demonstrations in one SFT batch.
    pub batch: u32,
    /// Learning rate of an SFT step during the cold start.
    pub cold_start_learning_rate: f64,
    /// Learning rate of an SFT step after the cold start.
    pub learning_rate: f64,
    /// What SFT steps after the cold start imitate.
    pub source: SftSource,
    /// With source "failed": which tasks.
    pub failed: FailedTasks,
}

/// What SFT steps after the cold start imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SftSource {
    /// The fixed set of demonstrations.
    Demonstrations,
    /// Demonstrations of the very tasks that the policy failed lately (erroneous-task supervision):
    /// an expert is asked for one as soon as a group has failed. Where there is none yet, the fixed
    /// set.
    Failed,
}

/// Which explored tasks are demonstrated for SFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailedTasks {
    /// When a group has failed.
    pub criterion: FailureCriterion,
    /// RL steps that are looked back on.
    pub window: u64,
}

/// When a group of siblings has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCriterion {
    /// No sibling was fully right.
    AllFail,
    /// Not every sibling was fully right.
    AnyFail,
}

impl Default for FailedTasks {
    fn default() -> Self {
        Self { criterion: FailureCriterion::AllFail, window: 10 }
    }
}

/// Optimizer settings that RL and SFT share: AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global L2 norm.
    pub gradient_norm_max: f64,
}

/// Held-out evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Tasks of the test split, after the cold start and at the end.
    pub tasks: u32,
    /// Tasks of the validation split in one check of the cold start.
    pub check_tasks: u32,
    /// Number of calls of an evaluated task; tasks cycle through these.
    pub calls: Vec<u32>,
    /// Softmax temperature of evaluation; 0 is greedy.
    pub temperature: f32,
}

/// Bounds of an episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Episode {
    /// Assistant messages per episode.
    pub turns_max: u32,
    /// Tokens of one assistant message.
    pub message_tokens_max: u32,
    /// Tokens of the whole trajectory.
    pub trajectory_tokens_max: u32,
    /// Wall-clock budget of an episode, seconds.
    pub seconds_max: f64,
}

/// Control-plane process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Coordinator {
    /// Address to listen on; port 0 takes a free one and writes it to `<run>/coordinator.address`.
    pub listen: String,
    /// HOST:PORT under which actors, learners and people reach it; empty: the listening address.
    pub advertise: String,
    /// Seconds without a heartbeat after which an actor counts as lost.
    pub actor_lease_s: f64,
    /// What the coordinators of the run share.
    pub store: Store,
    /// The record of the run.
    pub journal: Journal,
}

/// The record of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Write the journal as Parquet too, for DuckDB, pandas and Polars: `trajectories/` and `events/`
    /// in the run directory, now and then while the run goes on and in full when it is over. False:
    /// only when `ballast-coordinator journal compact` is called.
    pub compact: bool,
}

/// Training process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learner {
    /// Address the Weights service listens on; port 0 takes a free one.
    pub listen: String,
    /// Address actors reach it under; empty: the listening address.
    pub advertise: String,
    /// "cpu" or "cuda".
    pub device: String,
    /// Threads libtorch uses.
    pub threads: u32,
    /// Optimizer steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Tokens, padding included, in one forward and backward pass.
    pub micro_batch_tokens: u32,
}

/// Rollout processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Actor {
    /// Actor processes that `ballast up` starts.
    pub count: u32,
    /// Episodes one actor runs at once.
    pub slots: u32,
    /// "cpu" or "cuda".
    pub device: String,
    /// Threads libtorch uses in each actor.
    pub threads: u32,
    /// What the network computes in: "fp32"; "bf16", which is faster where the processor has it and
    /// rounds; "auto", which times both at the start.
    pub dtype: String,
    /// Most memory of the KV cache, MiB; 0: room for every slot. With less than that, episodes wait
    /// for room, those assigned first going first, and one that waits for a tool may lose its room:
    /// its tokens are then run through the network again.
    pub kv_cache_mib: u32,
    /// Computes the keys and values of running episodes again when new weights are adopted. Then the
    /// log-probability of every token is that of its policy version alone, to 1e-4. False: they stay
    /// as the older weights computed them, and adopting costs nothing; a log-probability is then that
    /// of the distribution the token was drawn from, which is no single version's.
    pub recompute_on_swap: bool,
    /// What decodes.
    pub engine: ActorEngine,
}

/// What decodes in an actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActorEngine {
    /// "libtorch": in the actor's own process. "vllm", "sglang" or "ballast" (`ballast-actor
    /// serve`): a server, which the actor asks for tokens and hands every version of the weights.
    /// `device`, `threads`, `dtype`, `kv_cache_mib` and `recompute_on_swap` are then the server's own
    /// business, and keys and values are always computed again when weights change.
    pub kind: String,
    /// http://HOST:PORT of the server. One server serves one actor.
    pub url: String,
    /// What the server's log-probabilities are: "raw", of the policy (vLLM's default), or
    /// "processed", of the distribution that tokens are drawn from (vLLM with --logprobs-mode
    /// processed_logprobs; SGLang's default). At a temperature other than 1 only the latter will do.
    /// `ballast-actor serve` tells both.
    pub logprobs: String,
    /// Directory through which the server gets the weights; it must see it under the same path.
    /// Empty: `engine` in the run directory.
    pub spool: PathBuf,
    /// Seconds the server may fail to answer before episodes are given up. It may be silent for a
    /// third of this at a time.
    pub patience_s: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self { name: "run".into(), seed: 0, directory: "runs".into() }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            checkpoint: "examples/market/base".into(),
            tool_call_format: String::new(),
            template_variables: toml::Table::new(),
        }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            world: "market".into(),
            demonstrations: 128,
            demonstration_calls: vec![2, 3],
            calls: vec![2, 3, 4, 5],
        }
    }
}

impl Default for Rl {
    fn default() -> Self {
        Self {
            group_size: 8,
            groups_per_batch: 8,
            pacing: Pacing::Async,
            staleness_max: 2,
            replaced_max: 0,
            temperature: 1.0,
            learning_rate: 3e-4,
            clip_low: 0.2,
            clip_high: 0.28,
            advantage_std: true,
        }
    }
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            batch: 32,
            cold_start_learning_rate: 1e-3,
            learning_rate: 1e-4,
            source: SftSource::Demonstrations,
            failed: FailedTasks::default(),
        }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, weight_decay: 0.0, gradient_norm_max: 1.0 }
    }
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { tasks: 400, check_tasks: 128, calls: vec![2, 3, 4, 5], temperature: 0.0 }
    }
}

impl Default for Episode {
    fn default() -> Self {
        Self {
            turns_max: 8,
            message_tokens_max: 48,
            trajectory_tokens_max: 512,
            seconds_max: 120.0,
        }
    }
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7711".into(),
            advertise: String::new(),
            actor_lease_s: 10.0,
            store: Store::default(),
            journal: Journal::default(),
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self { compact: true }
    }
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            advertise: String::new(),
            device: "cpu".into(),
            threads: 1,
            checkpoint_every: 20,
            micro_batch_tokens: 8192,
        }
    }
}

impl Default for Actor {
    fn default() -> Self {
        Self {
            count: 1,
            slots: 64,
            device: "cpu".into(),
            threads: 1,
            dtype: "fp32".into(),
            kv_cache_mib: 0,
            recompute_on_swap: true,
            engine: ActorEngine::default(),
        }
    }
}

impl Default for ActorEngine {
    fn default() -> Self {
        Self {
            kind: "libtorch".into(),
            url: String::new(),
            logprobs: "raw".into(),
            spool: PathBuf::new(),
            patience_s: 180.0,
        }
    }
}
