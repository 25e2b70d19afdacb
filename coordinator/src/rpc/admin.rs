//! `Admin`: what people ask of a run.

use ballast_proto::v1::{
    self, PauseRequest, PauseResponse, ResumeRequest, ResumeResponse, ScheduleRequest,
    ScheduleResponse, SetScheduleRequest, SetScheduleResponse, StatusRequest, StatusResponse,
    StopRequest, StopResponse,
};
use tokio::sync::{oneshot, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::Handle;
use crate::{
    driver::Input,
    engine::{CallId, ChangeRefusal, Event},
};

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

    async fn schedule(
        &self,
        _request: Request<ScheduleRequest>,
    ) -> Result<Response<ScheduleResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        self.handle.send(Input::Schedule(answer)).await?;
        let schedule = answered.await.map_err(|_| Status::unavailable("the run is over"))?;
        Ok(Response::new(schedule))
    }

    async fn set_schedule(
        &self,
        request: Request<SetScheduleRequest>,
    ) -> Result<Response<SetScheduleResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let call = CallId(self.handle.id());
        let event = Event::ScheduleChangeRequested { call, request: request.into_inner() };
        self.handle.send(Input::Change(call, event, answer)).await?;
        let changed = answered.await.map_err(|_| Status::unavailable("the run is over"))?;
        changed.map(Response::new).map_err(|refusal| match refusal {
            ChangeRefusal::Invalid(text) => Status::invalid_argument(text),
            ChangeRefusal::Untimely(text) => Status::failed_precondition(text),
        })
    }
}
