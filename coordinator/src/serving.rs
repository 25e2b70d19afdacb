//! From a batch of summaries to the message a learner gets.

use std::collections::BTreeMap;

use ballast_proto::{
    EpisodeId,
    v1::{BatchPlanned, RolloutGroup, TrainBatch, Trajectory},
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
    // Its place in the sequence is no part of the message.
    message(&order.batch.to_record(0), &order.sources, run_id, reader)
}

/// The message of a recorded batch. It is made from the record and the trajectories alone, so a
/// replay serves the very bytes that the run served.
///
/// # Errors
/// See [`AssemblyError`].
pub fn message(
    record: &BatchPlanned,
    sources: &BTreeMap<EpisodeId, Source>,
    run_id: String,
    reader: &Reader,
) -> Result<TrainBatch, AssemblyError> {
    let all = |episodes: &[u64]| {
        let mut trajectories = Vec::with_capacity(episodes.len());
        for episode in episodes.iter().copied().map(EpisodeId) {
            let source = sources.get(&episode).ok_or(AssemblyError::Missing(episode))?;
            trajectories.push(take(episode, source, reader)?);
        }
        Ok::<_, AssemblyError>(trajectories)
    };
    let mut groups = Vec::with_capacity(record.groups.len());
    for group in &record.groups {
        let trajectories = all(&group.episodes)?;
        groups.push(RolloutGroup { group_id: group.group_id, trajectories });
    }
    Ok(TrainBatch {
        step: record.step,
        kind: record.kind,
        groups,
        demonstrations: all(&record.demonstrations)?,
        learning_rate: f64::from_bits(record.learning_rate_bits),
        sft_weight: f64::from_bits(record.sft_weight_bits),
        reset_optimizer: record.reset_optimizer,
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
