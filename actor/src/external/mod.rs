//! The decoder outside this process: a server that speaks OpenAI's `/v1/completions` and returns
//! token ids and log-probabilities, such as vLLM, SGLang or another actor's `serve`.
//!
//! Owns: one streaming request for every sequence that wants tokens, the hand-over of each policy
//! version to the server through a directory, and what is told of log-probabilities.
//! Does not know: episodes, text, how the server decodes.
//! Invariants: no token is handed out that was sampled under other weights than those in use: a new
//! version drops what is under way and what waits, an interruption makes the server load the
//! version in use again, and it is asked for its version about once a second. Nothing that the server does
//! not tell is made up: it is NaN here and absent from the trajectory.
//!
//! A step passes through `decoder` (which sequences need a request), `stream` (one request),
//! `http` and `sse` (bytes), `completion` (meaning); `server` and `spool` hand over the weights.

mod completion;
mod decoder;
mod http;
mod server;
mod spool;
mod sse;
mod stream;

use std::{path::PathBuf, sync::Arc, time::Duration};

use ballast_chat::Tokenizer;
use ballast_runtime::config::ActorEngine;

use self::{
    completion::{Logprobs, Terms},
    decoder::{Bounds, ExternalDecoder},
    http::Endpoint,
    server::Server,
    spool::Spool,
};
use crate::{
    decoder::{DecodeError, Decoder, DecoderFactory},
    weights::StagedPolicy,
};

/// A stream is given up when it is silent for this share of the patience, so that a request is tried
/// about this many times.
const STALLS_PER_PATIENCE: u32 = 3;

/// Whose server it is: they differ in how they are given weights and in what they can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// vLLM, in its development mode, which has the calls that change weights.
    Vllm,
    /// SGLang.
    Sglang,
    /// `ballast-actor serve`.
    Ballast,
}

/// Why an external engine cannot be used as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Unknown name.
    #[error("actor.engine.{key} = `{value}` is unknown; allowed: {allowed}")]
    Unknown {
        /// Key below `actor.engine`.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The URL cannot be spoken to.
    #[error("actor.engine.url = `{url}` {problem}; write http://HOST:PORT of the server")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// How a call to the server went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// It would go wrong again.
    Refused(String),
    /// It may work next time. What the server holds now is not known.
    Interrupted(String),
}

/// Builds decoders on one server.
#[derive(Clone, Debug)]
pub struct ExternalDecoderFactory {
    server: Arc<Server>,
    logprobs: Logprobs,
    spool: PathBuf,
    patience: Duration,
}

impl ExternalDecoderFactory {
    /// The server that `engine` describes. Weights pass through `spool`, a directory of this actor
    /// alone that the server can read under the same path. `api_key` is sent with every request.
    ///
    /// # Errors
    /// A value that cannot be used. The server itself is not asked yet: it may start later.
    pub fn new(
        engine: &ActorEngine,
        spool: PathBuf,
        api_key: Option<String>,
    ) -> Result<Self, EngineError> {
        let kind = match engine.kind.as_str() {
            "vllm" => ServerKind::Vllm,
            "sglang" => ServerKind::Sglang,
            "ballast" => ServerKind::Ballast,
            _ => return Err(unknown("kind", &engine.kind, "vllm, sglang, ballast")),
        };
        let logprobs = match engine.logprobs.as_str() {
            "raw" => Logprobs::Raw,
            "processed" => Logprobs::Processed,
            _ => return Err(unknown("logprobs", &engine.logprobs, "raw, processed")),
        };
        // Bounded above so that no arithmetic with it overflows.
        let patience = Duration::from_secs_f64(engine.patience_s.clamp(0.1, 86_400.0));
        let endpoint = Endpoint::parse(&engine.url, api_key, patience / STALLS_PER_PATIENCE)?;
        let server = Arc::new(Server::new(kind, endpoint, logprobs));
        Ok(Self { server, logprobs, spool, patience })
    }
}

impl DecoderFactory for ExternalDecoderFactory {
    fn build(
        &mut self,
        staged: &StagedPolicy,
        slots: usize,
        trajectory_tokens_max: usize,
    ) -> Result<Box<dyn Decoder>, DecodeError> {
        let tokenizer = Tokenizer::of_checkpoint(&staged.tokenizer_json, &staged.config_json)
            .map_err(|error| DecodeError(error.to_string()))?;
        let control = tokenizer.control();
        let terms = Terms::new(self.server.kind(), self.logprobs, control.all(), control.stops());
        let spool = Spool::open(&self.spool)?;
        let server = Arc::clone(&self.server);
        let bounds = Bounds { slots, tokens_max: trajectory_tokens_max, patience: self.patience };
        Ok(Box::new(ExternalDecoder::new(server, terms, spool, staged, bounds)?))
    }
}

fn unknown(key: &'static str, value: &str, allowed: &'static str) -> EngineError {
    EngineError::Unknown { key, value: value.to_owned(), allowed }
}
