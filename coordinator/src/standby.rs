//! What a coordinator does while another one leads: it waits for its turn, and tells everybody who
//! comes where to go.
//!
//! Owns: the answers of a standby. Does not know: the services of a leader, of which it answers every
//! call with UNAVAILABLE, so that a client tries the next address.

use std::{io, net::TcpListener, time::Duration};

use axum::body::Body;
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    metadata::MetadataValue,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

pub use ballast_runtime::leader::LEADER_METADATA;

use crate::store::{Candidate, Cluster, Leader, Leadership, StoreError};

/// Time that the first candidate gets to become the leader.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Time that open calls get to end when the wait is over.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// Why a standby cannot wait any longer.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The socket cannot be shared with the leader that this becomes.
    #[error("cannot use the listening socket: {0}")]
    Socket(#[from] io::Error),
    /// gRPC's transport failed.
    #[error("the gRPC server of a standby failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Waits until `candidate` leads, and answers on `listener` meanwhile. Afterwards the listener is
/// free for the leader's services; who connects in between waits in its queue. `None`: `stop` came
/// first.
///
/// # Errors
/// See [`StandbyError`].
pub async fn stand_by(
    listener: &TcpListener,
    cluster: &Cluster,
    candidate: &Candidate,
    stop: &CancellationToken,
) -> Result<Option<Leadership>, StandbyError> {
    let campaign = cluster.campaign(candidate);
    tokio::pin!(campaign);
    // Where nobody else can lead, nobody is told to go away.
    if let Ok(leadership) = timeout(FIRST_WAIT, &mut campaign).await {
        return Ok(Some(leadership?));
    }
    let closing = CancellationToken::new();
    let services = serve(listener.try_clone()?, cluster.watch_leader(), closing.clone());
    let mut services = tokio::spawn(services);
    tracing::info!("standing by");
    // No branch is resumed after another has ended.
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(None),
        led = &mut campaign => led.map(Some).map_err(StandbyError::from),
        failed = &mut services => return Err(flatten(failed)),
    };
    closing.cancel();
    if timeout(CLOSE_GRACE, &mut services).await.is_err() {
        tracing::debug!("calls were still open when the wait was over");
        services.abort();
    }
    ended
}

/// The services ended before the wait: always a failure.
fn flatten(ended: Result<Result<(), StandbyError>, tokio::task::JoinError>) -> StandbyError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => io::Error::other("the services of the standby ended").into(),
    }
}

/// Serves health, NOT_SERVING, and the way to the leader, until `stop`.
///
/// # Errors
/// The socket or gRPC's transport failed.
pub async fn serve(
    listener: TcpListener,
    leader: watch::Receiver<Option<Leader>>,
    stop: CancellationToken,
) -> Result<(), StandbyError> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let health = HealthServer::new(NotServing { stop: stop.clone() });
    let elsewhere = move || {
        let answer = elsewhere(leader.borrow().as_ref());
        std::future::ready(answer.into_http::<Body>())
    };
    let routes = Routes::from(Routes::new(health).into_axum_router().fallback(elsewhere));
    Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await?;
    Ok(())
}

/// The answer to every call.
fn elsewhere(leader: Option<&Leader>) -> Status {
    let Some(Leader { candidate, term }) = leader else {
        return Status::unavailable("this coordinator stands by, and nobody leads yet; try again");
    };
    let Candidate { id, address } = candidate;
    let mut status = Status::unavailable(format!(
        "this coordinator stands by; {id} at {address} leads under {term}"
    ));
    // What is no ASCII is no address either.
    if let Ok(address) = MetadataValue::try_from(address.as_str()) {
        status.metadata_mut().insert(LEADER_METADATA, address);
    }
    status
}

/// Health of a process that serves nothing: it is alive, and not to be sent any work.
struct NotServing {
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Health for NotServing {
    type WatchStream = std::pin::Pin<
        Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>,
    >;

    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(not_serving()))
    }

    /// Ends with the wait: whoever watches asks again, and the leader answers.
    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = watch::channel(Ok(not_serving()));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(WatchStream::new(receiver))))
    }
}

fn not_serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::NotServing.into() }
}
