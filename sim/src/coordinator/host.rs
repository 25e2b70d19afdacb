//! The life of a coordinator's process: waiting to lead, taking the journal over, leading, and all the
//! ways in which that ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ballast_coordinator::{
    journal::{Journal, OpenError, Opened, ReadError, Term},
    rebuild::RebuildError,
    recovery::{self, Recovered, RecoveryError},
};

use super::{
    Opening,
    committer::Committer,
    driver::{Driver, Ends, Leave},
};
use crate::{
    agenda::{Time, Timer, What},
    dice::{Dice, Part},
    disk::{Drive, Meanwhile},
    election::{ASK_INTERVAL, Answer},
    env::Env,
    invariants::Sizes,
    network::{Exit, LinkId, Message},
    node::Node,
    plant::Plant,
};

/// What a start takes beside reading the journal.
const START: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(3)];
/// How long a supervisor waits before it starts a process again, milliseconds.
const RESTART_MS: [u64; 2] = [200, 10_000];

#[derive(Debug)]
enum Life {
    Down,
    /// Waits to be elected.
    Standby,
    /// Has rebuilt the run and is about to serve it.
    Starting(Box<Recovered>),
    Leading(Box<Leading>),
}

#[derive(Debug)]
struct Leading {
    driver: Driver,
    committer: Committer,
    /// The deadline that is on the agenda.
    deadline: Option<Time>,
}

/// Where what a rival's opening comes to is put, while another process is at its calls of the disk.
type Slot = Arc<Mutex<Option<Opening>>>;

/// A coordinator.
#[derive(Debug)]
pub(crate) struct Host {
    index: usize,
    incarnation: u64,
    life: Life,
    drive: Arc<Drive>,
    /// An opening that happens in the midst of what another process does.
    opening: Option<(Arc<Drive>, Slot)>,
    /// Time for which its clock has stood still, and since when it does.
    stopped: Duration,
    stopped_since: Option<Time>,
    /// Whether it goes on to lead although it cannot reach the election.
    stubborn: bool,
    asked: Time,
    dice: Dice,
}

impl Host {
    pub(crate) fn new(env: &Env, index: usize) -> Self {
        Self {
            index,
            incarnation: 0,
            life: Life::Down,
            drive: env.disk.at_worst(),
            opening: None,
            stopped: Duration::ZERO,
            stopped_since: None,
            stubborn: false,
            asked: Time::ZERO,
            dice: Dice::new(env.seed, Part::Coordinators, index),
        }
    }

    fn node(&self) -> Node {
        Node::Coordinator(self.index)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn leads(&self) -> bool {
        matches!(self.life, Life::Leading(_))
    }

    fn is_down(&self) -> bool {
        matches!(self.life, Life::Down)
    }

    fn clock(&self, now: Time) -> Duration {
        now - self.stopped
    }

    pub(crate) fn stop_clock(&mut self, now: Time) {
        self.stopped_since.get_or_insert(now);
    }

    /// The process goes on after it was stopped.
    pub(crate) fn resume(&mut self, now: Time) {
        if let Some(since) = self.stopped_since.take() {
            self.stopped += now - since;
        }
    }

    fn timer(&self, env: &mut Env, after: Duration, timer: Timer) {
        env.timer(self.node(), self.incarnation, env.now + after, timer);
    }

    // === beginning ===

    /// Somebody starts the process.
    pub(crate) fn start(&mut self, env: &mut Env) {
        if !self.is_down() || !self.is_supervised(env) || env.finished {
            return;
        }
        self.incarnation += 1;
        self.stopped_since = None;
        self.stubborn = self.dice.chance(0.5);
        env.note(format_args!("{} starts", self.node()));
        if env.scenario.elected {
            self.life = Life::Standby;
            self.asked = env.now;
            self.timer(env, Duration::ZERO, Timer::Campaign);
        } else {
            self.open(env, None);
        }
    }

    /// Whether somebody starts it again when it is down.
    fn is_supervised(&self, env: &Env) -> bool {
        env.scenario.elected || env.home == self.index
    }

    /// An operator moves the run here, and forgets to stop it where it was.
    pub(crate) fn start_as_rival(&mut self, env: &mut Env) {
        env.home = self.index;
        self.start(env);
    }

    fn campaign(&mut self, env: &mut Env) {
        let answer = env.election.ask(env.now, (self.index, self.incarnation));
        let waited = env.now - self.asked;
        match (answer, &self.life) {
            (Answer::Leads(term), Life::Standby) => {
                env.note(format_args!("{} is elected, term {term}", self.node()));
                self.open(env, Some(Term(term)));
            }
            (Answer::Follows, Life::Starting(_) | Life::Leading(_)) => {
                return self.leave(env, "it does not lead any more");
            }
            (Answer::Nothing, Life::Starting(_) | Life::Leading(_))
                if !self.stubborn && waited > Duration::from_secs(5) =>
            {
                return self.leave(env, "it cannot reach the election");
            }
            (Answer::Leads(_), _) => self.asked = env.now,
            (Answer::Follows | Answer::Nothing, _) => {}
        }
        if !self.is_down() {
            self.timer(env, ASK_INTERVAL, Timer::Campaign);
        }
    }

    fn open(&mut self, env: &mut Env, term: Option<Term>) {
        self.drive = env.disk.drive();
        let opening = Journal::open(self.drive.clone(), term);
        self.opened(env, opening);
    }

    /// Prepares to take over in the midst of what another process does.
    pub(crate) fn prepare_to_open(&mut self, env: &mut Env) -> Meanwhile {
        let term = self.usurp(env);
        let (drive, slot) = (env.disk.drive(), Slot::default());
        self.opening = Some((drive.clone(), slot.clone()));
        Box::new(move || {
            let opening = Journal::open(drive, term);
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(opening);
            }
        })
    }

    /// The term it may lead under from now on, whoever leads.
    fn usurp(&mut self, env: &mut Env) -> Option<Term> {
        if env.scenario.elected {
            return Some(Term(env.election.usurp(env.now, (self.index, self.incarnation))));
        }
        self.incarnation += 1;
        None
    }

    /// Goes on with an opening that has happened.
    pub(crate) fn take_opening(&mut self, env: &mut Env) {
        let happened = |(_, slot): &(Arc<Drive>, Slot)| slot.lock().ok()?.take();
        let Some(opening) = self.opening.as_ref().and_then(happened) else { return };
        if let Some((drive, _)) = self.opening.take()
            && !matches!(self.life, Life::Leading(_) | Life::Starting(_))
        {
            self.drive = drive;
            env.note(format_args!("{} takes over in the midst of a commit", self.node()));
            self.opened(env, opening);
        }
    }

    /// Has the takeover that comes next interrupted by something.
    pub(crate) fn open_interrupted(&mut self, env: &mut Env, calls: u64, happens: Meanwhile) {
        let term = self.usurp(env);
        self.drive = env.disk.drive();
        self.drive.meanwhile(calls, happens);
        let opening = Journal::open(self.drive.clone(), term);
        if let Some(happens) = self.drive.take_meanwhile() {
            happens();
        }
        self.opened(env, opening);
    }

    pub(crate) fn can_be_rival(&self, env: &Env) -> bool {
        match self.life {
            Life::Down => !env.scenario.elected,
            Life::Standby => true,
            Life::Starting(_) | Life::Leading(_) => false,
        }
    }

    fn opened(&mut self, env: &mut Env, opening: Opening) {
        env.totals.takeovers += 1;
        let opened = match opening {
            Ok(opened) => opened,
            Err(error) => return self.not_opened(env, error),
        };
        let used = opened.snapshot.is_some();
        let recovered = self.take_up(env, opened);
        if self.drive.is_dead() {
            return self.die(env, Exit::Told);
        }
        match recovered {
            Ok(recovered) => {
                env.totals.snapshots_used += u64::from(used);
                let (next, term) = (recovered.next, recovered.term);
                env.note(format_args!("{} takes over: term {term}, {next} records", self.node()));
                env.oracle.on_taken_over(term, next, &env.worst());
                env.oracle.on_rebuilt(next, &recovered.run.engine);
                env.home = self.index;
                self.life = Life::Starting(Box::new(recovered));
                let wait = self.dice.time(START[0], START[1]);
                self.timer(env, wait, Timer::Lead);
            }
            Err(error) => self.not_recovered(env, error),
        }
    }

    fn take_up(&self, env: &Env, mut opened: Opened) -> Result<Recovered, RecoveryError> {
        if env.has(Plant::SkipTail) && opened.snapshot.is_some() {
            while opened.records.next().is_some() {}
        }
        recovery::take_up(&env.scenario.config, opened)
    }

    fn not_opened(&mut self, env: &mut Env, error: OpenError) {
        match error {
            OpenError::Read(ReadError::Storage(_))
            | OpenError::Storage(_)
            | OpenError::Deposed { .. }
            | OpenError::Contended => {}
            OpenError::Read(_) | OpenError::TailMissing { .. } => {
                env.oracle.broken("J1", format!("the journal cannot be opened: {error}"));
            }
        }
        self.leave(env, &error.to_string());
    }

    fn not_recovered(&mut self, env: &mut Env, error: RecoveryError) {
        let passes =
            |error: &ReadError| matches!(error, ReadError::Storage(_) | ReadError::CutBack(_));
        match &error {
            RecoveryError::Read(read) if passes(read) => {}
            RecoveryError::Rebuild(RebuildError::Read(read)) if passes(read) => {}
            RecoveryError::Storage(_) | RecoveryError::Append(_) => {}
            _ => env.oracle.broken("J4", format!("the run cannot be taken up: {error}")),
        }
        self.leave(env, &error.to_string());
    }

    // === leading ===

    fn lead(&mut self, env: &mut Env) {
        let Life::Starting(recovered) = std::mem::replace(&mut self.life, Life::Standby) else {
            return;
        };
        let ends = Ends::of(&recovered);
        let dice = Dice::new(env.seed ^ self.incarnation, Part::Coordinators, 100 + self.index);
        let committer = Committer::new(self.node(), self.incarnation, recovered.journal, dice);
        let driver = Driver::new(env, self.clock(env.now), recovered.run, ends);
        self.life = Life::Leading(Box::new(Leading { driver, committer, deadline: None }));
        env.serving[self.index] = true;
        env.note(format_args!("{} leads", self.node()));
        self.turn(env);
    }

    /// Something reached an end of a link of this process.
    pub(crate) fn receive(&mut self, env: &mut Env, link: LinkId, message: Option<Message>) {
        let Life::Leading(leading) = &mut self.life else { return };
        match message {
            Some(message) => leading.driver.receive(env, link, message),
            None => leading.driver.link_ended(link),
        }
        self.turn(env);
    }

    pub(crate) fn on_timer(&mut self, env: &mut Env, timer: Timer) {
        match (timer, &mut self.life) {
            (Timer::Campaign, _) => self.campaign(env),
            (Timer::Lead, Life::Starting(_)) => self.lead(env),
            (Timer::Commit, Life::Leading(leading)) => {
                leading.committer.work(env);
                self.turn(env);
            }
            (Timer::Outcome, Life::Leading(leading)) => {
                let outcome = leading.committer.next_outcome();
                let left = outcome.map_or(Ok(()), |one| leading.driver.on_outcome(env, one));
                match left {
                    Ok(()) => self.turn(env),
                    Err(leave) => self.on_leave(env, leave),
                }
            }
            (Timer::Deadline, Life::Leading(leading)) => {
                leading.deadline = None;
                self.turn(env);
            }
            _ => {}
        }
    }

    /// Lets the driver do what it can, and the journal's thread with it.
    fn turn(&mut self, env: &mut Env) {
        if self.drive.is_dead() {
            return self.die(env, Exit::Told);
        }
        let (node, incarnation, clock) = (self.node(), self.incarnation, self.clock(env.now));
        let Life::Leading(leading) = &mut self.life else { return };
        let left = leading.driver.turn(env, clock);
        for request in std::mem::take(&mut leading.driver.requests) {
            leading.committer.push(env, request);
        }
        if let Err(leave) = left {
            return self.on_leave(env, leave);
        }
        let due = leading.driver.next_deadline().map(|after| env.now + after);
        if let Some(due) = due
            && leading.deadline.is_none_or(|known| due < known)
        {
            leading.deadline = Some(due);
            env.timer(node, incarnation, due, Timer::Deadline);
        }
    }

    fn on_leave(&mut self, env: &mut Env, leave: Leave) {
        match leave {
            Leave::Finished => {
                let Life::Leading(leading) = &mut self.life else { return };
                let closed = leading.committer.close();
                env.note(format_args!("{} has finished: {closed:?}", self.node()));
                env.oracle.on_exit();
                env.finished = true;
                self.go_down(env, Exit::Told);
            }
            Leave::Deposed => {
                env.totals.fenced += 1;
                self.leave(env, "somebody else leads");
            }
            Leave::Failed => self.leave(env, "the journal failed"),
        }
    }

    // === ending ===

    /// The process ends of itself.
    fn leave(&mut self, env: &mut Env, why: &str) {
        env.note(format_args!("{} leaves: {why}", self.node()));
        self.go_down(env, Exit::Told);
    }

    /// The process is gone.
    pub(crate) fn die(&mut self, env: &mut Env, exit: Exit) {
        if self.is_down() {
            return;
        }
        env.totals.crashes += 1;
        env.note(format_args!("{} dies", self.node()));
        if let (true, Life::Leading(leading)) = (env.has(Plant::FlushOnCrash), &mut self.life) {
            leading.driver.flush(env);
        }
        self.go_down(env, exit);
    }

    fn go_down(&mut self, env: &mut Env, exit: Exit) {
        if let Life::Leading(leading) = std::mem::replace(&mut self.life, Life::Down)
            && let Some((next, engine)) = leading.driver.into_engine()
        {
            env.oracle.remember(next, engine);
        }
        self.incarnation += 1;
        env.serving[self.index] = false;
        env.network.leave((env.now, &mut env.agenda), self.node(), exit);
        if self.is_supervised(env) {
            let at = env.now + self.dice.millis(RESTART_MS[0], RESTART_MS[1]);
            env.agenda.note(at, What::Start(self.node()));
        }
    }

    /// Dies at a call of the disk, some calls from now.
    pub(crate) fn die_after(&self, calls: u64) {
        if !self.is_down() {
            self.drive.die_after(calls);
        }
    }

    /// Something happens at a call of the disk, some calls from now.
    pub(crate) fn interrupt(&self, calls: u64, happens: Meanwhile) {
        self.drive.meanwhile(calls, happens);
    }

    /// What was to happen in the midst of something does not happen any more.
    pub(crate) fn forget_twists(&mut self) {
        self.opening = None;
        drop(self.drive.take_meanwhile());
    }

    /// Commits in the midst of a takeover by a rival.
    pub(crate) fn commit_during(&mut self, env: &mut Env, rival: &mut Self, calls: u64) {
        let Life::Leading(leading) = &mut self.life else { return };
        let Some((mut journal, group)) = leading.committer.lend() else {
            return rival.open_interrupted(env, calls, Box::new(|| {}));
        };
        let slot = Arc::new(Mutex::new(None));
        let place = slot.clone();
        let commit = Box::new(move || {
            let appended = journal.append(&group);
            if let Ok(mut place) = place.lock() {
                *place = Some((journal, appended));
            }
        });
        rival.open_interrupted(env, calls, commit);
        let done = slot.lock().ok().and_then(|mut slot| slot.take());
        if let Some((journal, appended)) = done {
            leading.committer.done(env, journal, appended);
        }
        self.turn(env);
    }

    // === for the observers ===

    pub(crate) fn sizes(&self) -> Option<Sizes> {
        match &self.life {
            Life::Leading(leading) => Some(leading.driver.sizes()),
            _ => None,
        }
    }
}
