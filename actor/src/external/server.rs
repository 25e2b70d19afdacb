//! The server as a whole: completions by stream, and the calls that change its weights.
//!
//! | | load a directory | tell the version |
//! |---|---|---|
//! | vLLM | `/pause`, `/collective_rpc` `reload_weights`, `/reset_prefix_cache`, `/update_weight_version`, `/resume` | `/weight_info` |
//! | SGLang, `ballast-actor serve` | `/update_weights_from_disk` | `/model_info` |
//!
//! Both abort what still runs: this actor dropped its requests before, and what others asked for
//! must not be half of one version and half of another.
//!
//! vLLM's `/server_info` is read before the first load: it tells how log-probabilities are meant, and
//! whether it runs on a CPU, where a reload (as of 0.32) leaves the head of a network whose head is its
//! embedding as it was, without a word.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use ballast_runtime::backoff::Backoff;
use serde_json::{Value, json};

use super::{
    Failure, ServerKind,
    completion::Logprobs,
    http::{Answer, Endpoint},
    spool::Spooled,
};

/// Where completions are asked for.
pub(super) const COMPLETIONS: &str = "/v1/completions";
/// Waits between two attempts at a server that is busy.
const BUSY_WAIT_INITIAL: Duration = Duration::from_millis(50);
const BUSY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Characters of an answer that an error message quotes.
const QUOTE_MAX: usize = 300;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    kind: ServerKind,
    endpoint: Endpoint,
    /// What its log-probabilities are said to be.
    logprobs: Logprobs,
    /// It was found fit for its task.
    checked: AtomicBool,
}

impl Server {
    pub(super) fn new(kind: ServerKind, endpoint: Endpoint, logprobs: Logprobs) -> Self {
        Self { kind, endpoint, logprobs, checked: AtomicBool::new(false) }
    }

    pub(super) fn kind(&self) -> ServerKind {
        self.kind
    }

    /// For messages.
    pub(super) fn url(&self) -> String {
        self.endpoint.url("")
    }

    /// How long it may be silent.
    pub(super) fn stall_max(&self) -> Duration {
        self.endpoint.stall_max()
    }

    /// Begins a completion. A server that is busy is asked again for as long as it may be silent.
    pub(super) async fn complete(&self, body: &Value, seed: u64) -> Result<Answer, Failure> {
        let since = Instant::now();
        let mut backoff = Backoff::new(BUSY_WAIT_INITIAL, BUSY_WAIT_MAX, seed);
        loop {
            let answer = self.endpoint.send("POST", COMPLETIONS, Some(body)).await?;
            match answer.status {
                200 => return Ok(answer),
                429 | 503 if since.elapsed() < self.stall_max() => {
                    drop(answer);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                status => {
                    let what = self.described("POST", COMPLETIONS, status, &answer.text().await?);
                    let retry = status == 429 || status >= 500;
                    return Err(if retry {
                        Failure::Interrupted(what)
                    } else {
                        Failure::Refused(what)
                    });
                }
            }
        }
    }

    /// Makes the server sample from a version; when this returns, it holds nothing else, not even
    /// keys and values that older weights computed.
    pub(super) async fn load(&self, spooled: &Spooled) -> Result<(), Failure> {
        match self.kind {
            ServerKind::Vllm => {
                if !self.checked.load(Relaxed) {
                    self.check_vllm(spooled.tied).await?;
                    self.checked.store(true, Relaxed);
                }
                self.load_vllm(spooled).await
            }
            ServerKind::Sglang | ServerKind::Ballast => {
                let body = json!({
                    "model_path": spooled.directory,
                    "abort_all_requests": true,
                    "weight_version": spooled.version,
                });
                let answer = self.call("POST", "/update_weights_from_disk", Some(&body)).await?;
                self.succeeded("/update_weights_from_disk", &answer)
            }
        }
    }

    async fn check_vllm(&self, tied: bool) -> Result<(), Failure> {
        let info = self.call("GET", "/server_info?config_format=json", None).await?;
        let told = |pointer| info.pointer(pointer).and_then(Value::as_str);
        let expected = match self.logprobs {
            Logprobs::Raw => "raw_logprobs",
            Logprobs::Processed => "processed_logprobs",
        };
        let mode = told("/vllm_config/model_config/logprobs_mode").unwrap_or(expected);
        if mode != expected {
            return Err(Failure::Refused(format!(
                "vLLM runs with --logprobs-mode {mode}, and actor.engine.logprobs means {expected}; \
                 change one of them"
            )));
        }
        if tied && told("/vllm_config/device_config/device") == Some("cpu") {
            return Err(Failure::Refused(
                "this vLLM runs on a CPU, where a change of weights does not reach the head of a \
                 network whose head is its embedding (tie_word_embeddings); use \
                 `ballast-actor serve`, or a GPU"
                    .into(),
            ));
        }
        Ok(())
    }

    async fn load_vllm(&self, spooled: &Spooled) -> Result<(), Failure> {
        self.call("POST", "/pause?mode=abort", None).await?;
        let reload = json!({
            "method": "reload_weights",
            "kwargs": { "weights_path": spooled.directory },
        });
        self.call("POST", "/collective_rpc", Some(&reload)).await?;
        let answer = self.call("POST", "/reset_prefix_cache", None).await?;
        self.succeeded("/reset_prefix_cache", &answer)?;
        let version = json!({ "new_version": spooled.version });
        self.call("POST", "/update_weight_version", Some(&version)).await?;
        self.call("POST", "/resume", None).await?;
        Ok(())
    }

    /// What the server calls the weights it holds.
    pub(super) async fn version(&self) -> Result<String, Failure> {
        let path = match self.kind {
            ServerKind::Vllm => "/weight_info",
            ServerKind::Sglang | ServerKind::Ballast => "/model_info",
        };
        let answer = self.call("GET", path, None).await?;
        let version = answer.get("weight_version").and_then(Value::as_str);
        version.map(str::to_owned).ok_or_else(|| {
            let url = self.endpoint.url(path);
            Failure::Refused(format!("GET {url} tells no weight_version; update the server"))
        })
    }

    /// A call with a short answer. These are not repeated when the server refuses them: whatever
    /// is wrong with the weights will be wrong again.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let answer = self.endpoint.send(method, path, body).await?;
        let status = answer.status;
        let text = answer.text().await?;
        match status {
            200..=299 => Ok(serde_json::from_str(&text).unwrap_or(Value::Null)),
            429 | 503 => Err(Failure::Interrupted(self.described(method, path, status, &text))),
            _ => Err(Failure::Refused(self.described(method, path, status, &text))),
        }
    }

    /// SGLang's calls, and one of vLLM's, may answer 200 and yet have failed.
    fn succeeded(&self, path: &str, answer: &Value) -> Result<(), Failure> {
        if answer.get("success") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        Err(Failure::Refused(self.described("POST", path, 200, &answer.to_string())))
    }

    fn described(&self, method: &str, path: &str, status: u16, answer: &str) -> String {
        let url = self.endpoint.url(path);
        let quoted = answer.trim().chars().take(QUOTE_MAX).collect::<String>();
        let remedy = match (status, self.kind) {
            (404, _) if path == COMPLETIONS => "; is actor.engine.url the right server?",
            (404, ServerKind::Vllm) => {
                "; start vLLM with VLLM_SERVER_DEV_MODE=1, which has the calls that change weights"
            }
            (403 | 404, ServerKind::Ballast) => {
                "; start `ballast-actor serve` on a loopback address or with --allow-weight-updates"
            }
            (401 | 403, _) => "; put the server's key into BALLAST_ENGINE_API_KEY",
            _ => "",
        };
        format!("{method} {url} answered {status}: {quoted}{remedy}")
    }
}
