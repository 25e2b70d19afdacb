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

#[cfg(test)]
mod tests {
    use ballast_runtime::net::{bind, endpoint};
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response, health_client::HealthClient,
    };

    use super::*;

    #[tokio::test]
    async fn an_actor_serves_while_it_is_registered() {
        let (listener, address) = bind("127.0.0.1:0").await.expect("a free port");
        let (registered, follow) = watch::channel(false);
        let cancelled = CancellationToken::new();
        let server = tokio::spawn(serve(listener, follow, cancelled.clone()));
        let endpoint = endpoint(&address.to_string()).expect("an address");
        let mut client = HealthClient::new(endpoint.connect().await.expect("a channel"));
        let request = HealthCheckRequest { service: String::new() };
        let mut statuses = client.watch(request).await.expect("an answer").into_inner();
        let mut wait_for = async |wanted: health_check_response::ServingStatus| loop {
            let update = statuses.message().await.expect("a stream").expect("a status");
            if update.status() == wanted {
                return;
            }
        };
        registered.send_replace(true);
        wait_for(health_check_response::ServingStatus::Serving).await;
        registered.send_replace(false);
        wait_for(health_check_response::ServingStatus::NotServing).await;
        cancelled.cancel();
        server.await.expect("no panic").expect("served");
    }
}
