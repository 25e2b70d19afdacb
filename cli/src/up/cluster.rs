//! The running processes: started, watched, restarted, stopped.
//!
//! Invariant: the coordinator is process 0 and the learner process 1. The run ends with the
//! coordinator that ends in order. One that dies is started again like the others and takes the run
//! up from its journal, at the address it had; the others reconnect by themselves meanwhile.

use std::{
    io,
    path::PathBuf,
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
    restarts::{Decision, Life, RESTARTS_MAX, Restarts},
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
    /// The user stopped it, and the coordinator was told so.
    Stopped,
    /// The user ended it while there was no coordinator to tell. The run is not over.
    Interrupted,
    /// Something died for good; the text says what and what its log says.
    Failed(String),
}

/// All processes of the run.
#[derive(Debug)]
pub(super) struct Cluster {
    /// File the coordinator writes when the run is over.
    result: PathBuf,
    processes: Vec<Process>,
    /// One task per running process: its index and how it ended.
    exits: JoinSet<(usize, io::Result<ExitStatus>)>,
    /// What is to be done about members that have ended.
    timers: JoinSet<Timer>,
    /// Whether people are still to be told where the coordinator takes the run up.
    resumes: bool,
    /// Newest finished step that is known.
    step: u64,
}

/// Work that waits for its time, on the process of this index.
#[derive(Debug)]
enum Timer {
    /// Decide about the end of a process, described for people.
    Judge(usize, String),
    /// Start it again.
    Restart(usize),
}

impl Timer {
    fn index(&self) -> usize {
        match self {
            Self::Judge(index, _) | Self::Restart(index) => *index,
        }
    }
}

#[derive(Debug)]
struct Process {
    program: Program,
    /// `None` while it is not running.
    pid: Option<u32>,
    started: Instant,
    /// Newest finished step at its start.
    started_at_step: u64,
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
    /// No process yet. `result`: the file that says that the run is over; `resumes`: there is a run to
    /// be taken up.
    pub(super) fn new(result: PathBuf, resumes: bool) -> Self {
        Self {
            result,
            processes: Vec::new(),
            exits: JoinSet::new(),
            timers: JoinSet::new(),
            resumes,
            step: 0,
        }
    }

    /// Starts one more process.
    pub(super) fn start(&mut self, program: Program) -> Result<(), Outcome> {
        let index = self.processes.len();
        self.processes.push(Process {
            program,
            pid: None,
            started: Instant::now(),
            started_at_step: 0,
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
        process.started_at_step = self.step;
        self.exits.spawn(async move { (index, child.wait().await) });
        Ok(())
    }

    /// Whether the coordinator came up, so that the others were started.
    pub(super) fn is_complete(&self) -> bool {
        self.processes.len() > LEARNER
    }

    /// Makes every later start of the coordinator listen at this address: the others know it.
    pub(super) fn keep_address(&mut self, address: &str) {
        let listen = format!("coordinator.listen={address}");
        self.processes[COORDINATOR].program.add_flag("--set", &listen);
    }

    /// Waits for the coordinator, the only process so far, to end; it should not.
    pub(super) async fn coordinator_ended(&mut self) -> Outcome {
        let Some(Ok((index, exit))) = self.exits.join_next().await else {
            return Outcome::Failed("the coordinator was not started".into());
        };
        let process = &mut self.processes[index];
        process.pid = None;
        let (name, words) = (&process.program.name, process.program.last_words());
        Outcome::Failed(format!("the {name} {}; {words}", describe_exit(&exit)))
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
                    if (timer.index() == COORDINATOR || !is_ending(&status.borrow()))
                        && let Some(outcome) = self.on_timer(timer, progress)
                    {
                        return outcome;
                    }
                }
                _ = sample.tick() => self.sample(),
                Ok(()) = status.changed() => {
                    self.on_status(&status.borrow_and_update(), progress);
                }
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
        self.processes[index].pid = None;
        // A coordinator that is killed behind its last word has nothing left to do.
        if index == COORDINATOR && (succeeded(exit) || self.result.exists()) {
            return Some(Outcome::Finished);
        }
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
            Timer::Restart(index) => {
                self.resumes |= index == COORDINATOR;
                self.spawn(index).err()
            }
        }
    }

    fn on_status(&mut self, status: &StatusResponse, progress: &mut Progress) {
        // While there is no coordinator this is still the word of the last one.
        if self.resumes && self.processes[COORDINATOR].pid.is_some() {
            self.resumes = false;
            progress.note(&format!("run {} goes on at step {}", status.run, status.step));
        }
        self.step = status.step;
        progress.update(status);
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
        // Steps are made as long as there is any actor, so they say nothing about this one.
        let steps = if index > LEARNER { 0 } else { self.step - process.started_at_step };
        match process.restarts.on_death(Life { lasted: process.started.elapsed(), steps }) {
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

    /// Without the coordinator, the learner, or any actor the run would wait forever.
    fn cannot_go_on(&self, given_up: usize) -> bool {
        let mut actors = self.processes.iter().skip(LEARNER + 1);
        given_up <= LEARNER || actors.all(|actor| actor.given_up)
    }

    /// Asks the coordinator to end the run in order, and waits for it.
    async fn stop_coordinator(&mut self, progress: &mut Progress) -> Outcome {
        if self.processes[COORDINATOR].pid.is_none() {
            return Outcome::Interrupted;
        }
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
        Outcome::Stopped
    }

    /// Ends what still runs: in order after a run that ended in order, else by SIGTERM, then SIGKILL.
    ///
    /// A coordinator whose run cannot go on here is killed: told to stop, it would end the run for
    /// good, while out of the journal the run can be taken up again.
    pub(super) async fn stop(&mut self, outcome: &Outcome) {
        self.timers.abort_all();
        self.sample();
        match outcome {
            Outcome::Finished | Outcome::Stopped => self.await_exits().await,
            Outcome::Interrupted | Outcome::Failed(_) => self.signal(COORDINATOR, Signal::KILL),
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
