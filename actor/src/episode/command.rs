//! What an episode asks its driver to do.

use ballast_proto::v1::Trajectory;
use serde_json::{Map, Value};

/// One request to the driver. Answers come back as events.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Append forced tokens to the policy's sequence. Never asked for in a demonstration.
    Feed(Vec<u32>),
    /// Sample the next token; answered by `TokenSampled`.
    Sample,
    /// Let the expert write its next message; answered by `ExpertActed`.
    AskExpert,
    /// Run these calls in order (none when all calls of the message were malformed); answered by
    /// `ToolsReturned`.
    CallTools(Vec<ToolRequest>),
    /// Score the outcome with the final answer, absent when there is none; answered by `Scored`.
    Score(Option<String>),
    /// The episode is over; report this.
    Finish(Box<Trajectory>),
}

/// One well-formed call of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolRequest {
    /// Tool name.
    pub name: String,
    /// Arguments.
    pub arguments: Map<String, Value>,
}
