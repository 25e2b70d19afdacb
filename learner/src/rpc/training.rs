//! Client of `ballast.v1.Training`.

use ballast_proto::{
    Generation, MESSAGE_BYTES_MAX, ManifestHash,
    v1::{CompleteStepRequest, NextBatchRequest, TrainBatch, training_client::TrainingClient},
};
use tonic::{Status, Streaming, transport::Channel};

use crate::worker::Completed;

/// Who this learner is.
#[derive(Clone, Debug)]
pub struct LearnerIdentity {
    /// Stable name.
    pub learner_id: String,
    /// Incarnation.
    pub generation: Generation,
    /// host:port actors fetch weights from.
    pub weights_address: String,
}

/// A connection to the coordinator.
#[derive(Debug)]
pub struct Coordinator {
    client: TrainingClient<Channel>,
    identity: LearnerIdentity,
}

impl Coordinator {
    /// A client over an open channel.
    #[must_use]
    pub fn new(channel: Channel, identity: LearnerIdentity) -> Self {
        let client = TrainingClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { client, identity }
    }

    /// Opens the stream of batches that follow `last_step` of run `run_id`.
    ///
    /// # Errors
    /// FAILED_PRECONDITION while another learner holds the stream, or when the step cannot be
    /// continued from; anything else is the connection's.
    pub async fn next_batches(
        &mut self,
        last_step: u64,
        manifest_hash: ManifestHash,
        run_id: &str,
    ) -> Result<Streaming<TrainBatch>, Status> {
        let request = NextBatchRequest {
            learner_id: self.identity.learner_id.clone(),
            generation: self.identity.generation.0,
            last_step,
            weights_address: self.identity.weights_address.clone(),
            manifest_hash: manifest_hash.0.to_vec(),
            run_id: run_id.to_owned(),
        };
        Ok(self.client.next_batch(request).await?.into_inner())
    }

    /// Reports a finished batch; reporting it twice is harmless.
    ///
    /// # Errors
    /// The coordinator's refusal, or the connection's failure.
    pub async fn complete(&mut self, completed: &Completed) -> Result<(), Status> {
        let request = CompleteStepRequest {
            learner_id: self.identity.learner_id.clone(),
            generation: self.identity.generation.0,
            step: completed.step,
            kind: completed.kind.into(),
            manifest_hash: completed.manifest_hash.0.to_vec(),
            skipped: completed.skipped,
            metrics: completed.metrics.clone(),
            checkpoint: completed.checkpoint.as_ref().map(|path| path.display().to_string()),
        };
        self.client.complete_step(request).await.map(|_| ())
    }
}
