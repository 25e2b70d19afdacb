//! Hearing of every change under a prefix, whatever breaks in between.
//!
//! A feed ends when its connection does, when the store has forgotten what it would have to tell, or
//! never: a connection may die without a sign. So the whole prefix is read again after every end, and
//! after a silence, and what differs from what was known is told like any other change.

use std::{sync::Arc, time::Duration};

use ballast_runtime::backoff::Backoff;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Store, StoreError,
    entry::{Change, Revision},
    outage::Outage,
    view::View,
};

/// News that wait for their reader. When there is no room the feed is not read, and the store keeps
/// what it has to tell or ends the feed.
const NEWS_MAX: usize = 16;
const RETRY_INITIAL: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What was heard at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Everything up to here has been told.
    pub revision: Revision,
    /// In order. Empty after a reading that found no difference.
    pub changes: Vec<Change>,
}

/// A prefix that is watched, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    news: mpsc::Receiver<Result<News, StoreError>>,
}

impl Watch {
    /// Starts to watch. The first news are everything there is. A feed that is silent for `patience`
    /// is not believed: the prefix is read again. `seed` spreads the attempts of a fleet.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, prefix: String, patience: Duration, seed: u64) -> Self {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, seed);
        let view = View::default();
        let watcher = Watcher { store, prefix, patience, news: sender.clone(), view, backoff };
        tokio::spawn(async move {
            tokio::select! {
                () = watcher.run() => {}
                () = sender.closed() => {}
            }
        });
        Self { news }
    }

    /// Waits for news. `None` after an error, which only a setting or a fresh start can help.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<News, StoreError>> {
        self.news.recv().await
    }
}

struct Watcher {
    store: Arc<dyn Store>,
    prefix: String,
    patience: Duration,
    news: mpsc::Sender<Result<News, StoreError>>,
    view: View,
    backoff: Backoff,
}

impl Watcher {
    async fn run(mut self) {
        let what = format!("watching {}", self.prefix);
        let mut outage = Outage::default();
        loop {
            match self.follow(&what, &mut outage).await {
                // Silence.
                Ok(()) => continue,
                Err(StoreError::Gap(cause)) => tracing::debug!("{what}: reading again: {cause}"),
                Err(error) if error.is_transient() => outage.failed(&what, &error),
                Err(error) => {
                    // A reader that is gone does not need to know.
                    let _gone = self.news.send(Err(error)).await;
                    return;
                }
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// Reads everything, then tells changes until there is silence.
    async fn follow(&mut self, what: &str, outage: &mut Outage) -> Result<(), StoreError> {
        let snapshot = self.store.read(&self.prefix).await?;
        let (seen, found) = (self.view.revision(), snapshot.revision);
        if found < seen {
            return Err(StoreError::Rewound { seen, found });
        }
        outage.over(what);
        let changes = self.view.resync(snapshot);
        self.tell(changes).await;
        let mut feed = self.store.follow(&self.prefix, found).await?;
        self.backoff.reset();
        loop {
            let Ok(changes) = timeout(self.patience, feed.next()).await else { return Ok(()) };
            let changes = self.view.apply(changes?);
            if !changes.is_empty() {
                self.tell(changes).await;
            }
        }
    }

    /// Waits for room. A reader that is gone ends the whole task, in `start`.
    async fn tell(&mut self, changes: Vec<Change>) {
        let news = News { revision: self.view.revision(), changes };
        let _gone = self.news.send(Ok(news)).await;
    }
}

#[cfg(test)]
#[path = "watch_test.rs"]
mod tests;
