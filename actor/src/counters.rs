//! What heartbeats report: plain counters that the engine and the subscriber write and the session
//! reads. They steer nothing.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::decoder::DecoderWork;

/// Counters since the actor started, except where a doc says otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    policy_version: AtomicU64,
    episodes_running: AtomicU32,
    tokens_sampled: AtomicU64,
    tokens_processed: AtomicU64,
    idle_nanos: AtomicU64,
    weights_refused: AtomicU64,
    prefill_computed: AtomicU64,
    prefill_saved: AtomicU64,
    evictions: AtomicU64,
}

impl Counters {
    /// Version the engine decodes with at present; 0 before the first adoption.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version.load(Relaxed)
    }

    /// Episodes that hold a slot at present.
    #[must_use]
    pub fn episodes_running(&self) -> u32 {
        self.episodes_running.load(Relaxed)
    }

    /// Tokens sampled.
    #[must_use]
    pub fn tokens_sampled(&self) -> u64 {
        self.tokens_sampled.load(Relaxed)
    }

    /// Tokens that entered a sequence: prompts, tool results and samples.
    #[must_use]
    pub fn tokens_processed(&self) -> u64 {
        self.tokens_processed.load(Relaxed)
    }

    /// Time the engine had no episode to run.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_nanos(self.idle_nanos.load(Relaxed))
    }

    /// Published versions that were not staged: a wrong hash, a broken or partial fetch.
    #[must_use]
    pub fn weights_refused(&self) -> u64 {
        self.weights_refused.load(Relaxed)
    }

    /// What the decoder computed, shared and evicted.
    #[must_use]
    pub fn decoder_work(&self) -> DecoderWork {
        DecoderWork {
            prefill_computed: self.prefill_computed.load(Relaxed),
            prefill_saved: self.prefill_saved.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
        }
    }

    pub(crate) fn set_decoder_work(&self, work: DecoderWork) {
        self.prefill_computed.store(work.prefill_computed, Relaxed);
        self.prefill_saved.store(work.prefill_saved, Relaxed);
        self.evictions.store(work.evictions, Relaxed);
    }

    pub(crate) fn set_policy_version(&self, version: u64) {
        self.policy_version.store(version, Relaxed);
    }

    pub(crate) fn set_episodes_running(&self, episodes: usize) {
        self.episodes_running.store(u32::try_from(episodes).unwrap_or(u32::MAX), Relaxed);
    }

    pub(crate) fn add_sampled(&self, tokens: usize) {
        self.tokens_sampled.fetch_add(tokens as u64, Relaxed);
        self.add_processed(tokens);
    }

    pub(crate) fn add_processed(&self, tokens: usize) {
        self.tokens_processed.fetch_add(tokens as u64, Relaxed);
    }

    pub(crate) fn add_idle(&self, idle: Duration) {
        self.idle_nanos.fetch_add(u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn add_weights_refused(&self) {
        self.weights_refused.fetch_add(1, Relaxed);
    }
}
