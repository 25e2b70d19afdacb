//! What can happen to an episode.

use ballast_arena::{ExpertAction, Score};
use ballast_proto::{ManifestHash, PolicyVersion, v1::CallStatus};
use serde_json::Value;

/// Something that happened outside the state machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// The world is open.
    Started {
        /// Definitions of its tools.
        tools: Vec<Value>,
        /// The user's request.
        prompt: String,
    },
    /// The policy sampled the next token.
    TokenSampled(TokenSample),
    /// The expert chose what its next message says.
    ExpertActed(ExpertAction),
    /// The requested calls ran, in order.
    ToolsReturned(Vec<ToolResult>),
    /// The verifier scored the outcome.
    Scored(Score),
    /// The world or the actor failed, not the policy.
    InfrastructureFailed(String),
    /// The episode's wall-clock budget ran out.
    DeadlineReached,
}

impl Event {
    /// Name for error messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "Started",
            Self::TokenSampled(_) => "TokenSampled",
            Self::ExpertActed(_) => "ExpertActed",
            Self::ToolsReturned(_) => "ToolsReturned",
            Self::Scored(_) => "Scored",
            Self::InfrastructureFailed(_) => "InfrastructureFailed",
            Self::DeadlineReached => "DeadlineReached",
        }
    }
}

/// One token of the policy and what it was sampled under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenSample {
    /// Token id.
    pub token: u32,
    /// Natural log of its probability under the distribution it was sampled from.
    pub logprob: f32,
    /// Probability of each control token at this position, in the order of `ControlTokens::all`.
    pub control_probs: [f32; 8],
    /// Version of the policy that sampled it.
    pub policy_version: PolicyVersion,
    /// Manifest hash of that version.
    pub manifest_hash: ManifestHash,
}

/// What came of one well-formed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// Outcome.
    pub status: CallStatus,
    /// What the policy reads.
    pub text: String,
}
