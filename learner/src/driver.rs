//! The learner's loop: take a batch, carry it out on a thread of its own, report it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ballast_proto::v1::{StepKind, TrainBatch};
use ballast_runtime::{backoff::Backoff, net::connect_with_retry};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::{
    rpc::{Coordinator, LearnerIdentity},
    worker::{self, Completed, Worker},
};

/// How long a refusal (another learner holds the stream) is retried before it counts as final: a
/// learner that was killed and restarted may come back before its old stream is seen to be dead.
const REFUSED_MAX: Duration = Duration::from_secs(45);
/// Pauses between two attempts to save a checkpoint while the disk refuses.
const SAVE_RETRY_INITIAL: Duration = Duration::from_millis(500);
const SAVE_RETRY_MAX: Duration = Duration::from_secs(10);

/// Why the learner ended before the run did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A batch could not be carried out.
    #[error(transparent)]
    Worker(#[from] worker::Error),
    /// The coordinator will not have this learner.
    #[error("the coordinator at {address} refuses this learner: {reason}")]
    Refused {
        /// Its address.
        address: String,
        /// What it says.
        reason: String,
    },
    /// The address is none.
    #[error(transparent)]
    Connect(#[from] ballast_runtime::net::ConnectError),
    /// The training thread died.
    #[error("the training thread panicked; its last words are in the log")]
    Thread,
}

/// How one stream of batches ended.
enum Ended {
    /// The run is over.
    Finished,
    /// A signal asked this process to stop.
    Stopped,
    /// The connection broke or was refused.
    Broken(Status),
}

/// The learner as the coordinator sees it.
#[derive(Debug)]
pub struct Driver {
    address: String,
    identity: LearnerIdentity,
    /// In its place except while a batch is being carried out.
    worker: Option<Worker>,
    /// Carried out, but the coordinator has not confirmed that it knows.
    unreported: Option<Completed>,
    shutdown: CancellationToken,
}

impl Driver {
    /// A driver for a worker whose `Weights` service is already listening.
    #[must_use]
    pub fn new(
        address: String,
        identity: LearnerIdentity,
        worker: Worker,
        shutdown: CancellationToken,
    ) -> Self {
        Self { address, identity, worker: Some(worker), unreported: None, shutdown }
    }

    /// Trains until the coordinator says the run is over or a signal asks to stop; in the second
    /// case the weights are saved first.
    ///
    /// # Errors
    /// What cannot be mended by connecting again.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3), 0);
        let mut refused_since: Option<Instant> = None;
        loop {
            let channel =
                match connect_with_retry(&self.address, "the coordinator", &self.shutdown).await {
                    Ok(channel) => channel,
                    Err(_) if self.shutdown.is_cancelled() => return self.stop(),
                    Err(error) => return Err(error.into()),
                };
            let mut coordinator = Coordinator::new(channel, self.identity.clone());
            let status = match self.follow(&mut coordinator, &mut refused_since).await? {
                Ended::Finished => return Ok(()),
                Ended::Stopped => return self.stop(),
                Ended::Broken(status) => status,
            };
            if status.code() == Code::FailedPrecondition {
                self.on_refusal(&mut refused_since, &status)?;
            } else {
                tracing::warn!("lost the coordinator ({}); connecting again", status.message());
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return self.stop(),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Waits in silence after the first refusal, until it has lasted too long.
    fn on_refusal(&self, since: &mut Option<Instant>, status: &Status) -> Result<(), Error> {
        let reason = status.message();
        let Some(since) = since else {
            *since = Some(Instant::now());
            let seconds = REFUSED_MAX.as_secs();
            tracing::warn!("refused ({reason}); trying again for {seconds} s");
            return Ok(());
        };
        if since.elapsed() <= REFUSED_MAX {
            return Ok(());
        }
        Err(Error::Refused { address: self.address.clone(), reason: reason.to_owned() })
    }

    /// Follows one stream of batches to its end.
    async fn follow(
        &mut self,
        coordinator: &mut Coordinator,
        refused_since: &mut Option<Instant>,
    ) -> Result<Ended, Error> {
        let mut batches = match self.open(coordinator).await {
            Ok(batches) => batches,
            Err(status) => return Ok(Ended::Broken(status)),
        };
        *refused_since = None;
        loop {
            // Cancel-safe: a message that is not taken stays in the stream.
            let batch = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(Ended::Stopped),
                message = batches.message() => match message {
                    Ok(Some(batch)) => batch,
                    Ok(None) => return Ok(Ended::Broken(Status::unavailable("the stream ended"))),
                    Err(status) => return Ok(Ended::Broken(status)),
                },
            };
            let finish = batch.kind() == StepKind::Finish;
            let Some(completed) = self.perform(batch).await? else { return Ok(Ended::Stopped) };
            self.unreported = Some(completed);
            if let Err(status) = self.report(coordinator).await {
                if finish {
                    return Ok(Ended::Finished);
                }
                return Ok(Ended::Broken(status));
            }
            if finish {
                return Ok(Ended::Finished);
            }
        }
    }

    async fn open(
        &mut self,
        coordinator: &mut Coordinator,
    ) -> Result<Streaming<TrainBatch>, Status> {
        let worker = self.worker.as_ref().ok_or_else(|| Status::internal("the worker is gone"))?;
        let (step, hash) = (worker.last_step(), worker.manifest_hash());
        let batches = coordinator.next_batches(step, hash).await?;
        // The step of an unreported batch is in the weights, so opening the stream has told it.
        self.unreported = None;
        Ok(batches)
    }

    /// Carries out a batch. A checkpoint that the disk refuses is tried again for as long as it
    /// takes, since the weights are safe in memory; `None` when a signal ends that.
    async fn perform(&mut self, batch: TrainBatch) -> Result<Option<Completed>, Error> {
        let mut backoff = Backoff::new(SAVE_RETRY_INITIAL, SAVE_RETRY_MAX, 0);
        let batch = Arc::new(batch);
        loop {
            let refused = match self.attempt(Arc::clone(&batch)).await? {
                Err(worker::Error::Checkpoint(refused)) => refused,
                result => return Ok(Some(result?)),
            };
            tracing::warn!(
                "the checkpoint of step {} cannot be saved ({refused}); free disk space, the run \
                 goes on by itself",
                batch.step
            );
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(None),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn attempt(
        &mut self,
        batch: Arc<TrainBatch>,
    ) -> Result<Result<Completed, worker::Error>, Error> {
        let Some(mut worker) = self.worker.take() else {
            unreachable!("the worker is put back below after every batch");
        };
        let performed = tokio::task::spawn_blocking(move || {
            let result = worker.perform(&batch);
            (worker, result)
        });
        let (worker, result) = performed.await.map_err(|_| Error::Thread)?;
        self.worker = Some(worker);
        Ok(result)
    }

    async fn report(&mut self, coordinator: &mut Coordinator) -> Result<(), Status> {
        if let Some(completed) = &self.unreported {
            coordinator.complete(completed).await?;
        }
        self.unreported = None;
        Ok(())
    }

    fn stop(self) -> Result<(), Error> {
        if let Some(mut worker) = self.worker
            && !worker.is_saved()
        {
            let checkpoint = worker.save()?;
            tracing::info!("stopped; saved {}", checkpoint.directory.display());
        }
        Ok(())
    }
}
