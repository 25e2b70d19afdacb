//! Runs an election against a store, and hands out the leadership that it wins.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Store, StoreError, Term,
    election::{Command, Election, Event, LeaderKey, Question, Reason, Sighting, Timing},
    entry::{Entry, Expect, Guard, Outcome, Put},
    lease::attempt_max,
    outage::Outage,
    watch::{News, Watch},
};

/// Longest wait of [`Leadership::resign`] for the store.
const RESIGN_MAX: Duration = Duration::from_secs(2);
/// A standby reads the leader's key this often in the time to live of a lease, even where nothing is
/// heard.
const READINGS_PER_TTL: u32 = 2;

/// The right to lead, under one term, until it is lost. Dropping it resigns, in the background.
#[derive(Debug)]
pub struct Leadership {
    term: Term,
    lost: CancellationToken,
    held_until: watch::Receiver<Option<Instant>>,
    over: CancellationToken,
    abandon: DropGuard,
}

impl Leadership {
    /// The term: what every write of this leadership carries.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Cancelled when the leadership is lost or given up. It is lost before anybody else can lead.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Whether it is held at this instant, by the clock. A process that was stopped and goes on may
    /// run other tasks before the one that cancels [`Self::lost`]; this does not depend on any.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let until = *self.held_until.borrow();
        !self.lost.is_cancelled() && until.is_none_or(|until| Instant::now() < until)
    }

    /// Gives it up, and waits until the next one can lead, or until the store has not answered for
    /// a while: then it ends with its lease.
    pub async fn resign(self) {
        let Self { over, abandon, .. } = self;
        drop(abandon);
        if timeout(RESIGN_MAX, over.cancelled()).await.is_err() {
            tracing::warn!("the store does not answer; the leadership ends with its lease");
        }
    }
}

/// Waits until `key` could be created with `value`, and holds it from then on. Dropping the future
/// ends the attempt.
pub(super) async fn campaign(
    store: Arc<dyn Store>,
    key: String,
    value: Vec<u8>,
    timing: Timing,
) -> Result<Leadership, StoreError> {
    let (result, won) = oneshot::channel();
    let (held, held_until) = watch::channel(None);
    let (abandoned, lost) = (CancellationToken::new(), CancellationToken::new());
    let over = CancellationToken::new();
    let driver = Driver {
        watch: Watch::start(
            Arc::clone(&store),
            key.clone(),
            timing.ttl / READINGS_PER_TTL,
            timing.seed,
        ),
        store,
        key,
        value,
        ttl: timing.ttl,
        election: Election::new(timing),
        started: Instant::now(),
        seen: None,
        result: Some(result),
        held,
        lost: lost.clone(),
        refusal: None,
        outage: Outage::default(),
    };
    let abandon = abandoned.clone().drop_guard();
    let task_over = over.clone().drop_guard();
    tokio::spawn(async move {
        Box::pin(driver.run(abandoned)).await;
        drop(task_over);
    });
    // The driver ends without a result only when the runtime does, and this future with it.
    match won.await {
        Ok(Ok(term)) => Ok(Leadership { term, lost, held_until, over, abandon }),
        Ok(Err(error)) => Err(error),
        Err(_ended) => Err(StoreError::LeaseGone),
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Event, StoreError>> + Send>>;

struct Driver {
    store: Arc<dyn Store>,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
    election: Election,
    /// The election's time 0.
    started: Instant,
    watch: Watch,
    /// The key as the watch told it.
    seen: Option<LeaderKey>,
    /// Where the term goes, or why there will be none.
    result: Option<oneshot::Sender<Result<Term, StoreError>>>,
    held: watch::Sender<Option<Instant>>,
    lost: CancellationToken,
    /// Why the store refused.
    refusal: Option<StoreError>,
    outage: Outage,
}

impl Driver {
    async fn run(mut self, abandoned: CancellationToken) {
        let mut answer: Option<Answer> = None;
        let (mut has_abandoned, mut watching) = (false, true);
        loop {
            // Every branch is cancel-safe: a question goes on where it was. What ends the leadership
            // comes before what prolongs it.
            let event = tokio::select! {
                biased;
                () = abandoned.cancelled(), if !has_abandoned => {
                    has_abandoned = true;
                    Event::Abandoned
                }
                () = due(self.started, self.election.deadline()) => Event::Deadline,
                event = answered(&mut answer) => self.on_answer(event),
                news = self.watch.next(), if watching => {
                    watching = matches!(news, Some(Ok(_)));
                    self.on_news(news)
                }
            };
            let commands = self.election.handle(self.started.elapsed(), event);
            if let Some(until) = self.election.held_until() {
                self.held.send_replace(Some(self.started + until));
            }
            for command in commands {
                match command {
                    Command::Ask(question) => answer = Some(self.ask(question)),
                    Command::Lead(term) => self.tell(Ok(Term(term.0))),
                    Command::Stop(reason) => self.stop(reason),
                    Command::GiveUp => {
                        let refusal = self.refusal.take().unwrap_or(StoreError::LeaseGone);
                        self.tell(Err(refusal));
                    }
                    Command::End => return,
                }
            }
        }
    }

    /// Whoever waited for it may be gone: then the attempt is abandoned, which is heard on its own.
    fn tell(&mut self, result: Result<Term, StoreError>) {
        if let Some(sender) = self.result.take() {
            let _gone = sender.send(result);
        }
    }

    fn stop(&mut self, reason: Reason) {
        self.lost.cancel();
        match reason {
            Reason::Resigned => tracing::info!("gave up the leadership"),
            Reason::Unanswered => tracing::error!(
                "leadership lost: the store has not answered for almost the time of a lease"
            ),
            Reason::LeaseGone => tracing::error!("leadership lost: the store dropped its lease"),
            Reason::KeyGone => {
                tracing::error!("leadership lost: `{}` was deleted in the store", self.key);
            }
        }
    }

    fn on_news(&mut self, news: Option<Result<News, StoreError>>) -> Event {
        match news {
            Some(Ok(News { revision, changes })) => {
                let ours = changes.into_iter().rfind(|change| change.key == self.key);
                if let Some(change) = ours {
                    self.seen = change.entry.as_ref().map(leader_key);
                }
                Event::Heard(Sighting { revision, key: self.seen })
            }
            Some(Err(error)) => {
                self.refusal = Some(error);
                Event::Refused
            }
            None => Event::Refused,
        }
    }

    fn on_answer(&mut self, answer: Result<Event, StoreError>) -> Event {
        let what = "leading or trying to";
        match answer {
            Ok(Event::Failed) => {
                self.outage.failed(what, "the store did not answer in time");
                Event::Failed
            }
            Ok(event) => {
                self.outage.over(what);
                event
            }
            Err(StoreError::LeaseGone) => Event::LeaseGone,
            Err(error) => {
                self.outage.failed(what, &error);
                let is_transient = error.is_transient();
                self.refusal = Some(error);
                if is_transient { Event::Failed } else { Event::Refused }
            }
        }
    }

    fn ask(&self, question: Question) -> Answer {
        let store = Arc::clone(&self.store);
        match question {
            Question::Grant => {
                let (started, ttl) = (self.started, self.ttl);
                Box::pin(async move {
                    let asked = started.elapsed();
                    let grant = store.grant(ttl).await?;
                    Ok(Event::Granted { lease: grant.lease, ttl: grant.ttl, asked })
                })
            }
            Question::Create(lease) => {
                let put = Put::new(self.key.clone(), self.value.clone());
                let free = Guard { key: self.key.clone(), expect: Expect::Absent };
                Box::pin(async move {
                    Ok(match store.put(put?.under(lease), &[free]).await? {
                        Outcome::Done(revision) => Event::Created(revision),
                        Outcome::Refused { revision, found } => {
                            let key = found.first().and_then(Option::as_ref).map(leader_key);
                            Event::Taken(Sighting { revision, key })
                        }
                    })
                })
            }
            Question::KeepAlive(lease) => {
                let (started, attempt_max) = (self.started, attempt_max(self.ttl));
                Box::pin(async move {
                    let asked = started.elapsed();
                    match timeout(attempt_max, store.keep_alive(lease)).await {
                        Ok(kept) => kept.map(|()| Event::Kept { asked }),
                        Err(_) => Ok(Event::Failed),
                    }
                })
            }
            Question::Revoke(lease) => {
                Box::pin(async move { store.revoke(lease).await.map(|()| Event::Revoked) })
            }
        }
    }
}

fn leader_key(entry: &Entry) -> LeaderKey {
    LeaderKey { created: entry.created, lease: entry.lease }
}

/// Waits for a time after `started`, or for ever.
async fn due(started: Instant, at: Option<Duration>) {
    match at {
        Some(at) => sleep_until(started + at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the answer to what was asked, if anything was.
async fn answered(answer: &mut Option<Answer>) -> Result<Event, StoreError> {
    let Some(pending) = answer else { return std::future::pending().await };
    let event = pending.await;
    *answer = None;
    event
}

#[cfg(test)]
#[path = "campaign_test.rs"]
mod tests;
