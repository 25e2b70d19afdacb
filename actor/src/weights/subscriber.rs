//! Follows the published policies of one source after another.

use std::{sync::Arc, time::Duration};

use ballast_proto::{
    MESSAGE_BYTES_MAX, ManifestHash,
    v1::{WatchWeightsRequest, weights_client::WeightsClient},
};
use ballast_runtime::{backoff::Backoff, leader::Search};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    StagedPolicy,
    download::{Download, WeightsError},
};
use crate::counters::Counters;

const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What is kept between two connections.
#[derive(Default)]
struct Progress {
    download: Option<Download>,
    staged: Option<ManifestHash>,
}

/// Stages every policy that the source of the moment publishes, the newest first, until `cancelled`.
/// It follows the source: a learner that went back to a checkpoint publishes lower versions again,
/// and they are staged like any other.
///
/// A version that cannot be fetched or verified is reported and tried again; whatever was staged
/// before stays.
pub async fn subscribe(
    mut source: watch::Receiver<Option<String>>,
    stage: impl Fn(StagedPolicy),
    counters: Arc<Counters>,
    cancelled: CancellationToken,
) {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, u64::from(std::process::id()));
    let mut progress = Progress::default();
    loop {
        let address = source.borrow_and_update().clone();
        let attempt = async {
            let Some(address) = address else { return std::future::pending().await };
            let staged = progress.staged;
            let error = follow(&address, &mut progress, &stage).await;
            if progress.staged != staged {
                backoff.reset();
            }
            report(&address, &error, &counters);
            sleep(backoff.next_delay()).await;
        };
        // Every arm is cancel-safe: `progress` resumes an interrupted download.
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            changed = source.changed() => if changed.is_err() { return },
            () = attempt => {}
        }
    }
}

/// Stages what `address` publishes until something fails.
async fn follow(
    address: &str,
    progress: &mut Progress,
    stage: &impl Fn(StagedPolicy),
) -> WeightsError {
    let followed = async {
        let channel = Search::new(address, "the weights")?.connect().await;
        let mut client = WeightsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut manifests = client.watch(WatchWeightsRequest {}).await?.into_inner();
        loop {
            let manifest = manifests.message().await?.ok_or(WeightsError::Closed)?;
            let download = Download::begin(manifest, progress.download.take())?;
            if progress.staged == Some(download.hash()) {
                progress.download = Some(download);
                continue;
            }
            let staged = progress.download.insert(download).complete(&mut client).await?;
            tracing::debug!("staged {} ({})", staged.policy_version, staged.manifest_hash);
            progress.staged = Some(staged.manifest_hash);
            stage(staged);
        }
    };
    let outcome: Result<std::convert::Infallible, WeightsError> = followed.await;
    match outcome {
        Err(error) => error,
    }
}

fn report(address: &str, error: &WeightsError, counters: &Counters) {
    match error {
        // A newer version is out: the next attempt gets it.
        WeightsError::Retired(version) => tracing::debug!("{version} was retired by {address}"),
        WeightsError::Source(_) | WeightsError::Closed | WeightsError::Connect(_) => {
            tracing::warn!("weights from {address}: {error}; connecting again");
        }
        _ => {
            counters.add_weights_refused();
            tracing::error!("weights from {address} refused: {error}");
        }
    }
}
