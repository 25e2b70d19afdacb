//! Other weights for a running server, in the shape of SGLang's `/update_weights_from_disk`.
//!
//! A directory is read and checked beside the running completions; what is wrong with it leaves
//! everything as it was. Then no further completion begins, those that run finish under the old
//! weights (or are cut off, if the sender asks), and the weights are replaced: every completion is
//! sampled from one version from its first token to its last.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    openai::ApiError,
    queue::{Queue, WeightUpdate},
};
use crate::weights::StagedPolicy;

/// What SGLang calls weights that nobody named.
const VERSION_DEFAULT: &str = "default";

/// Reads a checkpoint directory as other weights of the served model, or says what is wrong with it.
pub type ReadCheckpoint = dyn Fn(&Path) -> Result<StagedPolicy, String> + Send + Sync;

/// Takes updates, one at a time.
#[expect(missing_debug_implementations, reason = "it holds a function")]
pub struct WeightUpdates {
    read: Arc<ReadCheckpoint>,
    held: Mutex<Held>,
    turn: tokio::sync::Mutex<()>,
}

/// What the server samples from.
#[derive(Clone, Debug)]
struct Held {
    model_path: PathBuf,
    weight_version: String,
}

/// The fields of SGLang's request that matter here; what it says about caches is done anyway.
#[derive(Debug, Deserialize)]
struct UpdateFields {
    model_path: PathBuf,
    weight_version: Option<String>,
    abort_all_requests: Option<bool>,
}

impl WeightUpdates {
    /// A server that holds the checkpoint `model_path`, with the way to read others.
    #[must_use]
    pub fn new(model_path: PathBuf, read: Arc<ReadCheckpoint>) -> Self {
        let held = Mutex::new(Held { model_path, weight_version: VERSION_DEFAULT.into() });
        Self { read, held, turn: tokio::sync::Mutex::default() }
    }

    /// The answer of `/model_info`.
    #[must_use]
    pub fn describe(&self) -> Value {
        let Held { model_path, weight_version } = self.lock().clone();
        json!({ "model_path": model_path, "weight_version": weight_version })
    }

    /// Replaces the weights by those of the directory that `body` names.
    ///
    /// # Errors
    /// 400 with the reason when they cannot be used: the old ones stay.
    pub async fn update(&self, queue: &Queue, body: &[u8]) -> Result<Value, ApiError> {
        let fields: UpdateFields = serde_json::from_slice(body).map_err(|error| refused(&error))?;
        let _turn = self.turn.lock().await;
        let (read, path) = (Arc::clone(&self.read), fields.model_path.clone());
        let reading = tokio::task::spawn_blocking(move || read(&path));
        let staged = reading.await.unwrap_or_else(|_| Err("reading it panicked: a bug".into()));
        let staged = staged.map_err(|error| refused(&error))?;
        let (done, replaced) = oneshot::channel();
        let cut_off = fields.abort_all_requests.unwrap_or(false);
        queue.update(WeightUpdate { staged, cut_off, done })?;
        let gone =
            |_| ApiError::body(503, "shutting_down", "the decoding thread has ended; see the log");
        replaced.await.map_err(gone)?.map_err(|error| refused(&error))?;
        let weight_version = fields.weight_version.unwrap_or_else(|| VERSION_DEFAULT.into());
        tracing::info!("weights `{weight_version}` from {}", fields.model_path.display());
        *self.lock() = Held { model_path: fields.model_path, weight_version };
        Ok(json!({ "success": true, "message": "Succeeded to update model weights." }))
    }

    /// Every change is one assignment, so a panic elsewhere cannot leave it half written.
    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a server whose weights cannot be replaced.
#[must_use]
pub fn off() -> ApiError {
    let message = "this server can be reached from other machines, so its weights cannot be replaced; \
                   start it with --allow-weight-updates if they may be";
    ApiError::body(403, "weight_updates_off", message)
}

/// An error in SGLang's shape beside OpenAI's.
#[must_use]
pub fn refusal(error: &ApiError) -> Value {
    let mut answer = error.json();
    answer["success"] = json!(false);
    answer["message"] = json!(error.message);
    answer
}

fn refused(reason: &impl std::fmt::Display) -> ApiError {
    ApiError::body(400, "weights_refused", format!("the weights stay as they are: {reason}"))
}
