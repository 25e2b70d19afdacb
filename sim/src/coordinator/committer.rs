//! The journal's thread, as `journal::writer` has it: it commits whatever has queued while the last
//! commit ran, and keeps trying while the disk refuses.

use std::{collections::VecDeque, time::Duration};

use ballast_coordinator::journal::{
    AppendError, COMMIT_RECORDS_MAX, Journal, Location, Outcome, Position, Record, Request,
};
use ballast_runtime::backoff::Backoff;

use super::Loan;
use crate::{agenda::Timer, dice::Dice, env::Env, node::Node, plant::Plant};

const COMMIT: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(8)];
const COMMIT_SLOW: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(8)];
const REPORT: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(2)];
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The thread and its two queues.
#[derive(Debug)]
pub(super) struct Committer {
    node: Node,
    incarnation: u64,
    /// Away while somebody else commits for it.
    journal: Option<Journal>,
    term: u64,
    requests: VecDeque<Request>,
    /// What is being committed.
    group: Vec<Record>,
    outcomes: VecDeque<Outcome>,
    /// What was reported last, while the disk refuses.
    problem: Option<String>,
    backoff: Backoff,
    /// Whether it is at work, or about to be.
    busy: bool,
    dice: Dice,
}

impl Committer {
    pub(super) fn new(node: Node, incarnation: u64, journal: Journal, mut dice: Dice) -> Self {
        Self {
            node,
            incarnation,
            term: journal.term().0,
            journal: Some(journal),
            requests: VecDeque::new(),
            group: Vec::new(),
            outcomes: VecDeque::new(),
            problem: None,
            backoff: Backoff::new(RETRY_INITIAL, RETRY_MAX, dice.number()),
            busy: false,
            dice,
        }
    }

    pub(super) fn push(&mut self, env: &mut Env, request: Request) {
        self.requests.push_back(request);
        if !self.busy {
            self.busy = true;
            self.work_in(env, env.slow_disk);
        }
    }

    fn work_in(&mut self, env: &mut Env, slow: bool) {
        let range = if slow { COMMIT_SLOW } else { COMMIT };
        let at = env.now + self.dice.time(range[0], range[1]);
        env.timer(self.node, self.incarnation, at, Timer::Commit);
    }

    /// Does what is due.
    pub(super) fn work(&mut self, env: &mut Env) {
        self.gather();
        let Some(mut journal) = self.journal.take() else { return };
        if self.group.is_empty() {
            if let Some(Request::Snapshot { position, bytes }) = self.requests.pop_front() {
                let outcome = match journal.put_snapshot(position, &bytes) {
                    Ok(()) => Outcome::SnapshotKept(position),
                    Err(AppendError::Unavailable(problem)) => Outcome::Refused(problem),
                    Err(AppendError::Fenced { .. }) => Outcome::Fenced("a newer term".into()),
                    Err(error) => Outcome::Failed(error.to_string()),
                };
                self.report(env, outcome);
            }
            self.journal = Some(journal);
            return self.go_on(env);
        }
        let appended = journal.append(&self.group);
        self.done(env, journal, appended);
    }

    /// Takes note of what became of the records at hand.
    pub(super) fn done(
        &mut self,
        env: &mut Env,
        journal: Journal,
        appended: Result<Vec<Location>, AppendError>,
    ) {
        self.journal = Some(journal);
        match appended {
            Ok(locations) => {
                env.totals.commits += 1;
                env.totals.records += locations.len() as u64;
                env.oracle.on_appended(self.term, &self.group, &locations, &env.worst());
                self.group.clear();
                self.backoff.reset();
                if self.problem.take().is_some() && !env.has(Plant::StayBlocked) {
                    self.report(env, Outcome::Recovered);
                }
                if let Some(last) = locations.last() {
                    let up_to = Position(last.position.0 + 1);
                    env.note(format_args!("{} has {up_to} records durable", self.node));
                    self.report(env, Outcome::Durable { up_to, locations });
                }
                self.go_on(env);
            }
            Err(AppendError::Unavailable(problem)) => {
                if self.problem.as_ref() != Some(&problem) {
                    self.report(env, Outcome::Blocked(problem.clone()));
                    self.problem = Some(problem);
                }
                let at = env.now + self.backoff.next_delay();
                env.timer(self.node, self.incarnation, at, Timer::Commit);
            }
            Err(error @ AppendError::Fenced { .. }) => {
                self.report(env, Outcome::Fenced(error.to_string()));
            }
            Err(error) => self.report(env, Outcome::Failed(error.to_string())),
        }
    }

    fn gather(&mut self) {
        if !self.group.is_empty() {
            return;
        }
        while self.group.len() < COMMIT_RECORDS_MAX {
            match self.requests.pop_front() {
                Some(Request::Append { record, .. }) => self.group.push(record),
                Some(other) => {
                    self.requests.push_front(other);
                    return;
                }
                None => return,
            }
        }
    }

    fn go_on(&mut self, env: &mut Env) {
        self.busy = !self.requests.is_empty();
        if self.busy {
            self.work_in(env, env.slow_disk);
        }
    }

    fn report(&mut self, env: &mut Env, outcome: Outcome) {
        self.outcomes.push_back(outcome);
        let at = env.now + self.dice.time(REPORT[0], REPORT[1]);
        env.timer(self.node, self.incarnation, at, Timer::Outcome);
    }

    pub(super) fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// The commit that is due, for somebody who carries it out in the midst of something else.
    pub(super) fn lend(&mut self) -> Option<Loan> {
        self.gather();
        if self.group.is_empty() {
            return None;
        }
        Some((self.journal.take()?, self.group.clone()))
    }

    /// Commits what is left, and ends in order.
    pub(super) fn close(&mut self) -> Result<(), AppendError> {
        self.gather();
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        journal.append(&self.group)?;
        journal.close()
    }
}
