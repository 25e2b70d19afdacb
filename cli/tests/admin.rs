//! The admin commands against an admin service in this process.

use std::sync::{Arc, Mutex};

use ballast_proto::v1::{
    PauseRequest, PauseResponse, ResumeRequest, ResumeResponse, RunState, ScheduleDecision,
    ScheduleRequest, ScheduleResponse, SetScheduleRequest, SetScheduleResponse, StatusRequest,
    StatusResponse, StopRequest, StopResponse,
    admin_server::{Admin, AdminServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Remembers which calls it got.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<&'static str>>>);

impl Recorder {
    fn note(&self, call: &'static str) {
        self.0.lock().expect("no panic while locked").push(call);
    }
}

fn status_sample(step: u64) -> StatusResponse {
    StatusResponse {
        run: "demo".into(),
        state: RunState::Running.into(),
        phase: "rl".into(),
        step,
        phase_steps: 120,
        phase_step: step,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Admin for Recorder {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.note("status");
        Ok(Response::new(status_sample(7)))
    }

    type WatchStatusStream = tokio_stream::Iter<std::vec::IntoIter<Result<StatusResponse, Status>>>;

    async fn watch_status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let statuses: Vec<_> = (1..=3).map(|step| Ok(status_sample(step))).collect();
        Ok(Response::new(tokio_stream::iter(statuses)))
    }

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.note("pause");
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.note("resume");
        Ok(Response::new(ResumeResponse {}))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.note("stop");
        Err(Status::failed_precondition("the run has finished"))
    }

    async fn schedule(
        &self,
        _: Request<ScheduleRequest>,
    ) -> Result<Response<ScheduleResponse>, Status> {
        self.note("schedule");
        Ok(Response::new(ScheduleResponse {
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
                t: 1.5,
            }],
            revision: 2,
            settings: "[schedule]\nkind = \"phases\"\n".into(),
            ..Default::default()
        }))
    }

    async fn set_schedule(
        &self,
        request: Request<SetScheduleRequest>,
    ) -> Result<Response<SetScheduleResponse>, Status> {
        let SetScheduleRequest { changes, reason, revision } = request.into_inner();
        assert_eq!((reason.as_str(), revision), ("it forgets", Some(2)));
        if changes == ["kind=adaptive", "steps=90"] {
            return Ok(Response::new(SetScheduleResponse { revision: 3, step: 11 }));
        }
        Err(Status::invalid_argument(format!("{changes:?}")))
    }
}

async fn serve(recorder: Recorder) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let incoming = TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(AdminServer::new(recorder));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// Runs `ballast`: whether it succeeded, its stdout, its stderr.
async fn ballast(args: &[&str]) -> (bool, String, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(args)
        .output()
        .await
        .expect("ballast");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn each_command_makes_its_call() {
    let recorder = Recorder::default();
    let address = serve(recorder.clone()).await;
    for command in ["status", "pause", "resume"] {
        let (success, _, stderr) = ballast(&[command, "--coordinator", &address]).await;
        assert!(success, "{command}: {stderr}");
    }
    assert_eq!(*recorder.0.lock().expect("no panic while locked"), ["status", "pause", "resume"]);
}

#[tokio::test]
async fn a_refusal_is_shown() {
    let address = serve(Recorder::default()).await;
    let (success, _, stderr) = ballast(&["stop", "--coordinator", &address]).await;
    assert!(!success && stderr.contains("the run has finished"), "{stderr}");
}

#[tokio::test]
async fn status_prints_one_json_object() {
    let address = serve(Recorder::default()).await;
    let (_, stdout, _) = ballast(&["status", "--json", "--coordinator", &address]).await;
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&value["run"], &value["step"]), (&"demo".into(), &7.into()));
}

#[tokio::test]
async fn schedule_shows_where_it_is_and_why() {
    let address = serve(Recorder::default()).await;
    let (success, stdout, stderr) = ballast(&["schedule", "--coordinator", &address]).await;
    assert!(success, "{stderr}");
    for expected in [
        "phases, revision 2",
        "explore",
        "because the main part begins with it",
        "32 groups without a success (3 so far)",
        "25.0%",
        "decided to step 10",
        "phase `explore`: RL alone",
    ] {
        assert!(stdout.contains(expected), "{expected} is not in\n{stdout}");
    }
    let (_, stdout, _) = ballast(&["schedule", "--json", "--coordinator", &address]).await;
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&value["decided_step"], &value["sft_share"]), (&10.into(), &0.25.into()));
    assert_eq!(value["decisions"][0]["what"], "rl step");
    assert!(value["strain"].is_null());
}

#[tokio::test]
async fn schedule_set_says_from_when_on() {
    let address = serve(Recorder::default()).await;
    let set = |change: &'static str| {
        let address = address.clone();
        async move {
            let set = ["schedule", "set", change, "steps=90"];
            let based = ["--reason", "it forgets", "--revision", "2"];
            ballast(&[&set[..], &based, &["--coordinator", address.as_str()]].concat()).await
        }
    };
    let (success, stdout, stderr) = set("kind=adaptive").await;
    assert!(success && stdout.contains("from step 11 on"), "{stdout}{stderr}");
    let (success, _, stderr) = set("kind=adaptve").await;
    assert!(!success && stderr.contains("kind=adaptve"), "{stderr}");
}

#[tokio::test]
async fn watch_follows_until_the_stream_ends() {
    let address = serve(Recorder::default()).await;
    let (success, stdout, _) = ballast(&["watch", "--json", "--coordinator", &address]).await;
    assert!(success && stdout.lines().count() == 3, "{stdout}");
    let (_, stdout, _) = ballast(&["watch", "--plain", "--coordinator", &address]).await;
    assert!(stdout.contains("training") && stdout.contains("ended"), "{stdout}");
}

#[tokio::test]
async fn an_absent_coordinator_is_named_with_the_remedy() {
    // Port 1 is reserved and nobody listens there.
    let (success, _, stderr) = ballast(&["status", "--coordinator", "127.0.0.1:1"]).await;
    assert!(!success, "{stderr}");
    assert!(stderr.contains("no coordinator answers at 127.0.0.1:1"), "{stderr}");
    assert!(stderr.contains("--coordinator HOST:PORT"), "{stderr}");
}
