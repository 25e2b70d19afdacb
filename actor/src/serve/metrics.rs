//! What `/metrics` tells: counters of the server in Prometheus' text format.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::decoder::DecoderWork;

/// Written by the handlers and the decoding thread, read by `/metrics`. They steer nothing.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that were accepted.
    requests: AtomicU64,
    /// Requests that were refused, by a status from 400 to 499.
    refused: AtomicU64,
    /// Requests that failed, by a status from 500.
    failed: AtomicU64,
    /// Completions whose client left before their end.
    cancelled: AtomicU64,
    /// Tokens of accepted prompts.
    prompt_tokens: AtomicU64,
    /// Tokens sampled.
    completion_tokens: AtomicU64,
    /// Completions that hold a slot at present.
    running: AtomicU64,
    prefill_computed: AtomicU64,
    prefill_saved: AtomicU64,
    evictions: AtomicU64,
}

impl Metrics {
    /// A request was accepted.
    pub fn accepted(&self, prompt_tokens: usize) {
        self.requests.fetch_add(1, Relaxed);
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
    }

    /// A request was answered with an error status.
    pub fn answered_error(&self, status: u16) {
        let counter = if status >= 500 { &self.failed } else { &self.refused };
        counter.fetch_add(1, Relaxed);
    }

    /// A client left before the end of its completion.
    pub fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    /// A decode step is done.
    pub fn stepped(&self, sampled: usize, running: usize, work: DecoderWork) {
        self.completion_tokens.fetch_add(sampled as u64, Relaxed);
        self.running.store(running as u64, Relaxed);
        self.prefill_computed.store(work.prefill_computed, Relaxed);
        self.prefill_saved.store(work.prefill_saved, Relaxed);
        self.evictions.store(work.evictions, Relaxed);
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self, waiting: usize) -> String {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let rows = [
            ("requests_total", "counter", "Requests accepted.", read(&self.requests)),
            ("requests_refused_total", "counter", "Requests refused (4xx).", read(&self.refused)),
            ("requests_failed_total", "counter", "Requests failed (5xx).", read(&self.failed)),
            (
                "completions_cancelled_total",
                "counter",
                "Completions whose client left.",
                read(&self.cancelled),
            ),
            ("completions_running", "gauge", "Completions in a slot.", read(&self.running)),
            ("completions_waiting", "gauge", "Completions in the queue.", waiting as u64),
            ("prompt_tokens_total", "counter", "Tokens of prompts.", read(&self.prompt_tokens)),
            (
                "completion_tokens_total",
                "counter",
                "Tokens sampled.",
                read(&self.completion_tokens),
            ),
            (
                "prefill_tokens_computed_total",
                "counter",
                "Prompt tokens run through the network.",
                read(&self.prefill_computed),
            ),
            (
                "prefill_tokens_saved_total",
                "counter",
                "Prompt tokens whose keys and values were there already.",
                read(&self.prefill_saved),
            ),
            (
                "cache_evictions_total",
                "counter",
                "Sequences that lost their place in the cache for a while.",
                read(&self.evictions),
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, value) in rows {
            let name = format!("ballast_serve_{name}");
            let written =
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_line() {
        let metrics = Metrics::default();
        metrics.accepted(11);
        metrics.answered_error(404);
        metrics.answered_error(500);
        metrics.cancelled();
        let work = DecoderWork { prefill_computed: 11, prefill_saved: 5, evictions: 2 };
        metrics.stepped(3, 2, work);
        let text = metrics.render(7);
        for line in [
            "ballast_serve_requests_total 1",
            "ballast_serve_requests_refused_total 1",
            "ballast_serve_requests_failed_total 1",
            "ballast_serve_completions_cancelled_total 1",
            "ballast_serve_completions_running 2",
            "ballast_serve_completions_waiting 7",
            "ballast_serve_prompt_tokens_total 11",
            "ballast_serve_completion_tokens_total 3",
            "ballast_serve_prefill_tokens_computed_total 11",
            "ballast_serve_prefill_tokens_saved_total 5",
            "ballast_serve_cache_evictions_total 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
