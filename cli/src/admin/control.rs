//! `ballast pause`, `ballast resume`, `ballast stop`.

use std::process::ExitCode;

use ballast_proto::v1::{PauseRequest, ResumeRequest, StopRequest};

use super::{Ask, client::Client};

/// Nothing new begins.
pub(super) async fn pause(ask: &Ask) -> anyhow::Result<ExitCode> {
    let done = "paused: what runs is finished, nothing new starts; continue with `ballast resume`";
    ask.show(PauseRequest {}, Client::pause, |_| done.to_owned()).await
}

/// It goes on.
pub(super) async fn resume(ask: &Ask) -> anyhow::Result<ExitCode> {
    ask.show(ResumeRequest {}, Client::resume, |_| "resumed".to_owned()).await
}

/// It ends in order.
pub(super) async fn stop(ask: &Ask) -> anyhow::Result<ExitCode> {
    let done =
        "stopping: the step at hand is finished, a checkpoint is written, actors are drained";
    ask.show(StopRequest {}, Client::stop, |_| done.to_owned()).await
}
