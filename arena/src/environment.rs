//! What a world is to an episode: a request, tools to call, and a score at the end.

use std::error::Error;

use ballast_chat::python_json;
use serde_json::{Map, Value, json};

/// One open task: its request and its own private copy of the world's state.
pub trait Environment: Send {
    /// Tools as the system prompt lists them, for example
    /// `{"name": "product", "parameters": {"name": "string"}}`.
    fn tools(&self) -> &[Value];

    /// The user's request.
    fn prompt(&self) -> &str;

    /// Runs one tool call. A call that is not answered with [`CallOutcome::Ok`] changes no state.
    fn call(
        &mut self,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Result<CallOutcome, InfrastructureError>;

    /// Judges the episode as it stands; `None` when the policy gave no answer.
    fn score(&mut self, answer: Option<&str>) -> Result<Score, InfrastructureError>;

    /// An oracle for this task, at its start.
    fn expert(&self) -> Box<dyn Expert>;
}

/// Outcome of one well-formed call. All but `Ok` are failures of the policy or of the tool;
/// a failure of the world itself is an [`InfrastructureError`].
#[derive(Clone, Debug, PartialEq)]
pub enum CallOutcome {
    /// The tool ran; its result.
    Ok(Value),
    /// The tool understood the call and refused it, for example "out of stock".
    ToolError(String),
    /// No tool has this name.
    UnknownTool,
    /// An argument is missing, unexpected or of the wrong type; says which.
    BadArguments(String),
}

impl CallOutcome {
    /// The result of a call that ran, as an [`Expert`] wants it; `None` for every failure.
    pub fn into_result(self) -> Option<Value> {
        match self {
            Self::Ok(value) => Some(value),
            _ => None,
        }
    }

    /// What the policy sees: the result, or `{"error": ...}`, as Python's `json.dumps` spaces it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Ok(value) => python_json(value),
            Self::ToolError(reason) | Self::BadArguments(reason) => {
                python_json(&json!({ "error": reason }))
            }
            Self::UnknownTool => python_json(&json!({ "error": "unknown tool" })),
        }
    }
}

/// Judgement of one episode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Outcome reward: 1 for success, otherwise 0.
    pub reward: f32,
    /// Whether the task was done.
    pub success: bool,
}

impl From<bool> for Score {
    fn from(success: bool) -> Self {
        Self { reward: if success { 1.0 } else { 0.0 }, success }
    }
}

/// An oracle that solves one task. It is closed-loop: later calls use what earlier ones returned.
pub trait Expert: Send {
    /// The next action, given the result of the last call; `None` before the first. An expert that
    /// meets a result it cannot use answers with what it has, which scores 0.
    fn next(&mut self, last_result: Option<&Value>) -> ExpertAction;
}

/// One action of an [`Expert`].
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertAction {
    /// Call this tool.
    Call {
        /// Name of the tool.
        name: String,
        /// Arguments by name.
        arguments: Map<String, Value>,
    },
    /// Give this final answer.
    Answer(String),
}

/// The world failed, not the policy: the episode has no score and is masked from every statistic.
#[derive(Debug, thiserror::Error)]
#[error("world {world} failed; the episode must be run again")]
pub struct InfrastructureError {
    /// Name of the world.
    pub world: &'static str,
    /// What failed inside it.
    pub source: Box<dyn Error + Send + Sync>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_as_python_would_write_them() {
        let check = |outcome: CallOutcome, text: &str| assert_eq!(outcome.to_text(), text);
        check(CallOutcome::Ok(json!({"price": 14, "stock": 7})), r#"{"price": 14, "stock": 7}"#);
        check(CallOutcome::Ok(json!([1, [], {}])), "[1, [], {}]");
        check(CallOutcome::ToolError("out of stock".into()), r#"{"error": "out of stock"}"#);
        check(CallOutcome::BadArguments("a \"b\"".into()), r#"{"error": "a \"b\""}"#);
        check(CallOutcome::UnknownTool, r#"{"error": "unknown tool"}"#);
    }
}
