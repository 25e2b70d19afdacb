//! `Admin`: what people ask of a run. Questions are answered from the state at hand; changes become
//! events, and are answered once they are in the journal.

use std::pin::Pin;

use ballast_proto::{
    EpisodeId,
    v1::{
        self, AdminChange, AuditRequest, AuditResponse, CheckpointEntry, CheckpointRequest,
        CheckpointResponse, DrainActorRequest, DrainActorResponse, EvaluateRequest,
        EvaluateResponse, LengthsRequest, LengthsResponse, ListCheckpointsRequest,
        ListCheckpointsResponse, ListQuarantinedRequest, ListQuarantinedResponse,
        ListTrajectoriesRequest, ListTrajectoriesResponse, PauseRequest, PauseResponse,
        ResumeRequest, ResumeResponse, ScheduleRequest, ScheduleResponse, SetRequest, SetResponse,
        SetScheduleRequest, SetScheduleResponse, SettingsRequest, SettingsResponse,
        ShowTrajectoryRequest, ShowTrajectoryResponse, StatusRequest, StatusResponse, StopRequest,
        StopResponse, admin_change::Change,
    },
};
use tokio::sync::{oneshot, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::Handle;
use crate::{
    engine::{CallId, ChangeAnswer, ChangeRefusal, Event},
    inputs::Input,
    journal::Reader,
    lookup,
};

/// Trajectories in one list.
const LIST_MAX: u32 = 1000;
const LIST_DEFAULT: u32 = 50;
/// Bytes of a reason or a name that are kept.
const TEXT_CHARS_MAX: usize = 1024;
/// Request header in which a client says who uses it. Taken on trust until callers are
/// authenticated.
const USER_HEADER: &str = "ballast-user";

#[derive(Debug)]
pub(super) struct Admin {
    handle: Handle,
    reader: Reader,
    status: watch::Receiver<StatusResponse>,
}

impl Admin {
    pub(super) fn new(
        handle: Handle,
        reader: Reader,
        status: watch::Receiver<StatusResponse>,
    ) -> Self {
        Self { handle, reader, status }
    }

    /// Makes a change and waits until it is durable.
    async fn change(
        &self,
        who: String,
        reason: String,
        change: Change,
    ) -> Result<ChangeAnswer, Status> {
        let (answer, answered) = oneshot::channel();
        let call = CallId(self.handle.id());
        let change = AdminChange { reason: shorten(&reason), change: Some(change) };
        let event = Event::AdminRequested { call, who, change };
        self.handle.send(Input::Change(call, event, answer)).await?;
        let changed = answered.await.map_err(|_| Status::unavailable("the run is over"))?;
        changed.map_err(|refusal| match refusal {
            ChangeRefusal::Invalid(text) => Status::invalid_argument(text),
            ChangeRefusal::Untimely(text) => Status::failed_precondition(text),
            ChangeRefusal::Unknown(text) => Status::not_found(text),
        })
    }
}

/// Who calls: the name the client gives, and where it is.
fn who<T>(request: &Request<T>) -> String {
    let name = request.metadata().get(USER_HEADER).and_then(|name| name.to_str().ok());
    let address = request.remote_addr().map(|address| address.ip().to_string());
    let name = shorten(name.unwrap_or("somebody"));
    address.map_or_else(|| name.clone(), |address| format!("{name} at {address}"))
}

fn shorten(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Admin {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<StatusResponse, Status>> + Send>>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.handle.ask(|view| view.status()).await.map(Response::new)
    }

    async fn watch_status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let watched = WatchStream::new(self.status.clone()).map(Ok);
        Ok(Response::new(Box::pin(watched)))
    }

    async fn pause(
        &self,
        request: Request<PauseRequest>,
    ) -> Result<Response<PauseResponse>, Status> {
        let (who, change) = (who(&request), Change::Pause(request.into_inner()));
        self.change(who, String::new(), change).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeResponse>, Status> {
        let (who, change) = (who(&request), Change::Resume(request.into_inner()));
        self.change(who, String::new(), change).await?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let (who, change) = (who(&request), Change::Stop(request.into_inner()));
        self.change(who, String::new(), change).await?;
        Ok(Response::new(StopResponse {}))
    }

    async fn schedule(
        &self,
        _: Request<ScheduleRequest>,
    ) -> Result<Response<ScheduleResponse>, Status> {
        self.handle.ask(|view| view.engine.schedule()).await.map(Response::new)
    }

    async fn set_schedule(
        &self,
        request: Request<SetScheduleRequest>,
    ) -> Result<Response<SetScheduleResponse>, Status> {
        let who = who(&request);
        let SetScheduleRequest { changes, reason, revision } = request.into_inner();
        let full = |change: String| match change.trim_start() {
            key if key.starts_with("schedule.") => key.to_owned(),
            key => format!("schedule.{key}"),
        };
        let changes = changes.into_iter().map(full).collect();
        let set = SetRequest { changes, reason: reason.clone(), revision };
        let (revision, step) = set_answer(self.change(who, reason, Change::Set(set)).await?)?;
        Ok(Response::new(SetScheduleResponse { revision, step }))
    }

    async fn settings(
        &self,
        _: Request<SettingsRequest>,
    ) -> Result<Response<SettingsResponse>, Status> {
        self.handle.ask(|view| view.engine.settings()).await.map(Response::new)
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let (who, set) = (who(&request), request.into_inner());
        let answer = self.change(who, set.reason.clone(), Change::Set(set)).await?;
        let (revision, step) = set_answer(answer)?;
        Ok(Response::new(SetResponse { revision, step }))
    }

    async fn drain_actor(
        &self,
        request: Request<DrainActorRequest>,
    ) -> Result<Response<DrainActorResponse>, Status> {
        let (who, drain) = (who(&request), request.into_inner());
        self.change(who, drain.reason.clone(), Change::DrainActor(drain)).await?;
        Ok(Response::new(DrainActorResponse {}))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        let (who, wanted) = (who(&request), request.into_inner());
        match self.change(who, wanted.reason.clone(), Change::Checkpoint(wanted)).await? {
            ChangeAnswer::Checkpoint { step } => Ok(Response::new(CheckpointResponse { step })),
            _ => Err(Status::internal("a checkpoint was answered as something else")),
        }
    }

    async fn list_checkpoints(
        &self,
        _: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let checkpoints = self.handle.ask(|view| view.engine.checkpoints().to_vec()).await?;
        let checkpoints = checkpoints
            .into_iter()
            .map(|one| CheckpointEntry { step: one.step, path: one.path })
            .collect();
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let (who, wanted) = (who(&request), request.into_inner());
        self.change(who, wanted.reason.clone(), Change::Evaluate(wanted)).await?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn list_trajectories(
        &self,
        request: Request<ListTrajectoriesRequest>,
    ) -> Result<Response<ListTrajectoriesResponse>, Status> {
        let request = request.into_inner();
        let (mode, success) = (request.mode(), request.success);
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        let list = move |engine: &crate::engine::Engine| {
            engine.trajectories(mode, success, limit as usize)
        };
        let trajectories = self.handle.ask(move |view| list(view.engine)).await?;
        Ok(Response::new(ListTrajectoriesResponse { trajectories }))
    }

    async fn show_trajectory(
        &self,
        request: Request<ShowTrajectoryRequest>,
    ) -> Result<Response<ShowTrajectoryResponse>, Status> {
        let episode = EpisodeId(request.into_inner().episode_id);
        let known = self.handle.ask(move |view| view.payloads.source(episode)).await?;
        let reader = self.reader.clone();
        let found =
            tokio::task::spawn_blocking(move || lookup::trajectory(&reader, episode, known))
                .await
                .map_err(|_| Status::internal("the journal could not be searched"))?
                .map_err(|error| Status::data_loss(error.to_string()))?;
        let missing = || Status::not_found(format!("the journal has no trajectory of {episode}"));
        Ok(Response::new(ShowTrajectoryResponse { trajectory: Some(found.ok_or_else(missing)?) }))
    }

    async fn list_quarantined(
        &self,
        _: Request<ListQuarantinedRequest>,
    ) -> Result<Response<ListQuarantinedResponse>, Status> {
        self.handle.ask(|view| view.engine.quarantined()).await.map(Response::new)
    }

    async fn audit(&self, _: Request<AuditRequest>) -> Result<Response<AuditResponse>, Status> {
        let entries = self.handle.ask(|view| view.engine.audit_entries()).await?;
        Ok(Response::new(AuditResponse { entries }))
    }

    async fn lengths(
        &self,
        _: Request<LengthsRequest>,
    ) -> Result<Response<LengthsResponse>, Status> {
        self.handle.ask(|view| view.engine.lengths()).await.map(Response::new)
    }
}

fn set_answer(answer: ChangeAnswer) -> Result<(u64, u64), Status> {
    match answer {
        ChangeAnswer::Set { revision, step } => Ok((revision, step)),
        _ => Err(Status::internal("a change of settings was answered as something else")),
    }
}
