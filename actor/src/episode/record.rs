//! The trajectory of a running episode, written token by token.
//!
//! Owns: the per-token arrays and the spans. One function appends to all arrays, so that they have
//! equal length by construction (M1); spans are opened and closed in turn, so that they tile the
//! tokens.

use ballast_chat::Segment;
use ballast_proto::v1::{Role, SampledVersion, Span, StructuralState, ToolCall, Trajectory};

use super::event::TokenSample;

/// Arrays and spans so far.
#[derive(Debug, Default)]
pub(super) struct Record {
    token_ids: Vec<u32>,
    loss_mask: Vec<u8>,
    behavior_logprobs: Vec<f32>,
    policy_versions: Vec<u64>,
    sampled_versions: Vec<SampledVersion>,
    spans: Vec<Span>,
    /// First token of the assistant span being written.
    open_from: Option<usize>,
    /// Sum of the forbidden control mass over the sampled positions, and their number.
    forbidden_mass: f64,
    sampled_tokens: u64,
}

impl Record {
    /// Tokens so far.
    pub(super) fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Appends a whole message that the policy did not write.
    pub(super) fn segment(&mut self, segment: &Segment) {
        let start = self.len();
        self.forced(&segment.token_ids);
        self.close_span(start, segment.role, StructuralState::Unspecified, Vec::new());
    }

    /// Begins an assistant message with its header.
    pub(super) fn open_message(&mut self, header: &[u32]) {
        self.open_from = Some(self.len());
        self.forced(header);
    }

    /// Appends template tokens: no loss.
    pub(super) fn forced(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|token| self.push(*token, 0, 0.0, 0));
    }

    /// Appends a token of the policy; `forbidden_mass` is the probability it gave to control tokens
    /// that the grammar forbids here.
    pub(super) fn sampled(&mut self, sample: &TokenSample, forbidden_mass: f32) {
        let version = sample.policy_version.0;
        self.push(sample.token, 1, sample.logprob, version);
        self.forbidden_mass += f64::from(forbidden_mass);
        self.sampled_tokens += 1;
        // A weight swap in mid-episode adds a version; there are few, so a scan is enough.
        let hash = sample.manifest_hash.0;
        let bound =
            |entry: &SampledVersion| entry.policy_version == version && entry.manifest_hash == hash;
        if !self.sampled_versions.iter().any(bound) {
            let manifest_hash = hash.to_vec();
            self.sampled_versions.push(SampledVersion { policy_version: version, manifest_hash });
        }
    }

    /// Appends tokens of the expert: they carry loss, but nobody sampled them.
    pub(super) fn demonstrated(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|token| self.push(*token, 1, 0.0, 0));
    }

    /// Ends the assistant message being written, if there is one.
    pub(super) fn close_message(&mut self, state: StructuralState, calls: Vec<ToolCall>) {
        if let Some(start) = self.open_from.take() {
            self.close_span(start, Role::Assistant, state, calls);
        }
    }

    /// Takes back the header of a message of which nothing was written.
    pub(super) fn discard_message(&mut self) {
        if let Some(start) = self.open_from.take() {
            self.token_ids.truncate(start);
            self.loss_mask.truncate(start);
            self.behavior_logprobs.truncate(start);
            self.policy_versions.truncate(start);
        }
    }

    /// Moves everything into `trajectory`.
    pub(super) fn write_into(self, trajectory: &mut Trajectory) {
        // Not a number where nothing was sampled, or where the decoder cannot tell.
        let mass = (self.forbidden_mass / self.sampled_tokens as f64) as f32;
        trajectory.control_token_mass = mass.is_finite().then_some(mass);
        trajectory.token_ids = self.token_ids;
        trajectory.loss_mask = self.loss_mask;
        trajectory.behavior_logprobs = self.behavior_logprobs;
        trajectory.policy_versions = self.policy_versions;
        trajectory.sampled_versions = self.sampled_versions;
        trajectory.spans = self.spans;
    }

    fn push(&mut self, token: u32, mask: u8, logprob: f32, version: u64) {
        self.token_ids.push(token);
        self.loss_mask.push(mask);
        self.behavior_logprobs.push(logprob);
        self.policy_versions.push(version);
    }

    fn close_span(
        &mut self,
        start: usize,
        role: Role,
        state: StructuralState,
        calls: Vec<ToolCall>,
    ) {
        // Bounded by `trajectory_tokens_max`, a u32 on the wire.
        let index = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.spans.push(Span {
            role: role.into(),
            start: index(start),
            end: index(self.len()),
            state: state.into(),
            calls,
        });
    }
}
