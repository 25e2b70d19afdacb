//! The course of a replay: what its server reports, on the terminal and for the verdict.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};

use crate::{terminal, up::programs::Program};

/// Without a terminal, at most one line in this time.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The server's process and what it says.
#[derive(Debug)]
pub(super) struct Server {
    program: Program,
    /// Dies with this.
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// A replay that waits for its learner.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    /// Where the learner is awaited.
    pub(super) address: String,
    /// Last step before it.
    pub(super) from_step: u64,
    /// Its last step.
    pub(super) to_step: u64,
    /// Configuration the run was created with, as TOML.
    pub(super) config: String,
}

/// A line of the server's.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
enum Report {
    Ready(Ready),
    Learner { weights: Weights },
    Step { step: u64, weights: Weights },
    Checkpoint {},
    Finished {},
}

/// Weights beside those that the run had after the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Weights {
    Same,
    Other,
    Unknown,
}

impl Server {
    /// Starts it.
    pub(super) fn start(mut program: Program) -> anyhow::Result<Self> {
        let mut process = program.start_talking().context("cannot start the coordinator")?;
        let stdout = process.stdout.take().context("the coordinator has no stdout")?;
        Ok(Self { program, _process: process, lines: BufReader::new(stdout).lines() })
    }

    /// Waits until it has read the journal.
    pub(super) async fn ready(&mut self) -> anyhow::Result<Ready> {
        match self.next().await? {
            Report::Ready(ready) => Ok(ready),
            report => bail!("{report:?} comes too early; use programs of one version"),
        }
    }

    async fn next(&mut self) -> anyhow::Result<Report> {
        let Some(line) = self.lines.next_line().await? else {
            bail!("the replay cannot be served; {}", self.program.last_words());
        };
        let report = serde_json::from_str(&line);
        report.with_context(|| format!("`{line}` is no report; use programs of one version"))
    }
}

/// How far a replay is, and how its weights compare.
#[derive(Debug)]
pub(super) struct Course {
    from: u64,
    shown: Shown,
    /// The learner started from weights that the run had.
    began_same: bool,
    compared: u64,
    first_other: Option<u64>,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { steps: u64, last: Option<Instant> },
}

impl Course {
    /// A bar on stderr; lines there where `plain` asks for them or it is no terminal.
    pub(super) fn new(ready: &Ready, plain: bool) -> Self {
        let steps = ready.to_step.saturating_sub(ready.from_step);
        let shown = if plain || !std::io::stderr().is_terminal() {
            Shown::Lines { steps, last: None }
        } else {
            Shown::Bar(new_bar(steps))
        };
        let from = ready.from_step;
        Self { from, shown, began_same: false, compared: 0, first_other: None }
    }

    /// Follows the server to the end of the replay.
    pub(super) async fn follow(&mut self, server: &mut Server) -> anyhow::Result<()> {
        loop {
            match server.next().await? {
                Report::Learner { weights } => self.begin(weights),
                Report::Step { step, weights } => self.step(step, weights),
                Report::Finished {} => return Ok(()),
                Report::Ready(_) | Report::Checkpoint {} => {}
            }
        }
    }

    fn begin(&mut self, weights: Weights) {
        self.began_same = weights == Weights::Same;
        if weights == Weights::Other {
            self.note(
                "the learner does not start from weights that the run had: the checkpoint was \
                 changed, or another version of the program publishes it otherwise",
            );
        }
    }

    fn step(&mut self, step: u64, weights: Weights) {
        // Which weights are published says nothing where other ones were at the start.
        if self.began_same && weights != Weights::Unknown {
            self.compared += 1;
            if weights == Weights::Other && self.first_other.is_none() {
                self.first_other = Some(step);
                self.note(&format!("step {step} came out with other weights than in the run"));
            }
        }
        let done = step.saturating_sub(self.from);
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { steps, last } => {
                let is_due = last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
                if is_due || done == *steps {
                    *last = Some(Instant::now());
                    terminal::complain(&format!("step {step:<6} {done} of {steps}"));
                }
            }
        }
    }

    /// A line that stays.
    pub(super) fn note(&self, line: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| terminal::complain(line)),
            Shown::Lines { .. } => terminal::complain(line),
        }
    }

    /// Leaves the bar as it is.
    pub(super) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish();
        }
    }

    /// Steps whose published weights could be compared.
    pub(super) fn compared(&self) -> u64 {
        self.compared
    }

    /// The first of them with other weights than in the run.
    pub(super) fn first_other(&self) -> Option<u64> {
        self.first_other
    }
}

fn new_bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_prefix("replay");
    let style = "{prefix:<14} {bar:32.cyan/dim} {pos:>4}/{len:<4} {elapsed:>4}, {eta} left";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
