//! Checkpoints: a Hugging Face directory that `transformers` loads, plus the optimizer's state.
//!
//! A checkpoint appears under its final name only when it is complete and on disk: it is written
//! beside, synced and renamed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use ballast_policy::{CheckpointError, Policy, read_weights, write_weights};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    companions::{self, Companions},
    optimizer::{Loss, Moments, MomentsByLoss},
};

const STATE_FILE: &str = "trainer_state.json";
const TENSORS_FILE: &str = "trainer_state.safetensors";
/// All parameters in fp32; there where the network's own files hold them rounded.
const EXACT: &str = "parameters.exact";

/// What is wrong with a checkpoint or the disk under it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing the network's files failed.
    #[error(transparent)]
    Network(#[from] CheckpointError),
    /// A file or directory cannot be read or written.
    #[error("checkpoint {path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Reading or writing the other files failed.
    #[error(transparent)]
    Companions(#[from] companions::Error),
    /// The trainer's state does not belong to this network.
    #[error("{path}: {reason}; remove this checkpoint to start from the one before it")]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Last optimizer step in the weights, the policy version they are.
    step: u64,
    /// Run that made it; empty in checkpoints from before runs had an identity.
    #[serde(default)]
    run_id: String,
    /// Steps the optimizer took on each loss; fewer than `step` in all when some were skipped.
    optimizer_steps: BTreeMap<String, u64>,
}

/// A complete checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Last optimizer step in the weights.
    pub step: u64,
    /// Its directory.
    pub directory: PathBuf,
}

/// What a checkpoint is made of.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Last optimizer step in the weights.
    pub step: u64,
    /// Run they belong to.
    pub run_id: &'a str,
    /// The weights.
    pub policy: &'a Policy,
    /// The optimizer's state.
    pub moments: &'a MomentsByLoss,
    /// The files beside the weights.
    pub companions: &'a Companions,
}

/// The trainer's state of a checkpoint.
#[derive(Debug)]
pub struct Resumed {
    /// Run the checkpoint belongs to; empty if it does not say.
    pub run_id: String,
    /// The optimizer's state.
    pub moments: MomentsByLoss,
}

impl Checkpoint {
    /// The newest complete checkpoint under `root`; `None` when there is none.
    ///
    /// # Errors
    /// `root` exists and cannot be listed.
    pub fn newest(root: &Path) -> Result<Option<Self>, Error> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path: root.to_owned(), source }),
        };
        let complete = entries.filter_map(Result::ok).filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            let directory = entry.path();
            directory.join(STATE_FILE).is_file().then_some(Self { step, directory })
        });
        Ok(complete.max())
    }

    /// Writes a checkpoint under `root`, named after its step.
    ///
    /// # Errors
    /// The disk refuses; then no `step-N` appears, and nothing is left that takes room.
    pub fn save(root: &Path, contents: &Contents<'_>) -> Result<Self, Error> {
        let step = contents.step;
        let directory = root.join(format!("step-{step}"));
        let beside = root.join(format!(".step-{step}.partial"));
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(io(&beside))?;
        }
        let written = write_all(&beside, contents);
        if let Err(error) = written {
            // Best effort: the first error is the one to report.
            drop(fs::remove_dir_all(&beside));
            return Err(error);
        }
        if directory.exists() {
            // The same step again, after a restart from an older checkpoint.
            fs::remove_dir_all(&directory).map_err(io(&directory))?;
        }
        fs::rename(&beside, &directory).map_err(io(&directory))?;
        File::open(root).and_then(|root| root.sync_all()).map_err(io(root))?;
        Ok(Self { step, directory })
    }

    /// Takes the trainer's state up again: gives the policy, which was opened from this checkpoint,
    /// its parameters as they were before they were rounded for the disk, and returns the rest.
    ///
    /// # Errors
    /// A missing or damaged file, or the state of another network.
    pub fn resume(&self, policy: &Policy) -> Result<Resumed, Error> {
        let state_error = |reason: String| Error::State { path: self.directory.clone(), reason };
        let state_file = self.directory.join(STATE_FILE);
        let bytes = fs::read(&state_file)
            .map_err(|source| Error::Io { path: state_file.clone(), source })?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| state_error(error.to_string()))?;
        if state.step != self.step {
            return Err(state_error(format!("its state says step {}", state.step)));
        }
        let mut tensors: BTreeMap<String, Tensor> =
            read_weights(&self.directory.join(TENSORS_FILE))?;
        let mut take = |name: &str| {
            let tensor =
                tensors.remove(name).ok_or_else(|| state_error(format!("{name} is missing")))?;
            if tensor.size() == policy.flat().size() {
                Ok(tensor.to_device(policy.device()))
            } else {
                Err(state_error(format!("{name} belongs to another network")))
            }
        };
        if policy.save_rounds() {
            let exact = take(EXACT)?;
            tch::no_grad(|| policy.flat().shallow_clone().copy_(&exact));
        }
        let mut moments = MomentsByLoss::new();
        for loss in Loss::ALL {
            if let Some(&steps) = state.optimizer_steps.get(loss.name()) {
                let [first, second] = moment_names(loss);
                let history = Moments { steps, first: take(&first)?, second: take(&second)? };
                moments.insert(loss, history);
            }
        }
        Ok(Resumed { run_id: state.run_id, moments })
    }
}

/// Writes a whole checkpoint into a new directory and makes it durable: the files that
/// `transformers` loads, and the trainer's state.
fn write_all(directory: &Path, contents: &Contents<'_>) -> Result<(), Error> {
    let Contents { step, run_id, policy, moments, companions } = *contents;
    fs::create_dir_all(directory).map_err(io(directory))?;
    policy.save(directory)?;
    companions.write(directory)?;
    let mut tensors = Vec::new();
    for (loss, moments) in moments {
        let values = [&moments.first, &moments.second].map(Tensor::shallow_clone);
        tensors.extend(std::iter::zip(moment_names(*loss), values));
    }
    if policy.save_rounds() {
        tensors.push((EXACT.to_owned(), policy.flat().shallow_clone()));
    }
    write_weights(&directory.join(TENSORS_FILE), &tensors)?;
    let steps = moments.iter().map(|(loss, moments)| (loss.name().to_owned(), moments.steps));
    let run_id = run_id.to_owned();
    let state = State { step, run_id, optimizer_steps: steps.collect() };
    let text = serde_json::to_vec_pretty(&state).expect("numbers always serialise");
    let state_file = directory.join(STATE_FILE);
    fs::write(&state_file, text).map_err(io(&state_file))?;
    sync(directory)
}

/// Names of the first and the second moment of a loss.
fn moment_names(loss: Loss) -> [String; 2] {
    ["first", "second"].map(|order| format!("optimizer.{}.{order}_moment", loss.name()))
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Makes everything in a directory, and the directory itself, durable.
fn sync(directory: &Path) -> Result<(), Error> {
    let sync_one = |path: &Path| {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|source| Error::Io { path: path.to_owned(), source })
    };
    let entries = fs::read_dir(directory)
        .map_err(|source| Error::Io { path: directory.to_owned(), source })?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() { sync(&path)? } else { sync_one(&path)? }
    }
    sync_one(directory)
}
