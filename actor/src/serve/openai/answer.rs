//! What the answers of both endpoints share.

use ballast_chat::Tokenizer;
use serde_json::{Value, json};

use crate::serve::sequence::{Finish, Update};

/// The lowest log-probability that is told: JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

/// Puts an answer together from tokens as they are sampled.
pub trait Answer: Send {
    /// Chunks to stream before any token.
    fn opening(&self) -> Vec<Value>;
    /// Takes one token of a choice and says what to stream for it, if anything.
    fn take(&mut self, choice: usize, update: &Update) -> Option<Value>;
    /// The chunk that tells the token counts after everything else.
    fn closing_usage(&self) -> Value;
    /// The whole answer, for a client that does not stream.
    fn whole(&mut self) -> Value;
}

/// What is the same in every chunk of an answer.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Unique on this server.
    pub id: String,
    /// Unix time in seconds.
    pub created: u64,
    /// Name of the served model.
    pub model: String,
}

impl Identity {
    /// An answer, or a chunk of one, with these choices.
    pub(super) fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let Self { id, created, model } = self;
        json!({ "id": id, "object": object, "created": created, "model": model, "choices": choices })
    }
}

/// Token counts of a request.
#[must_use]
pub fn usage(prompt_tokens: usize, completion_tokens: usize) -> Value {
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    })
}

/// One sampled token with its log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) id: u32,
    /// Under the policy, as the field `logprob` of such servers means it.
    pub(super) policy_logprob: f32,
    /// Under the distribution it was sampled from: what an off-policy correction needs.
    pub(super) sampled_logprob: f32,
    /// Entropy of the policy at this position, in nats.
    pub(super) entropy: f32,
    /// Probabilities of the control tokens, in the order of `ControlTokens::all`.
    control_probs: [f32; 8],
}

impl Token {
    pub(super) fn of(update: &Update) -> Self {
        Self {
            id: update.token,
            policy_logprob: update.policy_logprob.max(LOGPROB_MIN),
            sampled_logprob: update.logprob.max(LOGPROB_MIN),
            entropy: update.entropy,
            control_probs: update.control_probs,
        }
    }

    /// Natural log of the probability of the control token at `index` of `ControlTokens::all`.
    pub(super) fn control_logprob(self, index: usize) -> f32 {
        self.control_probs[index].ln().max(LOGPROB_MIN)
    }

    /// The text of the token alone. It is not whole where a character spans several tokens.
    pub(super) fn text(self, tokenizer: &Tokenizer) -> String {
        tokenizer.decode(&[self.id])
    }

    /// Its bytes, exactly.
    pub(super) fn bytes(self, tokenizer: &Tokenizer) -> &[u8] {
        tokenizer.token_bytes(self.id)
    }
}

pub(super) fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// `stop` or `length`.
pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::StopToken(_) | Finish::StopString(_) => "stop",
        Finish::Length => "length",
    }
}

/// Which stop token or stop string it was; null for the token limit.
pub(super) fn stop_reason(finish: Option<&Finish>) -> Value {
    match finish {
        Some(Finish::StopToken(token)) => json!(token),
        Some(Finish::StopString(string)) => json!(string),
        Some(Finish::Length) | None => Value::Null,
    }
}

/// Sets `key` on an object that `json!` made.
pub(super) fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}
