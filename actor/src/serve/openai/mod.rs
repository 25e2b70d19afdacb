//! OpenAI's wire format: requests to plans, sampled tokens to answers.
//!
//! Owns: every JSON shape that crosses HTTP, and what is refused.
//! Does not know: HTTP itself, the queue, the decoder.
//! Invariants: nothing a client asks for is silently ignored if it would change the answer; a
//! streamed answer, put together, says what the whole one says.

mod answer;
mod chat;
mod chat_answer;
mod error;
mod messages;
mod options;
mod text_completion;

pub use self::{
    answer::{Answer, Identity, usage},
    chat::chat,
    error::ApiError,
    messages::{conversation, tools},
    options::{
        CHOICES_MAX, LOGIT_BIAS_MAX, Options, Reply, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX,
    },
    text_completion::text_completion,
};
use super::sequence::Plan;

/// A request that passed every check.
#[expect(missing_debug_implementations, reason = "an answer is whichever of two")]
pub struct Request {
    /// One per completion, in the order of the answer's choices.
    pub plans: Vec<Plan>,
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// What comes back beside the text.
    pub reply: Reply,
    /// Puts the answer together.
    pub answer: Box<dyn Answer>,
}
