//! The coordinator's status as a value that is always the newest.

use std::time::Duration;

use ballast_proto::v1::{StatusRequest, StatusResponse};
use ballast_runtime::backoff::Backoff;
use tokio::sync::watch;
use tonic::Response;

use crate::admin;

const RETRY_INITIAL: Duration = Duration::from_millis(100);
/// Short: the coordinator is on this machine, and somebody watches.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Follows the status at `address` for as long as the receiver lives, reconnecting quietly: the
/// coordinator's own end is noticed by its exit, not here. The value is empty at first.
pub(super) fn follow(address: &str) -> watch::Receiver<StatusResponse> {
    let (newest, receiver) = watch::channel(StatusResponse::default());
    let address = address.to_owned();
    tokio::spawn(async move {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, 0);
        while !newest.is_closed() {
            if forward(&address, &newest).await {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    });
    receiver
}

/// One look at the status of whoever listens at `address`; `None` if nobody answers.
pub(super) async fn look(address: &str) -> Option<StatusResponse> {
    let mut client = admin::connect(address).await.ok()?;
    client.status(StatusRequest {}).await.ok().map(Response::into_inner)
}

/// Passes one stream on until it ends; whether there was any status.
async fn forward(address: &str, newest: &watch::Sender<StatusResponse>) -> bool {
    let Ok(mut client) = admin::connect(address).await else { return false };
    let Ok(response) = client.watch_status(StatusRequest {}).await else { return false };
    let mut stream = response.into_inner();
    let mut any = false;
    while let Ok(Some(status)) = stream.message().await {
        any = true;
        if newest.send(status).is_err() {
            break;
        }
    }
    any
}
