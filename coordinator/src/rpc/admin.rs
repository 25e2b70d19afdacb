//! `Admin`: what people ask of a run.

use ballast_proto::v1::{
    self, PauseRequest, PauseResponse, ResumeRequest, ResumeResponse, StatusRequest,
    StatusResponse, StopRequest, StopResponse,
};
use tokio::sync::{oneshot, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::Handle;
use crate::{driver::Input, engine::Event};

#[derive(Debug)]
pub(super) struct Admin {
    handle: Handle,
    status: watch::Receiver<StatusResponse>,
}

impl Admin {
    pub(super) fn new(handle: Handle, status: watch::Receiver<StatusResponse>) -> Self {
        Self { handle, status }
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Admin {
    type WatchStatusStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<StatusResponse, Status>> + Send>>;

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        self.handle.send(Input::Status(answer)).await?;
        let status = answered.await.map_err(|_| Status::unavailable("the run is over"))?;
        Ok(Response::new(status))
    }

    async fn watch_status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let watched = WatchStream::new(self.status.clone()).map(Ok);
        Ok(Response::new(Box::pin(watched)))
    }

    async fn pause(
        &self,
        _request: Request<PauseRequest>,
    ) -> Result<Response<PauseResponse>, Status> {
        self.handle.send(Input::Event(Event::PauseRequested)).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(
        &self,
        _request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeResponse>, Status> {
        self.handle.send(Input::Event(Event::ResumeRequested)).await?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn stop(&self, _request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.handle.send(Input::Event(Event::StopRequested)).await?;
        Ok(Response::new(StopResponse {}))
    }
}
