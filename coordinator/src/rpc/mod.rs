//! What the coordinator serves: the wire on one side, inputs of the loop on the other.

mod admin;
mod flood;
mod rollout;
mod training;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ballast_proto::{
    MESSAGE_BYTES_MAX,
    v1::{
        FILE_DESCRIPTOR_SET, StatusResponse,
        admin_server::{self, AdminServer},
        rollout_server::{self, RolloutServer},
        training_server::{self, TrainingServer},
    },
};
use ballast_runtime::net::{
    CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    inputs::{Input, Question, View},
    journal::{Intake, Reader},
};

/// Why the services ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// gRPC's transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors built into the program do not load.
    #[error("gRPC reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What every service holds: the way into the loop.
#[derive(Clone, Debug)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    questions: mpsc::Sender<Question>,
    intake: Intake,
    ids: Arc<AtomicU64>,
}

impl Handle {
    /// A handle on the loop that reads the other ends.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>, questions: mpsc::Sender<Question>) -> Self {
        Self { inputs, questions, intake: Intake::default(), ids: Arc::default() }
    }

    /// A number nobody else has: names a session, a stream or a call.
    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks the loop for something about the run.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let over = || Status::unavailable("the run is over");
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |view| {
            // Whoever asked may have left.
            drop(answer.send(question(view)));
        });
        self.questions.send(question).await.map_err(|_| over())?;
        answered.await.map_err(|_| over())
    }

    /// Waits until the loop takes the input.
    async fn send(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| Status::unavailable("the run is over"))
    }
}

/// Serves everything until `stop`, health reporting SERVING from the start.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    reader: Reader,
    status: watch::Receiver<StatusResponse>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<RolloutServer<rollout::Rollout>>().await;
    reporter.set_serving::<TrainingServer<training::Training>>().await;
    reporter.set_serving::<AdminServer<admin::Admin>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(rollout_server::SERVICE_NAME)
            .with_service_name(training_server::SERVICE_NAME)
            .with_service_name(admin_server::SERVICE_NAME)
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
    };
    let rollout = RolloutServer::new(rollout::Rollout::new(handle.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let training = TrainingServer::new(training::Training::new(handle.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(admin::Admin::new(handle, reader, status))
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // What many clients still speak, those of Python among them.
        .add_service(reflection().build_v1alpha()?)
        .add_service(rollout)
        .add_service(training)
        .add_service(admin)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await?;
    Ok(())
}
