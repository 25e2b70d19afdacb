//! The engine's thread: decoding is heavy and must not hold up the session's heartbeats.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{AdoptError, Adoption, Engine, Mailbox, Outcome, ReadyPolicy, Report, mailbox::Inbox};
use crate::{counters::Counters, decoder::DecodeError, weights::StagedPolicy};

/// How often an engine without work looks up, so that its idle time is counted while it waits.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// Reports not yet taken by the session, per slot. A freed slot is filled again only after its report
/// was taken, so a run has at most one per slot; two cover those of the run before it.
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

fn work(mut engine: Engine, mailbox: &Arc<Mailbox>, outbox: &mpsc::Sender<Report>) {
    let counters = engine.counters();
    let mut adoptions = Adoptions { mailbox: Arc::clone(mailbox), under_way: None, next: None };
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
        let mut reports = obey(&mut engine, &mut adoptions, inbox);
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
fn obey(engine: &mut Engine, adoptions: &mut Adoptions, inbox: Inbox) -> Vec<Report> {
    let mut reports = Vec::new();
    if inbox.abandoned {
        engine.abandon();
    }
    if let Some(ready) = inbox.ready {
        adoptions.end(engine, ready);
    }
    adoptions.take(engine, inbox.staged);
    for (run, assignment) in inbox.assignments {
        let episode_id = assignment.episode_id;
        if let Err(error) = engine.assign(run, assignment) {
            let outcome = Outcome::Returned { episode_id, reason: error.to_string(), tokens: 0 };
            reports.push(Report { run, outcome });
        }
    }
    reports.extend(inbox.cancelled.iter().filter_map(|episode| engine.cancel(*episode)));
    if inbox.draining {
        reports.extend(engine.return_waiting("the actor drains"));
    }
    reports
}

/// Policies on their way into the engine: one at a time is made ready, on a thread of its own, while
/// the engine decodes under the one it has.
struct Adoptions {
    mailbox: Arc<Mailbox>,
    under_way: Option<thread::JoinHandle<()>>,
    /// The newest that came meanwhile.
    next: Option<StagedPolicy>,
}

impl Adoptions {
    fn take(&mut self, engine: &mut Engine, staged: Option<StagedPolicy>) {
        self.next = staged.or(self.next.take());
        let Some(staged) = self.next.take_if(|_| self.under_way.is_none()) else { return };
        match engine.begin_adoption(&staged) {
            Ok(Some(adoption)) => self.begin(adoption),
            Ok(None) => tracing::info!("adopted {}", staged.policy_version),
            Err(error) => tracing::error!("{} is not adopted: {error}", staged.policy_version),
        }
    }

    fn begin(&mut self, adoption: Adoption) {
        let mailbox = Arc::clone(&self.mailbox);
        let complete = move || {
            // Whatever happens in the backend, the engine hears that this one is over.
            let completed = catch_unwind(AssertUnwindSafe(|| adoption.complete()));
            let panicked = |_| Err(DecodeError("the backend panicked: a bug".into()).into());
            mailbox.made_ready(completed.unwrap_or_else(panicked));
        };
        match thread::Builder::new().name("adopt".into()).spawn(complete) {
            Ok(thread) => self.under_way = Some(thread),
            Err(error) => {
                let error = DecodeError(format!("no thread to make it ready on: {error}"));
                self.mailbox.made_ready(Err(error.into()));
            }
        }
    }

    fn end(&mut self, engine: &mut Engine, ready: Result<ReadyPolicy, AdoptError>) {
        self.under_way = None;
        let version = ready.as_ref().map(|ready| ready.policy_version);
        let version = version.map_or_else(|_| "a policy".into(), |version| version.to_string());
        match ready.and_then(|ready| engine.adopt_ready(ready)) {
            Ok(()) => tracing::info!("adopted {version}"),
            Err(error) => tracing::error!("{version} is not adopted: {error}"),
        }
    }
}

impl Drop for Adoptions {
    fn drop(&mut self) {
        // A process must not end while a backend is at work.
        if let Some(thread) = self.under_way.take() {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;
    use crate::{
        decoder::{Decoder, DecoderFactory, MakeReady, ReadyWeights, Sampled, Sampling},
        testing::{engine_of, staged},
    };

    /// Weights that are made ready when the test says so.
    struct Gated {
        begun: SyncSender<u64>,
        gate: Arc<std::sync::Mutex<Receiver<bool>>>,
    }

    impl DecoderFactory for Gated {
        fn build(
            &mut self,
            _staged: &StagedPolicy,
            _slots: usize,
            _tokens_max: usize,
        ) -> Result<Box<dyn Decoder>, DecodeError> {
            Ok(Box::new(Self { begun: self.begun.clone(), gate: Arc::clone(&self.gate) }))
        }
    }

    impl Decoder for Gated {
        fn open(&mut self, _slot: usize, _sampling: Sampling) {}
        fn feed(&mut self, _slot: usize, _tokens: &[u32]) {}
        fn close(&mut self, _slot: usize) {}
        fn step(&mut self, _want: &[usize]) -> Result<Vec<Sampled>, DecodeError> {
            Err(DecodeError("nobody asks".into()))
        }
        fn make_ready(&self, staged: &StagedPolicy) -> MakeReady {
            let (begun, gate) = (self.begun.clone(), Arc::clone(&self.gate));
            let version = staged.policy_version.0;
            Box::new(move || {
                begun.send(version).expect("the test listens");
                let good = gate.lock().expect("no panic").recv().expect("the test speaks");
                assert!(good, "the backend breaks down");
                Ok(ReadyWeights::new(()))
            })
        }
        fn swap(&mut self, _ready: ReadyWeights) -> Result<(), DecodeError> {
            Ok(())
        }
    }

    #[test]
    fn the_newest_policy_waits_for_the_one_that_is_made_ready() {
        let (begun, begins) = sync_channel(8);
        let (open, gate) = sync_channel(8);
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let (engine, _hand) = engine_of(Gated { begun, gate }, 1);
        let handle = spawn(engine).expect("a thread");
        let version = || handle.counters.policy_version();
        let until = |wanted| {
            while version() != wanted {
                thread::yield_now();
            }
        };
        // The first is adopted at once.
        handle.mailbox.stage(staged(1));
        until(1);
        handle.mailbox.stage(staged(2));
        assert_eq!(begins.recv(), Ok(2));
        handle.mailbox.stage(staged(3));
        handle.mailbox.stage(staged(4));
        assert_eq!(version(), 1, "it decodes on under the one it has");
        open.send(true).expect("a gate");
        // 3 was replaced before its turn came.
        assert_eq!(begins.recv(), Ok(4));
        until(2);
        // A backend that breaks down leaves the one in use, and takes the next.
        open.send(false).expect("a gate");
        handle.mailbox.stage(staged(5));
        assert_eq!(begins.recv(), Ok(5));
        assert_eq!(version(), 2);
        open.send(true).expect("a gate");
        until(5);
        handle.mailbox.stop();
        handle.thread.join().expect("no panic");
    }
}
