//! `Training` for one learner that trains on an excerpt of a run.

use std::sync::Arc;

use ballast_proto::{
    MESSAGE_BYTES_MAX,
    v1::{
        CompleteStepRequest, CompleteStepResponse, NextBatchRequest, StepKind, TrainBatch,
        training_server::{self, TrainingServer},
    },
};
use ballast_runtime::net::{
    CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::mpsc, task};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::recording::{Excerpt, Weights};
use crate::{engine::SERVED_AHEAD_MAX, journal::Reader, rpc::ServeError};

/// Reports that wait for whoever shows them; beyond it the learner waits for its answers.
pub const REPORTS_MAX: usize = 64;

/// How far a replay is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// A learner is here.
    Learner {
        /// The step it starts from.
        step: u64,
        /// Its weights beside those that the run had.
        weights: Weights,
    },
    /// An optimizer step is finished.
    Step {
        /// Its number.
        step: u64,
        /// The weights it made beside those that the run published.
        weights: Weights,
    },
    /// A checkpoint is written.
    Checkpoint {
        /// Its step.
        step: u64,
    },
    /// All of it is replayed.
    Finished {
        /// The last step.
        step: u64,
    },
}

/// Serves an excerpt until a learner has finished it.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    listener: TcpListener,
    excerpt: Excerpt,
    reader: Reader,
    reports: mpsc::Sender<Report>,
) -> Result<(), ServeError> {
    let finished = CancellationToken::new();
    let excerpt = Arc::new(excerpt);
    let service = Training { excerpt, reader, reports, finished: finished.clone() };
    let service = TrainingServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            finished.cancelled_owned(),
        )
        .await?;
    Ok(())
}

#[derive(Debug)]
struct Training {
    excerpt: Arc<Excerpt>,
    reader: Reader,
    reports: mpsc::Sender<Report>,
    finished: CancellationToken,
}

impl Training {
    async fn report(&self, report: Report) {
        // Nobody has to listen.
        drop(self.reports.send(report).await);
    }
}

#[tonic::async_trait]
impl training_server::Training for Training {
    type NextBatchStream = ReceiverStream<Result<TrainBatch, Status>>;

    async fn next_batch(
        &self,
        request: Request<NextBatchRequest>,
    ) -> Result<Response<Self::NextBatchStream>, Status> {
        let request = request.into_inner();
        let start = self.excerpt.start(&request).map_err(Status::failed_precondition)?;
        let step = request.last_step;
        let weights = self.excerpt.compare(step, &request.manifest_hash);
        self.report(Report::Learner { step, weights }).await;
        let (batches, receiver) = mpsc::channel(SERVED_AHEAD_MAX as usize);
        tokio::spawn(send(Arc::clone(&self.excerpt), start, self.reader.clone(), batches));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn complete_step(
        &self,
        request: Request<CompleteStepRequest>,
    ) -> Result<Response<CompleteStepResponse>, Status> {
        let request = request.into_inner();
        let step = request.step;
        match request.kind() {
            StepKind::Rl | StepKind::Sft | StepKind::Joint => {
                let weights = self.excerpt.compare(step, &request.manifest_hash);
                self.report(Report::Step { step, weights }).await;
            }
            StepKind::Checkpoint => self.report(Report::Checkpoint { step }).await,
            StepKind::Finish => {
                self.report(Report::Finished { step }).await;
                self.finished.cancel();
            }
            StepKind::Unspecified => return Err(Status::invalid_argument("kind is missing")),
        }
        Ok(Response::new(CompleteStepResponse {}))
    }
}

/// Sends the batches from one on, until the last or until the learner is gone.
async fn send(
    excerpt: Arc<Excerpt>,
    start: usize,
    reader: Reader,
    batches: mpsc::Sender<Result<TrainBatch, Status>>,
) {
    for index in start.. {
        let (excerpt, reader) = (Arc::clone(&excerpt), reader.clone());
        // Trajectories are read from the disk.
        let made = task::spawn_blocking(move || excerpt.message(index, &reader)).await;
        let message = match made {
            Ok(None) => return,
            Ok(Some(message)) => message.map_err(|error| Status::data_loss(error.to_string())),
            Err(_) => Err(Status::internal("a batch could not be put together")),
        };
        let is_last = message.is_err();
        if batches.send(message).await.is_err() || is_last {
            return;
        }
    }
}
