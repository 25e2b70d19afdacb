//! Errors as OpenAI's API spells them: a status and `{"error": {message, type, param, code}}`.

use serde_json::{Value, json};

use crate::{decoder::DecodeError, serve::queue::QueueError};

/// Why a request is not answered with a completion.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What is wrong and what to do about it, for people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs: one word per kind of error.
    pub code: &'static str,
}

impl ApiError {
    /// A field has a value that cannot be used.
    #[must_use]
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        let (message, param) = (message.into(), Some(param.to_owned()));
        Self { status: 400, message, param, code: "invalid_value" }
    }

    /// The body as a whole cannot be used.
    #[must_use]
    pub fn body(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// Prompt and completion do not fit in the context.
    #[must_use]
    pub fn context(prompt: usize, completion: usize, context: usize) -> Self {
        let message = format!(
            "this model's context is {context} tokens; the prompt has {prompt} and the completion \
             asks for {completion}; shorten the prompt or lower max_tokens"
        );
        Self::body(400, "context_length_exceeded", message)
    }

    /// `{"error": {..}}`.
    #[must_use]
    pub fn json(&self) -> Value {
        let kind = match self.status {
            429 => "rate_limit_error",
            401 => "authentication_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        let (status, code) = match error {
            QueueError::Full { .. } => (429, "queue_full"),
            QueueError::Updating => (429, "updating"),
            QueueError::Closed => (503, "shutting_down"),
        };
        Self::body(status, code, error.to_string())
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        Self::body(500, "decoding_failed", format!("decoding failed: {error}"))
    }
}
