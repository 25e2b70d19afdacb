//! One request under way: asked for, read, and told to the decoder token by token.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    Failure,
    completion::{Terms, Token},
    server::Server,
    sse::Events,
};
use crate::decoder::Sampling;

/// What a request has to say.
#[derive(Debug)]
pub(super) enum News {
    /// The next token.
    Token(Token),
    /// The completion is whole.
    Ended,
    /// It ended too early.
    Failed(Failure),
}

/// News of one request.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Slot of the sequence.
    pub(super) slot: usize,
    /// Number of the request: a slot may have another one by now.
    pub(super) request: u64,
    pub(super) news: News,
}

/// A request and where its news go.
pub(super) struct Stream {
    pub(super) server: Arc<Server>,
    pub(super) terms: Arc<Terms>,
    pub(super) sampling: Sampling,
    pub(super) body: Value,
    pub(super) tokens_max: usize,
    /// Tokens the network has an embedding for.
    pub(super) vocab_size: usize,
    pub(super) slot: usize,
    pub(super) request: u64,
    /// Bounded: a decoder that is busy elsewhere makes the server wait.
    pub(super) outlet: mpsc::Sender<Arrival>,
}

impl Stream {
    /// Runs to the end; exactly one of `Ended` and `Failed` is told last. Dropping it closes the
    /// connection.
    pub(super) async fn run(self) {
        let last = match self.follow().await {
            Ok(()) => News::Ended,
            Err(failure) => News::Failed(failure),
        };
        self.tell(last).await;
    }

    async fn follow(&self) -> Result<(), Failure> {
        let mut answer = self.server.complete(&self.body, self.request).await?;
        let (mut events, mut count) = (Events::default(), 0);
        while let Some(bytes) = answer.piece().await? {
            let data = events.push(&bytes).map_err(|error| Failure::Refused(error.into()))?;
            for data in data.iter().filter(|data| *data != "[DONE]") {
                let chunk = self.terms.read(data, &self.sampling)?;
                for token in chunk.tokens {
                    count += 1;
                    self.check(count, &token)?;
                    self.tell(News::Token(token)).await;
                }
                if chunk.finished {
                    return Ok(());
                }
            }
        }
        Err(Failure::Interrupted("the stream ended before the completion did".into()))
    }

    fn check(&self, count: usize, token: &Token) -> Result<(), Failure> {
        if count > self.tokens_max {
            let what =
                format!("the server sent more than the {} tokens asked for", self.tokens_max);
            return Err(Failure::Refused(what));
        }
        if token.token as usize >= self.vocab_size {
            let (id, vocab_size) = (token.token, self.vocab_size);
            return Err(Failure::Refused(format!(
                "the server sampled token {id} and this model has {vocab_size}; start it with the \
                 checkpoint that the run began with"
            )));
        }
        Ok(())
    }

    async fn tell(&self, news: News) {
        let Self { slot, request, .. } = *self;
        if self.outlet.send(Arrival { slot, request, news }).await.is_err() {
            tracing::debug!("the decoder is gone before its last request ended");
        }
    }
}
