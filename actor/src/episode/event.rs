//! What can happen to an episode.

use ballast_arena::Score;
use ballast_chat::Segment;
use ballast_proto::{ManifestHash, PolicyVersion, v1::CallStatus};

/// Something that happened outside the state machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// The world is open; here is the conversation up to the first assistant message.
    Started {
        /// System and user messages, in order.
        opening: Vec<Segment>,
    },
    /// The policy sampled the next token.
    TokenSampled(TokenSample),
    /// The expert wrote its next message, end token included.
    ExpertActed {
        /// Token ids of the message.
        token_ids: Vec<u32>,
    },
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
            Self::ExpertActed { .. } => "ExpertActed",
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
