//! Carries out batches: the trainer, the weight store and the checkpoints behind one method.
//! Synchronous; the driver runs it on a thread of its own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use ballast_policy::{Dtype, Policy, open_device, set_threads};
use ballast_proto::{
    InvalidTrajectory, ManifestHash, PolicyVersion,
    v1::{StepKind, TrainBatch},
    verify_trajectory,
};
use ballast_runtime::config::Config;

use crate::{
    algorithm::{Grpo, supervised},
    checkpoint::{self, Checkpoint, Contents, Resumed},
    companions::{self, Companions},
    loss::Clip,
    optimizer::{AdamW, MomentsByLoss},
    publish::WeightStore,
    train::{LossKind, Part, StepReport, Trainer},
};

/// Why the learner cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The initial checkpoint or a saved one cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The initial checkpoint's network files cannot be used.
    #[error(transparent)]
    Network(#[from] ballast_policy::CheckpointError),
    /// The files beside the weights cannot be used.
    #[error(transparent)]
    Companions(#[from] companions::Error),
    /// The network has fewer positions than an episode may have tokens.
    #[error(
        "{path}: config.json says max_position_embeddings {positions}, but \
         episode.trajectory_tokens_max is {tokens}; set that to {positions} or less"
    )]
    Context {
        /// The checkpoint directory.
        path: PathBuf,
        /// Longest sequence of the network.
        positions: i64,
        /// Longest trajectory of the run.
        tokens: u32,
    },
    /// The device is absent.
    #[error(transparent)]
    Device(#[from] ballast_policy::DeviceError),
    /// The coordinator sent a trajectory that breaks M1.
    #[error("the coordinator sent an invalid trajectory: {0}")]
    Trajectory(#[from] InvalidTrajectory),
    /// The coordinator sent a batch out of order.
    #[error("the coordinator sent the batch of step {found} after step {last}")]
    Order {
        /// Step of the batch.
        found: u64,
        /// Last step in the weights.
        last: u64,
    },
    /// The coordinator sent a batch of another run.
    #[error(
        "the coordinator sent a batch of run {found}, but these weights belong to run {held}; \
         give each run its own run.name, or remove the checkpoints of the old one"
    )]
    Run {
        /// Run of the batch.
        found: String,
        /// Run of the weights.
        held: String,
    },
    /// The batch says nothing this version understands.
    #[error("the coordinator sent a batch of unknown kind; run the same version of all roles")]
    Kind,
}

/// What a batch led to, for the coordinator.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Step of the batch.
    pub step: u64,
    /// Kind of the batch.
    pub kind: StepKind,
    /// Manifest hash of the version on offer.
    pub manifest_hash: ManifestHash,
    /// Nothing was applied because a number was not finite.
    pub skipped: bool,
    /// Named scalars.
    pub metrics: BTreeMap<String, f64>,
    /// Directory of a checkpoint just written.
    pub checkpoint: Option<PathBuf>,
}

/// The learner's state between batches.
#[derive(Debug)]
pub struct Worker {
    trainer: Trainer,
    store: WeightStore,
    grpo: Grpo,
    clip: Clip,
    step: u64,
    /// Run the weights belong to; empty before the first batch.
    run_id: String,
    manifest_hash: ManifestHash,
    companions: Companions,
    checkpoints: PathBuf,
    /// The newest checkpoint of the run, by this process or the one before it.
    saved: Option<Checkpoint>,
    threads: u32,
}

impl Worker {
    /// Loads the newest checkpoint of the run, or the initial one, and publishes it.
    ///
    /// # Errors
    /// Anything missing, damaged or inconsistent, by name.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let device = open_device(&config.learner.device)?;
        set_threads(config.learner.threads);
        let checkpoints = config.run.directory.join(&config.run.name).join("checkpoints");
        let saved = Checkpoint::newest(&checkpoints)?;
        let directory = saved.as_ref().map_or(&config.model.checkpoint, |saved| &saved.directory);
        let policy = load_policy(directory, device)?;
        let companions = Companions::read(directory, &config.model)?;
        companions.check(directory, &policy)?;
        check_context(directory, &policy, config.episode.trajectory_tokens_max)?;
        let Resumed { run_id, moments } = match &saved {
            Some(saved) => saved.resume(&policy)?,
            None => Resumed { run_id: String::new(), moments: MomentsByLoss::new() },
        };
        let step = saved.as_ref().map_or(0, |saved| saved.step);
        tracing::info!("weights from {}, step {step}", directory.display());
        let settings = &config.optimizer;
        let optimizer = AdamW::new(settings.beta1, settings.beta2, settings.weight_decay, moments);
        let store = WeightStore::new(companions.clone());
        let manifest_hash = store.publish(PolicyVersion(step), &policy);
        let trainer = Trainer::new(
            policy,
            optimizer,
            settings.gradient_norm_max,
            config.learner.micro_batch_tokens as usize,
        );
        Ok(Self {
            trainer,
            store,
            grpo: Grpo { divide_by_std: config.rl.advantage_std },
            clip: Clip { low: config.rl.clip_low, high: config.rl.clip_high },
            step,
            run_id,
            manifest_hash,
            companions,
            checkpoints,
            saved,
            threads: config.learner.threads,
        })
    }

    /// Weights on offer, for the `Weights` service.
    #[must_use]
    pub fn store(&self) -> &WeightStore {
        &self.store
    }

    /// Last optimizer step in the weights.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        self.step
    }

    /// Run the weights belong to; empty for initial ones.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Manifest hash of the version on offer.
    #[must_use]
    pub fn manifest_hash(&self) -> ManifestHash {
        self.manifest_hash
    }

    /// Carries out one batch.
    ///
    /// # Errors
    /// A batch that is out of order, of another run or malformed, or a checkpoint the disk refuses.
    pub fn perform(&mut self, batch: &TrainBatch) -> Result<Completed, Error> {
        // The driver runs each batch on whatever thread is free.
        set_threads(self.threads);
        self.enter(&batch.run_id)?;
        match batch.kind() {
            StepKind::Rl | StepKind::Sft | StepKind::Joint => self.train(batch),
            StepKind::Checkpoint => {
                let checkpoint = self.save()?;
                Ok(self.completed(batch, BTreeMap::new(), Some(checkpoint.directory)))
            }
            StepKind::Finish => Ok(self.completed(batch, BTreeMap::new(), None)),
            StepKind::Unspecified => Err(Error::Kind),
        }
    }

    /// Whether there is nothing to lose: the weights are those of a checkpoint.
    #[must_use]
    pub fn is_saved(&self) -> bool {
        self.step == self.saved.as_ref().map_or(0, |saved| saved.step)
    }

    /// Writes a checkpoint of the weights as they are, unless there is one.
    ///
    /// # Errors
    /// The disk refuses; it may be tried again.
    pub fn save(&mut self) -> Result<Checkpoint, Error> {
        if let Some(saved) = self.saved.as_ref().filter(|saved| saved.step == self.step) {
            return Ok(saved.clone());
        }
        let contents = Contents {
            step: self.step,
            run_id: &self.run_id,
            policy: self.trainer.policy(),
            moments: self.trainer.optimizer().moments(),
            companions: &self.companions,
        };
        let saved = Checkpoint::save(&self.checkpoints, &contents)?;
        self.saved = Some(saved.clone());
        Ok(saved)
    }

    /// The first batch says which run the weights belong to from then on.
    fn enter(&mut self, run_id: &str) -> Result<(), Error> {
        if self.run_id.is_empty() {
            run_id.clone_into(&mut self.run_id);
        }
        if self.run_id != run_id {
            return Err(Error::Run { found: run_id.to_owned(), held: self.run_id.clone() });
        }
        Ok(())
    }

    fn train(&mut self, batch: &TrainBatch) -> Result<Completed, Error> {
        if batch.step != self.step + 1 {
            return Err(Error::Order { found: batch.step, last: self.step });
        }
        let parts = self.parts(batch)?;
        if batch.reset_optimizer {
            self.trainer.reset_optimizer();
        }
        let report = self.trainer.step(&parts, batch.learning_rate);
        if report.skipped {
            tracing::warn!(step = batch.step, "skipped: a loss or gradient was not finite");
        }
        self.step = batch.step;
        let published = Instant::now();
        self.manifest_hash = self.store.publish(PolicyVersion(self.step), self.trainer.policy());
        let mut metrics = metrics(&report, batch.learning_rate);
        metrics.insert("publish/seconds".to_owned(), published.elapsed().as_secs_f64());
        let mut completed = self.completed(batch, metrics, None);
        completed.skipped = report.skipped;
        Ok(completed)
    }

    /// What a step's loss consists of.
    fn parts(&self, batch: &TrainBatch) -> Result<Vec<Part>, Error> {
        let explored = batch.groups.iter().flat_map(|group| &group.trajectories);
        for trajectory in explored.chain(&batch.demonstrations) {
            verify_trajectory(trajectory)?;
        }
        let explore = || {
            let samples = self.grpo.samples(&batch.groups, PolicyVersion(self.step));
            Part::whole(samples, LossKind::PolicyGradient(self.clip))
        };
        let imitate = || Part::whole(supervised(&batch.demonstrations), LossKind::CrossEntropy);
        Ok(match batch.kind() {
            StepKind::Rl => vec![explore()],
            StepKind::Joint => vec![explore(), Part { weight: batch.sft_weight, ..imitate() }],
            _ => vec![imitate()],
        })
    }

    fn completed(
        &self,
        batch: &TrainBatch,
        metrics: BTreeMap<String, f64>,
        checkpoint: Option<PathBuf>,
    ) -> Completed {
        Completed {
            step: batch.step,
            kind: batch.kind(),
            manifest_hash: self.manifest_hash,
            skipped: false,
            metrics,
            checkpoint,
        }
    }
}

/// Loads a network from a checkpoint directory, to train it.
///
/// # Errors
/// Anything missing, damaged or inconsistent, by name.
pub fn load_policy(directory: &Path, device: tch::Device) -> Result<Policy, Error> {
    Ok(Policy::open(directory, device, Dtype::F32)?)
}

fn check_context(directory: &Path, policy: &Policy, tokens: u32) -> Result<(), Error> {
    let positions = policy.config().positions_max;
    if i64::from(tokens) > positions {
        return Err(Error::Context { path: directory.to_owned(), positions, tokens });
    }
    Ok(())
}

/// Named scalars of a step; `docs/metrics.md` lists them with their units.
fn metrics(report: &StepReport, learning_rate: f64) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    let mut add = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
    if let Some(loss) = report.policy_gradient {
        add("loss/policy_gradient", loss);
        add("train/clip_fraction", report.clip_fraction);
        add("train/behavior_kl", report.behavior_kl);
        add("train/importance_ratio", report.importance_ratio);
    }
    if let Some(gap) = report.logprob_gap_max {
        add("train/logprob_gap_max", gap);
    }
    if let Some(loss) = report.cross_entropy {
        add("loss/cross_entropy", loss);
    }
    add("train/entropy", report.entropy);
    add("train/gradient_norm", report.gradient_norm);
    add("train/learning_rate", learning_rate);
    add("train/tokens", report.processed_tokens);
    add("train/trained_tokens", report.trained_tokens);
    add("train/seconds", report.seconds);
    if report.seconds > 0.0 {
        add("train/tokens_per_s", report.processed_tokens / report.seconds);
    }
    add("train/skipped", f64::from(u8::from(report.skipped)));
    metrics
}
