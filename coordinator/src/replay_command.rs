//! `ballast-coordinator replay`: the server behind `ballast replay`. It says how far it is on stdout,
//! one JSON object in a line.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use ballast_coordinator::{
    journal::{Directory, Reader},
    replay::{self, Excerpt, REPORTS_MAX, Recording},
};
use ballast_runtime::{exit, net, telemetry};
use serde::Serialize;
use tokio::{net::TcpListener, sync::mpsc};

/// Flags of `replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayCommand {
    /// Directory of the run.
    run: PathBuf,
    /// Serve what follows this step; 0: from the beginning.
    #[arg(long, value_name = "N", default_value_t = 0)]
    from_step: u64,
    /// Last step to serve [default: the last one the run has finished]
    #[arg(long, value_name = "M")]
    to_step: Option<u64>,
    /// Ask for no checkpoint but the last one.
    #[arg(long)]
    last_only: bool,
    /// HOST:PORT to listen on, port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
}

/// The first line.
#[derive(Serialize)]
struct Ready<'a> {
    report: &'static str,
    address: String,
    from_step: u64,
    to_step: u64,
    /// Configuration the run was created with, as TOML.
    config: &'a str,
}

/// Runs it.
pub(crate) fn run(command: &ReplayCommand) -> anyhow::Result<()> {
    telemetry::init("coordinator");
    let journal = command.run.join("journal");
    if !journal.is_dir() {
        bail!("{} has no journal; name the directory of a run", command.run.display());
    }
    let reader = Reader::open(Arc::new(Directory::create(&journal)?));
    let recording = Recording::read(&reader).map_err(exit::unusable)?;
    let config = recording.created().config_toml.clone();
    let to_step = command.to_step.unwrap_or(recording.finished());
    let excerpt = recording.excerpt(command.from_step, to_step, command.last_only);
    let excerpt = excerpt.map_err(exit::unusable)?;
    tokio::runtime::Runtime::new().context("cannot start the async runtime")?.block_on(async {
        let (listener, address) = net::bind(&command.listen).await.map_err(exit::unusable)?;
        say(&Ready {
            report: "ready",
            address: address.to_string(),
            from_step: excerpt.from(),
            to_step: excerpt.to(),
            config: &config,
        })?;
        serve(listener, excerpt, reader).await
    })
}

async fn serve(listener: TcpListener, excerpt: Excerpt, reader: Reader) -> anyhow::Result<()> {
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let served = tokio::spawn(replay::serve(listener, excerpt, reader, reports));
    while let Some(report) = reported.recv().await {
        say(&report)?;
    }
    Ok(served.await.context("the server ended early")??)
}

fn say(line: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text).and_then(|()| out.flush()).context("nobody reads the replay's reports")
}
