//! The running processes: started, watched, restarted, stopped.
//!
//! Invariant: the coordinator is process 0 and the learner process 1. The run lives as long as the
//! coordinator, which is never restarted: it holds the run's state in memory.

use std::{
    io,
    process::ExitStatus,
    time::{Duration, Instant},
};

use ballast_proto::v1::{RunState, StatusResponse};
use ballast_runtime::{exit, memory};
use rustix::process::Signal;
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    programs::{self, Program},
    restarts::{Decision, RESTARTS_MAX, Restarts},
};
use crate::progress::Progress;

/// Exit code of a program whose libraries are not found; the dynamic linker's.
const CODE_NOT_LOADED: i32 = 127;

const COORDINATOR: usize = 0;
const LEARNER: usize = 1;

/// Peak memory is read this often: `/proc` forgets it when a process ends.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// A member that ended in order is judged after this time: at the end of a run, members may end a
/// moment before the coordinator does.
const SETTLE: Duration = Duration::from_secs(1);
/// After Ctrl-C the coordinator has this long to finish the step at hand and drain the actors.
const STOP_GRACE: Duration = Duration::from_secs(60);
/// After the run, processes have this long to end by themselves, and again after SIGTERM.
const END_GRACE: Duration = Duration::from_secs(10);

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The coordinator ended in order.
    Finished,
    /// The user stopped it.
    Interrupted,
    /// Something died for good; the text says what and what its log says.
    Failed(String),
}

/// All processes of the run.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    processes: Vec<Process>,
    /// One task per running process: its index and how it ended.
    exits: JoinSet<(usize, io::Result<ExitStatus>)>,
    /// What is to be done about members that have ended.
    timers: JoinSet<Timer>,
}

/// Work that waits for its time, on the process of this index.
#[derive(Debug)]
enum Timer {
    /// Decide about the end of a process, described for people.
    Judge(usize, String),
    /// Start it again.
    Restart(usize),
}

#[derive(Debug)]
struct Process {
    program: Program,
    /// `None` while it is not running.
    pid: Option<u32>,
    started: Instant,
    restarts: Restarts,
    given_up: bool,
    /// Over all its incarnations, bytes.
    peak_rss_bytes: u64,
}

/// What one process took.
#[derive(Debug)]
pub(super) struct Usage<'a> {
    pub(super) name: &'a str,
    pub(super) peak_rss_bytes: u64,
    pub(super) restarts: u32,
}

impl Cluster {
    /// Starts one more process.
    pub(super) fn start(&mut self, program: Program) -> Result<(), Outcome> {
        let index = self.processes.len();
        self.processes.push(Process {
            program,
            pid: None,
            started: Instant::now(),
            restarts: Restarts::new(index as u64),
            given_up: false,
            peak_rss_bytes: 0,
        });
        self.spawn(index)
    }

    fn spawn(&mut self, index: usize) -> Result<(), Outcome> {
        let process = &mut self.processes[index];
        let mut child = process.program.start().map_err(|error| {
            Outcome::Failed(format!("cannot start the {}: {error}", process.program.name))
        })?;
        process.pid = child.id();
        process.started = Instant::now();
        self.exits.spawn(async move { (index, child.wait().await) });
        Ok(())
    }

    /// Waits for the coordinator, the only process so far, to end; it should not.
    pub(super) async fn coordinator_ended(&mut self) -> Outcome {
        match self.exits.join_next().await {
            Some(Ok((index, status))) => self.coordinator_outcome(index, &status),
            _ => Outcome::Failed("the coordinator was not started".into()),
        }
    }

    /// Watches over all processes until the run ends.
    pub(super) async fn supervise(
        &mut self,
        stop: &CancellationToken,
        status: &mut watch::Receiver<StatusResponse>,
        progress: &mut Progress,
    ) -> Outcome {
        let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every branch is cancel-safe: joins, ticks and changes stay to be seen.
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop_coordinator(progress).await,
                Some(Ok((index, exit))) = self.exits.join_next() => {
                    if let Some(outcome) = self.on_exit(index, &exit, progress) {
                        return outcome;
                    }
                }
                Some(Ok(timer)) = self.timers.join_next() => {
                    if !is_ending(&status.borrow())
                        && let Some(outcome) = self.on_timer(timer, progress)
                    {
                        return outcome;
                    }
                }
                _ = sample.tick() => self.sample(),
                Ok(()) = status.changed() => progress.update(&status.borrow_and_update()),
            }
        }
    }

    /// Reacts to the end of a process; the outcome if that ends the run.
    fn on_exit(
        &mut self,
        index: usize,
        exit: &io::Result<ExitStatus>,
        progress: &Progress,
    ) -> Option<Outcome> {
        if index == COORDINATOR {
            return Some(self.coordinator_outcome(index, exit));
        }
        self.processes[index].pid = None;
        let end = describe_exit(exit);
        if is_final(exit) {
            return self.give_up(index, &format!("{end}; another start would not help"), progress);
        }
        if !succeeded(exit) {
            return self.judge(index, &end, progress);
        }
        self.after(SETTLE, Timer::Judge(index, end));
        None
    }

    fn on_timer(&mut self, timer: Timer, progress: &Progress) -> Option<Outcome> {
        match timer {
            Timer::Judge(index, end) => self.judge(index, &end, progress),
            Timer::Restart(index) => self.spawn(index).err(),
        }
    }

    fn after(&mut self, delay: Duration, timer: Timer) {
        self.timers.spawn(async move {
            tokio::time::sleep(delay).await;
            timer
        });
    }

    /// Starts a member again, or gives it up; the outcome if the run cannot go on without it.
    fn judge(&mut self, index: usize, end: &str, progress: &Progress) -> Option<Outcome> {
        let process = &mut self.processes[index];
        let name = &process.program.name;
        match process.restarts.on_death(process.started.elapsed()) {
            Decision::Restart { delay, attempt } => {
                let seconds = delay.as_secs_f64();
                progress.note(&format!(
                    "{name} {end}: restart {attempt} of {RESTARTS_MAX} in {seconds:.1} s"
                ));
                self.after(delay, Timer::Restart(index));
                None
            }
            Decision::GiveUp => {
                let end = format!("{end} and is given up after {RESTARTS_MAX} restarts");
                self.give_up(index, &end, progress)
            }
        }
    }

    /// Goes on without a member; the outcome if the run cannot.
    fn give_up(&mut self, index: usize, end: &str, progress: &Progress) -> Option<Outcome> {
        let process = &mut self.processes[index];
        process.given_up = true;
        let reason = format!("{} {end}; {}", process.program.name, process.program.last_words());
        if self.cannot_go_on(index) {
            return Some(Outcome::Failed(reason));
        }
        progress.note(&reason);
        None
    }

    /// Without the learner or without any actor the run would wait forever.
    fn cannot_go_on(&self, given_up: usize) -> bool {
        let mut actors = self.processes.iter().skip(LEARNER + 1);
        given_up == LEARNER || actors.all(|actor| actor.given_up)
    }

    fn coordinator_outcome(&mut self, index: usize, exit: &io::Result<ExitStatus>) -> Outcome {
        let process = &mut self.processes[index];
        process.pid = None;
        if succeeded(exit) {
            return Outcome::Finished;
        }
        let (name, words) = (&process.program.name, process.program.last_words());
        Outcome::Failed(format!("the {name} {}; {words}", describe_exit(exit)))
    }

    /// Asks the coordinator to end the run in order, and waits for it.
    async fn stop_coordinator(&mut self, progress: &mut Progress) -> Outcome {
        progress.note("stopping: finishing the step at hand; Ctrl-C again ends everything at once");
        self.signal(COORDINATOR, Signal::TERM);
        let ended = async {
            while let Some(Ok((index, _))) = self.exits.join_next().await {
                self.processes[index].pid = None;
                if index == COORDINATOR {
                    break;
                }
            }
        };
        // After the grace `stop` takes harder measures, so a timeout needs no handling here.
        drop(tokio::time::timeout(STOP_GRACE, ended).await);
        Outcome::Interrupted
    }

    /// Ends what still runs: in order after a run that ended in order, else by SIGTERM, then SIGKILL.
    pub(super) async fn stop(&mut self, outcome: &Outcome) {
        self.timers.abort_all();
        self.sample();
        if !matches!(outcome, Outcome::Failed(_)) {
            self.await_exits().await;
        }
        for signal in [Signal::TERM, Signal::KILL] {
            (0..self.processes.len()).for_each(|index| self.signal(index, signal));
            self.await_exits().await;
        }
    }

    async fn await_exits(&mut self) {
        let processes = &mut self.processes;
        let all = async {
            while let Some(exit) = self.exits.join_next().await {
                if let Ok((index, _)) = exit {
                    processes[index].pid = None;
                }
            }
        };
        // Whoever is left after the grace gets the next signal.
        drop(tokio::time::timeout(END_GRACE, all).await);
    }

    fn signal(&self, index: usize, signal: Signal) {
        if let Some(pid) = self.processes.get(index).and_then(|process| process.pid) {
            programs::send(pid, signal);
        }
    }

    fn sample(&mut self) {
        for process in &mut self.processes {
            let peak = process.pid.and_then(memory::peak_rss_of).unwrap_or(0);
            process.peak_rss_bytes = process.peak_rss_bytes.max(peak);
        }
    }

    /// What each process took, in the order they were started.
    pub(super) fn usage(&self) -> impl Iterator<Item = Usage<'_>> {
        self.processes.iter().map(|process| Usage {
            name: &process.program.name,
            peak_rss_bytes: process.peak_rss_bytes,
            restarts: process.restarts.total(),
        })
    }
}

/// Whether processes are expected to end now.
fn is_ending(status: &StatusResponse) -> bool {
    matches!(status.state(), RunState::Stopping | RunState::Finished)
}

fn succeeded(exit: &io::Result<ExitStatus>) -> bool {
    exit.as_ref().is_ok_and(ExitStatus::success)
}

/// Whether the next start would end the same way: the process says so, or it cannot be loaded.
fn is_final(exit: &io::Result<ExitStatus>) -> bool {
    let code = exit.as_ref().ok().and_then(ExitStatus::code);
    code.is_some_and(|code| code == CODE_NOT_LOADED || code == i32::from(exit::CODE_UNUSABLE))
}

fn describe_exit(exit: &io::Result<ExitStatus>) -> String {
    match exit {
        Ok(status) if status.success() => "ended before the run did".into(),
        // "exit status: 1", "signal: 9 (SIGKILL)"
        Ok(status) => format!("died ({status})"),
        Err(error) => format!("was lost ({error})"),
    }
}
