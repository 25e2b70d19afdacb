//! A standby as its clients see it, and the moment in which it becomes the leader.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use ballast_coordinator::{
    standby::{LEADER_METADATA, stand_by},
    store::{Candidate, Cluster, Embedded, Leadership, Term},
};
use ballast_proto::v1::{
    ActorMessage, StatusRequest, admin_client::AdminClient, rollout_client::RolloutClient,
};
use ballast_runtime::net;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3);

struct Standby {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<Option<Leadership>>,
}

impl Standby {
    async fn start(cluster: &Cluster) -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ended = tokio::spawn({
            let (cluster, listener, stop) = (cluster.clone(), Arc::clone(&listener), stop.clone());
            async move {
                let candidate = Candidate { id: "second".into(), address: address.to_string() };
                stand_by(&listener, &cluster, &candidate, &stop).await.unwrap()
            }
        });
        Self { listener, address, stop, ended }
    }

    fn channel(&self) -> Channel {
        net::endpoint(&self.address.to_string()).unwrap().connect_lazy()
    }
}

fn cluster() -> Cluster {
    Cluster::over(Arc::new(Embedded::new(Term(0))), "run", TTL).unwrap()
}

fn first() -> Candidate {
    Candidate { id: "first".into(), address: "first.example:7711".into() }
}

fn assert_elsewhere(status: &Status, term: Term) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let named = status.metadata().get(LEADER_METADATA).unwrap();
    assert_eq!(named.to_str().unwrap(), first().address);
    let message = status.message();
    assert!(message.contains(&first().address) && message.contains(&term.to_string()), "{message}");
}

async fn bounded(test: impl Future<Output = ()>) {
    timeout(PATIENCE, test).await.expect("the test does not end");
}

#[tokio::test]
async fn every_call_is_answered_with_where_the_leader_is() {
    bounded(async {
        let cluster = cluster();
        let leadership = cluster.campaign(&first()).await.unwrap();
        let standby = Standby::start(&cluster).await;
        let channel = standby.channel();
        let refused = AdminClient::new(channel.clone()).status(StatusRequest {}).await;
        assert_elsewhere(&refused.unwrap_err(), leadership.term());
        // A stream, and one that its client has not begun to send.
        let messages = tokio_stream::pending::<ActorMessage>();
        let refused = RolloutClient::new(channel.clone()).session(messages).await;
        assert_elsewhere(&refused.unwrap_err(), leadership.term());
        let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(health.into_inner().status(), ServingStatus::NotServing);
    })
    .await;
}

#[tokio::test]
async fn it_leads_when_its_turn_comes_and_leaves_the_socket_to_the_leader() {
    bounded(async {
        let cluster = cluster();
        let leadership = cluster.campaign(&first()).await.unwrap();
        let standby = Standby::start(&cluster).await;
        let mut health = HealthClient::new(standby.channel());
        let watched = health.watch(HealthCheckRequest::default()).await.unwrap();
        let mut watched = watched.into_inner();
        let status = watched.message().await.unwrap().unwrap();
        assert_eq!(status.status(), ServingStatus::NotServing);
        let term = leadership.term();
        leadership.resign().await;
        let second = standby.ended.await.unwrap().unwrap();
        assert!(second.is_held() && second.term() > term);
        assert!(watched.message().await.unwrap().is_none(), "whoever watches is to ask again");
        // The same client finds the leader's services behind the same address.
        let listener = standby.listener.try_clone().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (_reporter, service) = tonic_health::server::health_reporter();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        let health = loop {
            match health.check(HealthCheckRequest::default()).await {
                Ok(health) => break health.into_inner(),
                // The connection to the standby is being closed.
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
        };
        assert_eq!(health.status(), ServingStatus::Serving);
    })
    .await;
}

#[tokio::test]
async fn it_stops_when_it_is_told_to() {
    bounded(async {
        let cluster = cluster();
        let leadership = cluster.campaign(&first()).await.unwrap();
        let standby = Standby::start(&cluster).await;
        let mut admin = AdminClient::new(standby.channel());
        admin.status(StatusRequest {}).await.unwrap_err();
        standby.stop.cancel();
        assert!(standby.ended.await.unwrap().is_none());
        // Its attempt is given up too: the next in line is somebody else.
        leadership.resign().await;
        assert!(cluster.campaign(&first()).await.unwrap().is_held());
    })
    .await;
}
