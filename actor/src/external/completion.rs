//! What is asked of `/v1/completions`, and what its answers mean. No I/O.
//!
//! Log-probabilities: a trajectory needs that of each token under the distribution it was drawn from.
//! At temperature 1 with nothing dropped or biased, and for greedy tokens without bias, that is the
//! policy's own. Otherwise the two differ, and a server that tells one does not tell the other:
//!
//! | server | tells |
//! |---|---|
//! | vLLM, `--logprobs-mode raw_logprobs` (default) | the policy's |
//! | vLLM, `--logprobs-mode processed_logprobs` | the sampling distribution's |
//! | SGLang with `SGLANG_RETURN_ORIGINAL_LOGPROB=1` | the policy's |
//! | SGLang otherwise | after the temperature, before top-k, top-p and min-p drop tokens |
//! | `ballast-actor serve` | both |
//!
//! Probabilities of the control tokens are asked for by id (`logprob_token_ids`; SGLang has no such
//! field here) and are the policy's where the log-probabilities are.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Failure, ServerKind};
use crate::decoder::Sampling;

/// What the log-probabilities of a server mean, where it tells only one of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logprobs {
    /// Of the raw logits: the policy's.
    Raw,
    /// Of the distribution that tokens are drawn from.
    Processed,
}

/// What is the same for every request to a server.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    kind: ServerKind,
    logprobs: Logprobs,
    /// Control tokens, in the order of `ControlTokens::all`.
    control: [u32; 8],
    /// How an answer names them.
    control_names: [String; 8],
    /// Tokens that end a message.
    stops: Vec<u32>,
}

/// One token of an answer. NaN is what the server does not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) token: u32,
    pub(super) logprob: f32,
    pub(super) policy_logprob: f32,
    pub(super) entropy: f32,
    pub(super) control_probs: [f32; 8],
}

/// One event of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chunk {
    pub(super) tokens: Vec<Token>,
    /// The completion is whole.
    pub(super) finished: bool,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<u32>>,
    logprobs: Option<Told>,
    finish_reason: Option<String>,
}

/// One entry per token in each list.
#[derive(Deserialize)]
struct Told {
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Extension of `ballast-actor serve`: `token_logprobs` is then the policy's.
    sampled_logprobs: Option<Vec<f32>>,
    /// Extension of `ballast-actor serve`.
    entropies: Option<Vec<f32>>,
}

impl Terms {
    pub(super) fn new(
        kind: ServerKind,
        logprobs: Logprobs,
        control: [u32; 8],
        stops: Vec<u32>,
    ) -> Self {
        let control_names = control.map(|id| format!("token_id:{id}"));
        Self { kind, logprobs, control, control_names, stops }
    }

    /// The body of a request that continues `prompt` by at most `tokens_max` tokens. Everything a
    /// server could take from a checkpoint's own defaults is spelled out.
    pub(super) fn request(&self, prompt: &[u32], tokens_max: usize, sampling: &Sampling) -> Value {
        let mut body = json!({
            "prompt": prompt,
            "max_tokens": tokens_max,
            "stream": true,
            "seed": seed_at(sampling.seed, prompt.len()),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) },
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "stop_token_ids": self.stops,
            "ignore_eos": true,
            "logprobs": 0,
            "return_token_ids": true,
        });
        if self.kind != ServerKind::Sglang {
            let mut control = self.control.to_vec();
            control.sort_unstable();
            control.dedup();
            body["logprob_token_ids"] = json!(control);
            body["return_tokens_as_token_ids"] = json!(true);
        }
        if !sampling.logit_bias.is_empty() {
            let bias = sampling.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias)));
            body["logit_bias"] = Value::Object(bias.collect::<Map<_, _>>());
        }
        body
    }

    /// Reads the data of one event of an answer to [`Self::request`].
    pub(super) fn read(&self, data: &str, sampling: &Sampling) -> Result<Chunk, Failure> {
        let event: Event = serde_json::from_str(data).map_err(|error| {
            Failure::Refused(format!(
                "an event of the answer cannot be read ({error}): {data:.200}"
            ))
        })?;
        if let Some(error) = event.error.filter(|error| !error.is_null()) {
            return Err(Failure::Interrupted(format!("the server gave up: {error}")));
        }
        let mut chunk = Chunk::default();
        for choice in event.choices {
            chunk.tokens.extend(self.tokens(&choice, sampling)?);
            match choice.finish_reason.as_deref() {
                None => {}
                Some("stop" | "length") => chunk.finished = true,
                Some(other) => {
                    return Err(Failure::Interrupted(format!("the server ended it by `{other}`")));
                }
            }
        }
        Ok(chunk)
    }

    fn tokens(&self, choice: &Choice, sampling: &Sampling) -> Result<Vec<Token>, Failure> {
        let ids = choice.token_ids.as_ref().ok_or_else(|| {
            Failure::Refused(
                "the server returns no token ids for `return_token_ids`; update it (vLLM and SGLang \
                 of 2026 have them)"
                    .into(),
            )
        })?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let told = choice.logprobs.as_ref().ok_or_else(no_logprobs)?;
        ids.iter().enumerate().map(|(at, id)| self.token(*id, at, told, sampling)).collect()
    }

    fn token(
        &self,
        token: u32,
        at: usize,
        told: &Told,
        sampling: &Sampling,
    ) -> Result<Token, Failure> {
        let logprob = told.token_logprobs.get(at).copied().flatten().ok_or_else(no_logprobs)?;
        let second = told.sampled_logprobs.as_ref().and_then(|list| list.get(at)).copied();
        let same = sampling.draws_from_policy();
        let (logprob, policy_logprob) = match (second, self.logprobs) {
            (Some(sampled), _) => (sampled, logprob),
            (None, _) if same => (logprob, logprob),
            (None, Logprobs::Processed) if self.processed_is_whole(sampling) => (logprob, f32::NAN),
            (None, _) => return Err(Failure::Refused(self.unknown_logprob())),
        };
        let top = told.top_logprobs.as_ref().and_then(|list| list.get(at)?.as_ref());
        let of_policy = !policy_logprob.is_nan();
        let control_probs = std::array::from_fn(|index| {
            let name = &self.control_names[index];
            let logprob = top.filter(|_| of_policy).and_then(|top| top.get(name));
            logprob.map_or(f32::NAN, |logprob| logprob.exp())
        });
        let entropy = told.entropies.as_ref().and_then(|list| list.get(at)).copied();
        let entropy = entropy.unwrap_or(f32::NAN);
        Ok(Token { token, logprob, policy_logprob, entropy, control_probs })
    }

    /// Whether a processed log-probability is that of the distribution the token was drawn from.
    fn processed_is_whole(&self, sampling: &Sampling) -> bool {
        let drops = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
        self.kind != ServerKind::Sglang || !drops
    }

    fn unknown_logprob(&self) -> String {
        let remedy = match (self.kind, self.logprobs) {
            (ServerKind::Vllm, _) => {
                "start vLLM with --logprobs-mode processed_logprobs and set actor.engine.logprobs = \
                 \"processed\""
            }
            (ServerKind::Sglang, Logprobs::Raw) => {
                "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB and set actor.engine.logprobs = \
                 \"processed\""
            }
            (ServerKind::Sglang, Logprobs::Processed) => "sample without top-k, top-p and min-p",
            (ServerKind::Ballast, _) => "update the server",
        };
        format!(
            "the server does not tell the log-probabilities of the distribution it samples from, and \
             these are not the policy's at this temperature or with these filters; {remedy}"
        )
    }
}

fn no_logprobs() -> Failure {
    Failure::Refused(
        "the server returns no log-probability for a token, though `logprobs` asks for it; do not \
         disable them (vLLM: --max-logprobs 0 or more, --logprobs-mode raw_logprobs or \
         processed_logprobs)"
            .into(),
    )
}

/// The seed of a request that continues a sequence of `length` tokens. Each request begins a random
/// stream of its own, so the sequence's seed alone would repeat the same draws in every message.
fn seed_at(seed: u64, length: usize) -> u64 {
    // SplitMix64 (Steele et al. 2014).
    let mut mixed = seed.wrapping_add((length as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    // Servers take signed seeds.
    (mixed ^ (mixed >> 31)) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(kind: ServerKind, logprobs: Logprobs) -> Terms {
        Terms::new(kind, logprobs, [5, 6, 7, 8, 9, 10, 11, 6], vec![6, 7])
    }

    fn event(logprobs: Value) -> String {
        json!({"choices": [{"index": 0, "text": "x", "token_ids": [3], "logprobs": logprobs,
            "finish_reason": null}]})
        .to_string()
    }

    fn plain() -> Sampling {
        Sampling::new(1, 1.0)
    }

    fn refusal(terms: &Terms, data: &str, sampling: &Sampling) -> String {
        match terms.read(data, sampling) {
            Err(Failure::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_says_everything_that_changes_what_is_sampled() {
        let sampling = Sampling { logit_bias: vec![(3, -1.5)], top_k: 4, ..Sampling::new(1, 0.5) };
        let body = terms(ServerKind::Vllm, Logprobs::Raw).request(&[1, 2], 9, &sampling);
        assert_eq!(body["prompt"], json!([1, 2]));
        assert_eq!((&body["max_tokens"], &body["top_k"]), (&json!(9), &json!(4)));
        assert_eq!(body["logit_bias"], json!({"3": -1.5}));
        assert_eq!(body["stop_token_ids"], json!([6, 7]));
        assert_eq!(body["logprob_token_ids"], json!([5, 6, 7, 8, 9, 10, 11]));
        let body = terms(ServerKind::Sglang, Logprobs::Raw).request(&[1, 2], 9, &plain());
        assert_eq!((&body["top_k"], body.get("logprob_token_ids")), (&json!(-1), None));
        assert_eq!(body.get("logit_bias"), None);
    }

    #[test]
    fn every_request_of_a_sequence_has_a_seed_of_its_own() {
        assert_eq!(seed_at(7, 10), seed_at(7, 10));
        assert_ne!(seed_at(7, 10), seed_at(7, 11));
        assert_ne!(seed_at(7, 10), seed_at(8, 10));
        assert!((0..100).all(|seed| i64::try_from(seed_at(seed, 3)).is_ok()));
    }

    #[test]
    fn a_plain_token_has_one_log_probability_and_what_is_not_told_is_nan() {
        let told = json!({"token_logprobs": [-0.5], "tokens": ["token_id:3"],
            "top_logprobs": [{"token_id:3": -0.5, "token_id:5": -9999.0, "token_id:6": -1.0}]});
        for logprobs in [Logprobs::Raw, Logprobs::Processed] {
            let chunk = terms(ServerKind::Vllm, logprobs).read(&event(told.clone()), &plain());
            let token = chunk.expect("a chunk").tokens[0];
            assert_eq!((token.token, token.logprob, token.policy_logprob), (3, -0.5, -0.5));
            assert!(token.entropy.is_nan());
            let [start, end, document, .., opener] = token.control_probs;
            assert_eq!((start, end), (0.0, (-1.0f32).exp()));
            assert_eq!(opener, end, "a place that repeats another token");
            assert!(document.is_nan());
        }
    }

    #[test]
    fn a_log_probability_that_is_not_known_is_refused_and_not_guessed() {
        let told = json!({"token_logprobs": [-0.5], "top_logprobs": [{"token_id:5": -1.0}]});
        let (data, warm) = (event(told), Sampling::new(1, 0.5));
        let reason = refusal(&terms(ServerKind::Vllm, Logprobs::Raw), &data, &warm);
        assert!(reason.contains("--logprobs-mode processed_logprobs"), "{reason}");
        let chunk = terms(ServerKind::Vllm, Logprobs::Processed).read(&data, &warm);
        let token = chunk.expect("a chunk").tokens[0];
        assert_eq!(token.logprob, -0.5);
        assert!(token.policy_logprob.is_nan(), "only the sampling distribution's is told");
        assert!(token.control_probs.iter().all(|prob| prob.is_nan()));
        let filtered = Sampling { top_p: 0.9, ..plain() };
        let sglang = terms(ServerKind::Sglang, Logprobs::Processed);
        assert!(refusal(&sglang, &data, &filtered).contains("top-p"));
        assert!(sglang.read(&data, &warm).is_ok());
        let greedy = Sampling { top_p: 0.9, ..Sampling::new(1, 0.0) };
        assert!(terms(ServerKind::Vllm, Logprobs::Raw).read(&data, &greedy).is_ok());
    }

    #[test]
    fn a_server_that_tells_both_is_believed() {
        let told = json!({"token_logprobs": [-0.5], "sampled_logprobs": [-0.25], "entropies": [2.0],
            "top_logprobs": [{"token_id:5": 0.0}]});
        let terms = terms(ServerKind::Ballast, Logprobs::Raw);
        let token = terms.read(&event(told), &Sampling::new(1, 0.5)).expect("a chunk").tokens[0];
        assert_eq!((token.logprob, token.policy_logprob), (-0.25, -0.5));
        assert_eq!((token.entropy, token.control_probs[0]), (2.0, 1.0));
    }

    #[test]
    fn a_server_that_lacks_something_is_refused_with_what_to_set() {
        let terms = terms(ServerKind::Vllm, Logprobs::Raw);
        let no_ids = json!({"choices": [{"index": 0, "text": "x"}]}).to_string();
        assert!(refusal(&terms, &no_ids, &plain()).contains("return_token_ids"));
        for told in [json!(null), json!({"token_logprobs": [null]}), json!({"token_logprobs": []})]
        {
            assert!(refusal(&terms, &event(told), &plain()).contains("log-probability"));
        }
        assert!(refusal(&terms, "{", &plain()).contains("cannot be read"));
    }

    #[test]
    fn an_end_by_anything_but_the_model_is_an_interruption() {
        let terms = terms(ServerKind::Vllm, Logprobs::Raw);
        let ended = |reason: &str| {
            let choice = json!({"index": 0, "token_ids": [], "finish_reason": reason});
            terms.read(&json!({"choices": [choice]}).to_string(), &plain())
        };
        assert_eq!(ended("stop"), Ok(Chunk { tokens: vec![], finished: true }));
        assert_eq!(ended("length").map(|chunk| chunk.finished), Ok(true));
        assert!(matches!(ended("abort"), Err(Failure::Interrupted(_))));
        let error = terms.read("{\"error\": {\"message\": \"dead\"}}", &plain());
        assert!(matches!(error, Err(Failure::Interrupted(reason)) if reason.contains("dead")));
        let usage = terms.read("{\"choices\": [], \"usage\": {}}", &plain());
        assert_eq!(usage, Ok(Chunk::default()));
    }
}
