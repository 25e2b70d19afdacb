//! The learner's loop: take a batch, carry it out on a thread of its own, report it.
//!
//! Owns: what the coordinator was told. Does not know: what a batch does.
//! Invariant: a finished batch is reported until the coordinator confirms it, or serves what follows
//! it; the weights outlive every connection, so no step is done twice and none is left out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ballast_proto::v1::{StepKind, TrainBatch};
use ballast_runtime::{backoff::Backoff, leader::Search};
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
    coordinator: Search,
    identity: LearnerIdentity,
    /// In its place except while a batch is being carried out.
    worker: Option<Worker>,
    /// Carried out, but the coordinator has not confirmed that it knows.
    unreported: Option<Completed>,
    /// First of the refusals at hand.
    refused_since: Option<Instant>,
    shutdown: CancellationToken,
}

impl Driver {
    /// A driver for a worker whose `Weights` service is already listening.
    #[must_use]
    pub fn new(
        coordinator: Search,
        identity: LearnerIdentity,
        worker: Worker,
        shutdown: CancellationToken,
    ) -> Self {
        let worker = Some(worker);
        Self { coordinator, identity, worker, unreported: None, refused_since: None, shutdown }
    }

    /// Trains until the coordinator says the run is over or a signal asks to stop; in the second
    /// case the weights are saved first.
    ///
    /// # Errors
    /// What cannot be mended by connecting again.
    pub async fn run(mut self) -> Result<(), Error> {
        loop {
            // Cancel-safe: nothing was said over a connection that is dropped.
            let channel = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return self.stop(),
                channel = self.coordinator.connect() => channel,
            };
            let client = Coordinator::new(channel, self.identity.clone());
            match self.follow(client).await? {
                Ended::Finished => return Ok(()),
                Ended::Stopped => return self.stop(),
                Ended::Broken(status) => {
                    self.coordinator.failed(&status);
                    self.check_refusal(&status)?;
                }
            }
        }
    }

    /// A refusal counts once it has lasted too long.
    fn check_refusal(&mut self, status: &Status) -> Result<(), Error> {
        if status.code() != Code::FailedPrecondition {
            return Ok(());
        }
        let Some(since) = self.refused_since else {
            self.refused_since = Some(Instant::now());
            let (reason, seconds) = (status.message(), REFUSED_MAX.as_secs());
            tracing::warn!("refused ({reason}); trying again for {seconds} s");
            return Ok(());
        };
        if since.elapsed() <= REFUSED_MAX {
            return Ok(());
        }
        let (address, reason) = (self.coordinator.address().into(), status.message().into());
        Err(Error::Refused { address, reason })
    }

    /// Follows one stream of batches to its end.
    async fn follow(&mut self, mut client: Coordinator) -> Result<Ended, Error> {
        let shutdown = self.shutdown.clone();
        // Cancel-safe: what is not confirmed stays unreported.
        let opened = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(Ended::Stopped),
            opened = self.open(&mut client) => opened,
        };
        let mut batches = match opened {
            Ok(batches) => batches,
            Err(status) => return Ok(Ended::Broken(status)),
        };
        self.coordinator.welcomed();
        self.refused_since = None;
        loop {
            // Cancel-safe: a message that is not taken stays in the stream.
            let batch = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Stopped),
                message = batches.message() => match message {
                    Ok(Some(batch)) => batch,
                    Ok(None) => return Ok(Ended::Broken(Status::unavailable("the stream ended"))),
                    Err(status) => return Ok(Ended::Broken(status)),
                },
            };
            let finish = batch.kind() == StepKind::Finish;
            let Some(completed) = self.perform(batch).await? else { return Ok(Ended::Stopped) };
            self.unreported = Some(completed);
            // Cancel-safe, as above.
            let reported = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Stopped),
                reported = self.report(&mut client) => reported,
            };
            match reported {
                // The run is over, whether the coordinator still listens or not.
                _ if finish => return Ok(Ended::Finished),
                Ok(()) => {}
                Err(status) => return Ok(Ended::Broken(status)),
            }
        }
    }

    /// Opens the stream of the batches after those in the weights. An answer that the last stream
    /// may have lost is given again before: it says more about its batch than `last_step` does.
    async fn open(&mut self, client: &mut Coordinator) -> Result<Streaming<TrainBatch>, Status> {
        match self.report(client).await {
            Err(status) if is_refusal(&status) => {
                tracing::debug!("the last answer is not taken: {}", status.message());
            }
            reported => reported?,
        }
        let worker = self.worker.as_ref().ok_or_else(|| Status::internal("the worker is gone"))?;
        let (step, hash) = (worker.last_step(), worker.manifest_hash());
        let batches = client.next_batches(step, hash, worker.run_id()).await?;
        // The step of an unreported batch is in the weights, so opening the stream has told it. A
        // checkpoint that is not known yet is asked for again.
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

    async fn report(&mut self, client: &mut Coordinator) -> Result<(), Status> {
        if let Some(completed) = &self.unreported {
            client.complete(completed).await?;
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

/// Whether the coordinator understood and said no. Anything else may be the connection's fault.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument)
}
