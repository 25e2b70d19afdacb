//! The commands that ask a run's coordinator something: its admin API, call by call.
//!
//! Each family of commands has a file. Here is what they share: whom to ask, and how an answer is
//! printed.

mod actors;
mod audit;
mod checkpoints;
mod client;
mod control;
mod evaluate;
mod lengths;
mod quarantine;
mod schedule;
mod settings;
pub(crate) mod status;
pub(crate) mod target;
mod trajectories;
mod trajectory;
mod wire;

use std::process::ExitCode;

use prost::{Message, Name};
use tonic::{Request, Response, Status};

pub(crate) use self::client::connect;
use self::{client::Client, target::Target};
use crate::terminal;

/// Flags of every command that asks the coordinator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    target: Target,
    /// Print the coordinator's answer as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Ask {
    /// Makes a call.
    async fn call<Q: Clone, A>(
        &self,
        request: Q,
        rpc: impl AsyncFn(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> anyhow::Result<A> {
        client::call(self.target.candidates()?, &request, rpc).await
    }

    /// Makes a call and prints its answer: as JSON, or as `describe` puts it for people.
    async fn show<Q: Clone, A: Message + Name>(
        &self,
        request: Q,
        rpc: impl AsyncFn(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
        describe: impl FnOnce(&A) -> String,
    ) -> anyhow::Result<ExitCode> {
        let answer = self.call(request, rpc).await?;
        if self.json {
            terminal::emit(&wire::to_json(&answer).to_string());
        } else {
            terminal::say(&describe(&answer));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The commands, each with an example.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show a run's state once.
    #[command(after_help = "Examples:\n  \
        ballast status                      the newest run in runs/\n  \
        ballast status --run long --json | jq .step")]
    Status(status::StatusArgs),
    /// Follow a run until it ends, over restarts of its coordinator.
    #[command(after_help = "Examples:\n  \
        ballast watch --run long\n  \
        ballast watch --json | jq --unbuffered .metrics")]
    Watch(status::WatchArgs),
    /// Stop handing out tasks and batches; what runs is finished.
    #[command(after_help = "Example:\n  ballast pause --run long")]
    Pause(Ask),
    /// Continue a paused run.
    #[command(after_help = "Example:\n  ballast resume --run long")]
    Resume(Ask),
    /// End a run in order: finish the step at hand, write a checkpoint, drain the actors.
    #[command(after_help = "Example:\n  ballast stop --run long")]
    Stop(Ask),
    /// Show where the schedule is and why, or change it while the run goes on.
    #[command(after_help = "Examples:\n  \
        ballast schedule                    phase, why, what ends it, last decisions\n  \
        ballast schedule set kind=adaptive adaptive.share_max=0.4 --reason \"it forgets\"")]
    Schedule(schedule::ScheduleArgs),
    /// Show the settings that can be changed while the run goes on.
    #[command(after_help = "Examples:\n  \
        ballast settings                    as TOML, with the revision\n  \
        ballast settings --json | jq .revision")]
    Settings(settings::SettingsArgs),
    /// Change settings, all or none, from the first step on that is not decided yet.
    #[command(after_help = "Examples:\n  \
        ballast set rl.learning_rate=1e-5 --reason \"the KL grows\"\n  \
        ballast set rl.temperature=0.9 schedule.rl_steps=5 --revision 3")]
    Set(settings::SetArgs),
    /// Show the actors, or drain one.
    #[command(after_help = "Examples:\n  \
        ballast actors\n  \
        ballast actors drain actor-1 --reason \"its machine goes down\"")]
    Actors(actors::ActorsArgs),
    /// Write a checkpoint after the steps that are planned already.
    #[command(after_help = "Example:\n  ballast checkpoint --reason \"before the change\"")]
    Checkpoint(checkpoints::CheckpointArgs),
    /// List the checkpoints that were written.
    #[command(after_help = "Example:\n  \
        ballast checkpoints --json | jq -r '.checkpoints[-1].path'")]
    Checkpoints(checkpoints::CheckpointsArgs),
    /// Evaluate the policy on the test split once more; training waits for it.
    #[command(after_help = "Example:\n  ballast evaluate --reason \"after the change\"")]
    Evaluate(evaluate::EvaluateArgs),
    /// List the newest finished trajectories.
    #[command(after_help = "Examples:\n  \
        ballast trajectories --failed --mode explore --limit 20\n  \
        ballast trajectories --mode evaluate --json | jq '.trajectories[].reward'")]
    Trajectories(trajectories::TrajectoriesArgs),
    /// Show one trajectory from the journal: its messages, states and calls.
    #[command(after_help = "Examples:\n  \
        ballast trajectory 512\n  \
        ballast trajectory 512 --json | jq .trajectory.token_ids")]
    Trajectory(trajectory::TrajectoryArgs),
    /// List the trajectories that were refused, and why.
    #[command(after_help = "Example:\n  ballast quarantine")]
    Quarantine(quarantine::QuarantineArgs),
    /// Compare the lengths sampled with those trained, and count what was dropped.
    #[command(after_help = "Examples:\n  \
        ballast lengths\n  \
        ballast lengths --json | jq '{statistic, p_value, dropped}'")]
    Lengths(lengths::LengthsArgs),
    /// Show who changed what and why, newest first.
    #[command(after_help = "Example:\n  ballast audit")]
    Audit(audit::AuditArgs),
}

impl Command {
    /// Does what the command says.
    pub(crate) async fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Status(args) => status::status(args).await,
            Self::Watch(args) => status::watch(args).await,
            Self::Pause(ask) => control::pause(ask).await,
            Self::Resume(ask) => control::resume(ask).await,
            Self::Stop(ask) => control::stop(ask).await,
            Self::Schedule(args) => schedule::schedule(args).await,
            Self::Settings(args) => settings::settings(args).await,
            Self::Set(args) => settings::set(args).await,
            Self::Actors(args) => actors::actors(args).await,
            Self::Checkpoint(args) => checkpoints::checkpoint(args).await,
            Self::Checkpoints(args) => checkpoints::checkpoints(args).await,
            Self::Evaluate(args) => evaluate::evaluate(args).await,
            Self::Trajectories(args) => trajectories::trajectories(args).await,
            Self::Trajectory(args) => trajectory::trajectory(args).await,
            Self::Quarantine(args) => quarantine::quarantine(args).await,
            Self::Lengths(args) => lengths::lengths(args).await,
            Self::Audit(args) => audit::audit(args).await,
        }
    }
}
