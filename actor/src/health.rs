//! `grpc.health.v1` for probes: an actor serves while the coordinator has welcomed it.

use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Error, Server};
use tonic_health::ServingStatus;

/// Answers health checks on `listener` until `cancelled`.
///
/// # Errors
/// The server failed.
pub async fn serve(
    listener: TcpListener,
    mut registered: watch::Receiver<bool>,
    cancelled: CancellationToken,
) -> Result<(), Error> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let follow = async {
        loop {
            let status = if *registered.borrow_and_update() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            if registered.changed().await.is_err() {
                return cancelled.cancelled().await;
            }
        }
    };
    let server = Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        biased;
        () = cancelled.cancelled() => Ok(()),
        () = follow => Ok(()),
        served = server => served,
    }
}
