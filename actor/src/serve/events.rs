//! Sampled tokens to what a client receives: one JSON, or server-sent events ending in `[DONE]`.

use std::{collections::VecDeque, convert::Infallible};

use axum::body::Bytes;
use futures::{Stream, stream};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    openai::{Answer, ApiError},
    sequence::Update,
};
use crate::decoder::DecodeError;

/// Tokens of all choices of a request.
pub type Inlet = mpsc::Receiver<(usize, Result<Update, DecodeError>)>;

/// Waits for every choice to finish.
///
/// # Errors
/// The network failed.
pub async fn whole(
    mut answer: Box<dyn Answer>,
    mut inlet: Inlet,
    choices: usize,
) -> Result<Value, ApiError> {
    let mut unfinished = choices;
    while unfinished > 0 {
        let (choice, update) = inlet.recv().await.ok_or_else(lost)?;
        let update = update?;
        unfinished -= usize::from(update.finish.is_some());
        // What would be streamed is part of the whole.
        let _chunk = answer.take(choice, &update);
    }
    Ok(answer.whole())
}

/// Chunks as they come. An error after the first byte is an event of its own.
pub fn stream(
    answer: Box<dyn Answer>,
    inlet: Inlet,
    choices: usize,
    with_usage: bool,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let ready = answer.opening().into();
    let events =
        Events { answer, inlet, ready, unfinished: choices, with_usage, state: State::Open };
    stream::unfold(events, async |mut events| {
        let event = events.next().await?;
        Some((Ok(Bytes::from(event)), events))
    })
}

struct Events {
    answer: Box<dyn Answer>,
    inlet: Inlet,
    /// Chunks that are to be sent before the next token is awaited.
    ready: VecDeque<Value>,
    unfinished: usize,
    with_usage: bool,
    state: State,
}

enum State {
    /// Tokens are awaited.
    Open,
    /// All chunks are ready; `[DONE]` follows them.
    Finished,
    /// `[DONE]` is sent.
    Closed,
}

impl Events {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(format!("data: {chunk}\n\n"));
            }
            match self.state {
                State::Open => self.receive().await,
                State::Finished => {
                    self.state = State::Closed;
                    return Some("data: [DONE]\n\n".to_owned());
                }
                State::Closed => return None,
            }
        }
    }

    async fn receive(&mut self) {
        let received = self.inlet.recv().await;
        match received.map(|(choice, update)| (choice, update.map_err(ApiError::from))) {
            Some((choice, Ok(update))) => {
                self.unfinished -= usize::from(update.finish.is_some());
                self.ready.extend(self.answer.take(choice, &update));
                if self.unfinished == 0 {
                    self.ready.extend(self.with_usage.then(|| self.answer.closing_usage()));
                    self.state = State::Finished;
                }
            }
            Some((_, Err(error))) => self.fail(&error),
            None => self.fail(&lost()),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.ready.push_back(error.json());
        self.state = State::Finished;
    }
}

fn lost() -> ApiError {
    ApiError::body(500, "decoding_ended", "the decoding thread has ended; restart the server")
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use serde_json::json;

    use super::*;
    use crate::serve::sequence::Finish;

    /// Tells the tokens as they are.
    struct Plain;

    impl Answer for Plain {
        fn opening(&self) -> Vec<Value> {
            vec![json!("opening")]
        }

        fn take(&mut self, choice: usize, update: &Update) -> Option<Value> {
            Some(json!([choice, update.token]))
        }

        fn closing_usage(&self) -> Value {
            json!("usage")
        }

        fn whole(&mut self) -> Value {
            json!("whole")
        }
    }

    fn update(token: u32, finish: Option<Finish>) -> Result<Update, DecodeError> {
        let (logprob, policy_logprob, entropy, control_probs) = (0.0, 0.0, 0.0, [0.0; 8]);
        let text = String::new();
        Ok(Update { token, logprob, policy_logprob, entropy, control_probs, text, finish })
    }

    fn inlet(updates: Vec<(usize, Result<Update, DecodeError>)>) -> Inlet {
        let (outlet, inlet) = mpsc::channel(8);
        updates.into_iter().for_each(|update| outlet.try_send(update).expect("room"));
        inlet
    }

    async fn events(inlet: Inlet) -> Vec<String> {
        let events = stream(Box::new(Plain), inlet, 2, true);
        let text = |event: Result<Bytes, Infallible>| {
            let text = String::from_utf8(event.unwrap().to_vec()).unwrap();
            text.strip_prefix("data: ").unwrap().trim_end().to_owned()
        };
        events.map(text).collect().await
    }

    #[tokio::test]
    async fn a_stream_ends_after_every_choice() {
        let end = || Some(Finish::Length);
        let updates = vec![(1, update(5, end())), (0, update(6, None)), (0, update(7, end()))];
        let expected = ["\"opening\"", "[1,5]", "[0,6]", "[0,7]", "\"usage\"", "[DONE]"];
        assert_eq!(events(inlet(updates.clone())).await, expected);
        assert_eq!(whole(Box::new(Plain), inlet(updates), 2).await, Ok(json!("whole")));
    }

    #[tokio::test]
    async fn a_failing_network_is_told() {
        let updates = vec![(0, update(6, None)), (0, Err(DecodeError("on fire".into())))];
        let told = events(inlet(updates.clone())).await;
        assert!(told[2].contains("on fire") && told[2].contains("server_error"), "{told:?}");
        assert_eq!(told[3..], ["[DONE]"]);
        let error = whole(Box::new(Plain), inlet(updates), 2).await.expect_err("on fire");
        assert_eq!(error.status, 500);
        // The thread is gone: nobody holds the other end.
        let told = events(inlet(Vec::new())).await;
        assert!(told[1].contains("decoding_ended"), "{told:?}");
    }
}
