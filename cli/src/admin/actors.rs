//! `ballast actors`: who rolls out, and draining one of them.

use std::process::ExitCode;

use ballast_proto::v1::{ActorStatus, DrainActorRequest, StatusRequest};
use serde_json::json;

use super::{Ask, client::Client, wire};
use crate::{
    table::{self, number, text},
    terminal,
};

/// Flags of `ballast actors`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ActorsArgs {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, clap::Subcommand)]
enum Change {
    /// Let one actor finish what it runs, take nothing new, and leave.
    #[command(after_help = "Example:\n  \
        ballast actors drain actor-1 --reason \"its machine goes down\"")]
    Drain(DrainArgs),
}

/// Flags of `ballast actors drain`.
#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// Name of the actor, as `ballast actors` shows it.
    #[arg(value_name = "NAME")]
    actor: String,
    /// Why, for the journal.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    ask: Ask,
}

/// Lists the actors, or drains one.
pub(super) async fn actors(args: &ActorsArgs) -> anyhow::Result<ExitCode> {
    if let Some(Change::Drain(drain)) = &args.change {
        let request =
            DrainActorRequest { actor_id: drain.actor.clone(), reason: drain.reason.clone() };
        let done = format!("draining {}: it finishes what it runs, and leaves", drain.actor);
        return drain.ask.show(request, Client::drain_actor, |_| done).await;
    }
    // They are a part of the status.
    let status = args.ask.call(StatusRequest {}, Client::status).await?;
    if args.ask.json {
        let actors = wire::to_json(&status)["actors"].take();
        terminal::emit(&json!({ "actors": actors }).to_string());
    } else {
        terminal::say(&describe(&status.actors));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(actors: &[ActorStatus]) -> String {
    let columns = [
        text("actor"),
        number("episodes"),
        number("policy"),
        number("heartbeat"),
        number("memory"),
        number("generation"),
        text("state"),
    ];
    let rows = actors.iter().map(|actor| {
        [
            actor.actor_id.clone(),
            actor.episodes_running.to_string(),
            format!("v{}", actor.policy_version),
            format!("{:.1} s", actor.heartbeat_age_s),
            format!("{} MiB", actor.peak_rss_bytes >> 20),
            actor.generation.to_string(),
            if actor.draining { "draining" } else { "at work" }.to_owned(),
        ]
    });
    table::render(columns, rows, "no actor is connected")
}
