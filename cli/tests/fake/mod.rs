//! An admin service that answers with samples and remembers who asked what.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use ballast_proto::v1::{
    ActorStatus, AuditEntry, AuditRequest, AuditResponse, CallStatus, CheckpointEntry,
    CheckpointRequest, CheckpointResponse, DrainActorRequest, DrainActorResponse, DroppedLengths,
    EvaluateRequest, EvaluateResponse, LengthDistribution, LengthsRequest, LengthsResponse,
    ListCheckpointsRequest, ListCheckpointsResponse, ListQuarantinedRequest,
    ListQuarantinedResponse, ListTrajectoriesRequest, ListTrajectoriesResponse, Mode, PauseRequest,
    PauseResponse, QuarantinedTrajectory, ResumeRequest, ResumeResponse, Role, RunState,
    SampledVersion, ScheduleDecision, ScheduleRequest, ScheduleResponse, SetRequest, SetResponse,
    SetScheduleRequest, SetScheduleResponse, SettingsRequest, SettingsResponse,
    ShowTrajectoryRequest, ShowTrajectoryResponse, Span, StatusRequest, StatusResponse, StopReason,
    StopRequest, StopResponse, StructuralState, TaskRef, ToolCall, Trajectory, TrajectoryEntry,
    admin_server::{Admin, AdminServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// One call that came in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// Header `ballast-user`.
    pub(crate) user: Option<String>,
    /// The request as `Debug` writes it.
    pub(crate) request: String,
}

/// The service.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    calls: Arc<Mutex<Vec<Call>>>,
    watched: Arc<AtomicUsize>,
    refusal: Option<Status>,
}

impl Fake {
    /// It refuses every call.
    pub(crate) fn refusing(refusal: Status) -> Self {
        Self { refusal: Some(refusal), ..Self::default() }
    }

    /// A standby that names a leader.
    pub(crate) fn standby(leader: &str) -> Self {
        let mut refusal = Status::unavailable("this coordinator is a standby");
        refusal.metadata_mut().insert("ballast-leader", leader.parse().expect("ASCII"));
        Self::refusing(refusal)
    }

    /// Serves on a free port, whose address is returned.
    pub(crate) async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let incoming = TcpListenerStream::new(listener);
        let server =
            tonic::transport::Server::builder().add_service(AdminServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic while locked").clone()
    }

    /// The only call there was.
    pub(crate) fn call(&self) -> Call {
        let [call] = self.calls().try_into().expect("one call");
        call
    }

    fn answer<Q: Debug, A>(
        &self,
        name: &'static str,
        request: Request<Q>,
        answer: A,
    ) -> Result<Response<A>, Status> {
        let user = request.metadata().get("ballast-user");
        let user = user.map(|user| user.to_str().expect("ASCII").to_owned());
        let request = format!("{:?}", request.into_inner());
        self.calls.lock().expect("no panic while locked").push(Call { name, user, request });
        self.refusal.clone().map_or(Ok(Response::new(answer)), Err)
    }
}

#[tonic::async_trait]
impl Admin for Fake {
    type WatchStatusStream = tokio_stream::Iter<std::vec::IntoIter<Result<StatusResponse, Status>>>;

    async fn status(&self, q: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.answer("status", q, status(RunState::Running, 7))
    }

    /// The first stream ends as when the coordinator dies, the second with the run.
    async fn watch_status(
        &self,
        q: Request<StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let running = |step| Ok(status(RunState::Running, step));
        let statuses = match self.watched.fetch_add(1, Ordering::Relaxed) {
            0 => vec![running(1), running(2), Err(Status::unknown("killed"))],
            _ => vec![running(3), Ok(status(RunState::Finished, 4))],
        };
        self.answer("watch_status", q, tokio_stream::iter(statuses))
    }

    async fn pause(&self, q: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.answer("pause", q, PauseResponse {})
    }

    async fn resume(&self, q: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.answer("resume", q, ResumeResponse {})
    }

    async fn stop(&self, q: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.answer("stop", q, StopResponse {})
    }

    async fn schedule(
        &self,
        q: Request<ScheduleRequest>,
    ) -> Result<Response<ScheduleResponse>, Status> {
        self.answer("schedule", q, schedule())
    }

    async fn set_schedule(
        &self,
        q: Request<SetScheduleRequest>,
    ) -> Result<Response<SetScheduleResponse>, Status> {
        self.answer("set_schedule", q, SetScheduleResponse { revision: 3, step: 11 })
    }

    async fn settings(
        &self,
        q: Request<SettingsRequest>,
    ) -> Result<Response<SettingsResponse>, Status> {
        let settings = "[rl]\nlearning_rate = 1e-5\n".into();
        self.answer("settings", q, SettingsResponse { settings, revision: 2 })
    }

    async fn set(&self, q: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        self.answer("set", q, SetResponse { revision: 3, step: 11 })
    }

    async fn drain_actor(
        &self,
        q: Request<DrainActorRequest>,
    ) -> Result<Response<DrainActorResponse>, Status> {
        self.answer("drain_actor", q, DrainActorResponse {})
    }

    async fn checkpoint(
        &self,
        q: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        self.answer("checkpoint", q, CheckpointResponse { step: 12 })
    }

    async fn list_checkpoints(
        &self,
        q: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let entry =
            |step| CheckpointEntry { step, path: format!("runs/demo/checkpoints/step-{step}") };
        let checkpoints = vec![entry(5), entry(10)];
        self.answer("list_checkpoints", q, ListCheckpointsResponse { checkpoints })
    }

    async fn evaluate(
        &self,
        q: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        self.answer("evaluate", q, EvaluateResponse {})
    }

    async fn list_trajectories(
        &self,
        q: Request<ListTrajectoriesRequest>,
    ) -> Result<Response<ListTrajectoriesResponse>, Status> {
        let trajectories =
            vec![entry(512), TrajectoryEntry { episode_id: 9, ..Default::default() }];
        self.answer("list_trajectories", q, ListTrajectoriesResponse { trajectories })
    }

    async fn show_trajectory(
        &self,
        q: Request<ShowTrajectoryRequest>,
    ) -> Result<Response<ShowTrajectoryResponse>, Status> {
        let trajectory = trajectory(q.get_ref().episode_id);
        self.answer("show_trajectory", q, ShowTrajectoryResponse { trajectory: Some(trajectory) })
    }

    async fn list_quarantined(
        &self,
        q: Request<ListQuarantinedRequest>,
    ) -> Result<Response<ListQuarantinedResponse>, Status> {
        let one = QuarantinedTrajectory {
            episode_id: 33,
            actor_id: "actor-1".into(),
            fault: "behavior_logprobs[4] is NaN \u{1b}[2J".into(),
            t: 61.5,
        };
        self.answer(
            "list_quarantined",
            q,
            ListQuarantinedResponse { trajectories: vec![one], total: 300 },
        )
    }

    async fn audit(&self, q: Request<AuditRequest>) -> Result<Response<AuditResponse>, Status> {
        let entry = |t, what: &str, reason: &str, refusal: &str| AuditEntry {
            t,
            who: "ada at 127.0.0.1".into(),
            what: what.into(),
            reason: reason.into(),
            refusal: refusal.into(),
        };
        let entries = vec![
            entry(3725.0, "set schedule.kind=adaptve", "", "schedule.kind: unknown variant"),
            entry(90.0, "pause", "lunch", ""),
        ];
        self.answer("audit", q, AuditResponse { entries })
    }

    async fn lengths(
        &self,
        q: Request<LengthsRequest>,
    ) -> Result<Response<LengthsResponse>, Status> {
        self.answer("lengths", q, lengths())
    }
}

fn status(state: RunState, step: u64) -> StatusResponse {
    let actor = |name: &str, draining| ActorStatus {
        actor_id: name.into(),
        generation: 2,
        episodes_running: 16,
        policy_version: 6,
        heartbeat_age_s: 0.5,
        peak_rss_bytes: 300 << 20,
        draining,
    };
    StatusResponse {
        run: "demo".into(),
        state: state.into(),
        phase: "rl".into(),
        step,
        phase_steps: 120,
        phase_step: step,
        actors: vec![actor("actor-0", false), actor("actor-1", true)],
        ..Default::default()
    }
}

fn schedule() -> ScheduleResponse {
    ScheduleResponse {
        kind: "phases".into(),
        phase: "explore".into(),
        why: "the main part begins with it".into(),
        ends: "32 groups without a success (3 so far)".into(),
        step: 7,
        decided_step: 10,
        sft_share: Some(0.25),
        decisions: vec![ScheduleDecision {
            step: 10,
            what: "rl step".into(),
            reason: "phase `explore`: RL alone".into(),
            t: 75.5,
        }],
        revision: 2,
        settings: "[schedule]\nkind = \"phases\"\n".into(),
        ..Default::default()
    }
}

fn task() -> TaskRef {
    TaskRef { world: "market".into(), split: "train".into(), seed: 91, calls: 4 }
}

fn entry(episode_id: u64) -> TrajectoryEntry {
    TrajectoryEntry {
        episode_id,
        group_id: Some(37),
        task: Some(task()),
        mode: Mode::Explore.into(),
        stop_reason: StopReason::TurnLimit.into(),
        reward: Some(0.25),
        success: Some(false),
        tokens: 812,
        calls: 3,
        oldest_version: Some(40),
    }
}

fn trajectory(episode_id: u64) -> Trajectory {
    let call = |status: CallStatus, raw: &str| ToolCall {
        status: status.into(),
        raw: raw.into(),
        ..Default::default()
    };
    let span =
        |role: Role, start, end| Span { role: role.into(), start, end, ..Default::default() };
    let assistant = Span {
        state: StructuralState::Polluted.into(),
        calls: vec![
            call(CallStatus::Ok, r#"{"name": "search", "arguments": {"item": "tea"}}"#),
            call(CallStatus::Malformed, "\n{\"name\": \u{1b}[31m\n"),
        ],
        ..span(Role::Assistant, 2, 4)
    };
    Trajectory {
        episode_id,
        group_id: Some(37),
        task: Some(task()),
        mode: Mode::Explore.into(),
        token_ids: vec![11, 12, 13, 14],
        loss_mask: vec![0, 0, 1, 1],
        behavior_logprobs: vec![0.0, 0.0, -0.5, -0.25],
        policy_versions: vec![0, 0, 40, 40],
        sampled_versions: vec![SampledVersion {
            policy_version: 40,
            manifest_hash: vec![0xab; 32],
        }],
        spans: vec![span(Role::User, 0, 2), assistant],
        stop_reason: StopReason::Done.into(),
        reward: Some(1.0),
        success: Some(true),
        answer: Some("total 12".into()),
        sampling_seed: 5,
        duration_ms: 5300,
        control_token_mass: Some(0.000_12),
    }
}

fn lengths() -> LengthsResponse {
    let distribution = |bins: [u64; 3], mean| LengthDistribution {
        count: bins.iter().sum(),
        mean,
        bins: bins.to_vec(),
    };
    LengthsResponse {
        sampled: Some(distribution([0, 30, 10], 18.5)),
        trained: Some(distribution([0, 29, 9], 18.4)),
        statistic: 0.0132,
        p_value: 0.97,
        dropped: vec![DroppedLengths {
            reason: "actor_lost".into(),
            count: 3,
            unknown: 2,
            known: Some(distribution([0, 0, 1], 22.0)),
        }],
        upper_bounds: vec![16, 20, 25],
    }
}
