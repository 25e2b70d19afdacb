//! From a batch of summaries to the message a learner gets.

use std::collections::BTreeMap;

use ballast_proto::{
    EpisodeId,
    v1::{RolloutGroup, TrainBatch, Trajectory, TrajectorySummary},
};
use prost::Message as _;
use tokio::{sync::mpsc, task};
use tonic::Status;

use std::sync::Arc;

use crate::{
    engine::Batch,
    journal::{ReadError, Reader},
    payloads::Source,
};

/// A batch and where its trajectories are.
#[derive(Debug)]
pub struct Order {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Source of each of its trajectories.
    pub sources: BTreeMap<EpisodeId, Source>,
}

/// Why a batch cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal holds something else there.
    #[error("the trajectory of {0} in the journal cannot be decoded: {1}")]
    Decode(EpisodeId, prost::DecodeError),
    /// Nobody knows where it is.
    #[error("the trajectory of {0} is not in the journal any more")]
    Missing(EpisodeId),
}

/// Turns orders into messages, in order, until either side is gone. A batch that cannot be put
/// together ends the learner's stream with the reason.
pub async fn serve(
    run_id: String,
    reader: Reader,
    mut orders: mpsc::Receiver<Order>,
    batches: mpsc::Sender<Result<TrainBatch, Status>>,
) {
    while let Some(order) = orders.recv().await {
        let (run_id, reader) = (run_id.clone(), reader.clone());
        // Trajectories may have to be read from the disk.
        let assembled = task::spawn_blocking(move || assemble(&order, run_id, &reader)).await;
        let message = match assembled {
            Ok(Ok(batch)) => Ok(batch),
            Ok(Err(error)) => {
                tracing::error!("a batch cannot be served: {error}");
                Err(Status::data_loss(error.to_string()))
            }
            Err(_) => Err(Status::internal("a batch could not be put together")),
        };
        let is_last = message.is_err();
        if batches.send(message).await.is_err() || is_last {
            return;
        }
    }
}

/// The message of a batch. Equal batches have equal bytes.
///
/// # Errors
/// See [`AssemblyError`].
pub fn assemble(
    order: &Order,
    run_id: String,
    reader: &Reader,
) -> Result<TrainBatch, AssemblyError> {
    let Order { batch, sources } = order;
    let all = |summaries: &[Arc<TrajectorySummary>]| {
        let mut trajectories = Vec::with_capacity(summaries.len());
        for summary in summaries {
            let episode = EpisodeId(summary.episode_id);
            let source = sources.get(&episode).ok_or(AssemblyError::Missing(episode))?;
            trajectories.push(take(episode, source, reader)?);
        }
        Ok::<_, AssemblyError>(trajectories)
    };
    let mut groups = Vec::with_capacity(batch.groups.len());
    for group in &batch.groups {
        let trajectories = all(&group.trajectories)?;
        groups.push(RolloutGroup { group_id: group.id.0, trajectories });
    }
    Ok(TrainBatch {
        step: batch.step,
        kind: batch.kind.into(),
        groups,
        demonstrations: all(&batch.demonstrations)?,
        learning_rate: batch.learning_rate,
        sft_weight: batch.sft_weight,
        reset_optimizer: batch.reset_optimizer,
        run_id,
    })
}

/// One trajectory, decoded.
///
/// # Errors
/// The journal cannot be read, or holds something else there.
pub fn take(
    episode: EpisodeId,
    source: &Source,
    reader: &Reader,
) -> Result<Trajectory, AssemblyError> {
    let bytes = match source {
        Source::Loaded(bytes) => bytes.clone(),
        Source::Stored(location) => reader.payload(location)?,
    };
    Trajectory::decode(bytes).map_err(|error| AssemblyError::Decode(episode, error))
}
