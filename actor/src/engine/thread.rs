//! The engine's thread: decoding is heavy and must not hold up the session's heartbeats.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{Engine, Mailbox, Outcome, Report, mailbox::Inbox};
use crate::counters::Counters;

/// How often an engine without work looks up, so that its idle time is counted while it waits.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// Reports not yet taken by the session, per slot. A freed slot is filled again only after its report
/// was taken, so one session has at most one per slot; two cover those of the session before it.
/// The engine blocks when they are full.
const REPORTS_PER_SLOT: usize = 2;

/// A running engine.
#[derive(Debug)]
pub struct EngineHandle {
    /// Where to send it work.
    pub mailbox: Arc<Mailbox>,
    /// What became of the work.
    pub reports: mpsc::Receiver<Report>,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// Its thread; it ends after [`Mailbox::stop`].
    pub thread: thread::JoinHandle<()>,
}

/// Runs `engine` on a thread of its own.
///
/// # Errors
/// The system starts no more threads.
pub fn spawn(engine: Engine) -> io::Result<EngineHandle> {
    let mailbox = Arc::new(Mailbox::new(engine.slots()));
    let (sender, reports) = mpsc::channel(REPORTS_PER_SLOT * engine.slots().max(1));
    let (inbox, counters) = (Arc::clone(&mailbox), engine.counters());
    let builder = thread::Builder::new().name("engine".into());
    let thread = builder.spawn(move || work(engine, &inbox, &sender))?;
    Ok(EngineHandle { mailbox, reports, counters, thread })
}

fn work(mut engine: Engine, mailbox: &Mailbox, outbox: &mpsc::Sender<Report>) {
    let counters = engine.counters();
    loop {
        let inbox = if engine.is_runnable() {
            mailbox.take()
        } else {
            let since = Instant::now();
            let inbox = mailbox.wait(IDLE_TICK);
            counters.add_idle(since.elapsed());
            inbox
        };
        let stopped = inbox.stopped;
        let mut reports = obey(&mut engine, inbox);
        if stopped {
            return;
        }
        reports.extend(engine.step());
        for report in reports {
            if outbox.blocking_send(report).is_err() {
                return;
            }
        }
    }
}

/// Does what the inbox says, in its order.
fn obey(engine: &mut Engine, inbox: Inbox) -> Vec<Report> {
    let mut reports = Vec::new();
    if inbox.abandoned {
        engine.abandon();
    }
    if let Some(staged) = inbox.staged {
        match engine.adopt(&staged) {
            Ok(()) => tracing::info!("adopted {}", staged.policy_version),
            Err(error) => tracing::error!("{} is not adopted: {error}", staged.policy_version),
        }
    }
    for (generation, assignment) in inbox.assignments {
        let episode_id = assignment.episode_id;
        if let Err(error) = engine.assign(generation, assignment) {
            let outcome = Outcome::Returned { episode_id, reason: error.to_string() };
            reports.push(Report { generation, outcome });
        }
    }
    reports.extend(inbox.cancelled.iter().filter_map(|episode| engine.cancel(*episode)));
    if inbox.draining {
        reports.extend(engine.return_waiting("the actor drains"));
    }
    reports
}
