//! Does a template keep what it wrote? An episode grows turn by turn and its token ids never
//! change, so what the template writes for the first messages has to stay the beginning of what it
//! writes for all of them. Qwen3, for one, takes the reasoning out of earlier turns as soon as the
//! user speaks again.

use std::fmt;

use serde_json::{Value, json};

use super::{
    chat::{ChatTemplate, Conversation},
    error::TemplateError,
};

/// How much of each text a report shows, in characters.
const EXCERPT_CHARS: usize = 60;

/// Where a template first changes what it wrote before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixBreak {
    /// Index of the message whose addition changed the text before it.
    pub message: usize,
    /// Its role.
    pub role: String,
    /// Byte offset, in both texts, of the first difference.
    pub at_byte: usize,
    /// What the template wrote before the message came, all of it.
    pub before: String,
    /// What it wrote with the message.
    pub after: String,
}

/// What two probes, conversations with reasoning and tool calls, say of a template.
#[derive(Debug)]
pub struct PrefixReport {
    /// One user message, then calls and results: what an episode is.
    pub tool_loop: Result<Option<PrefixBreak>, TemplateError>,
    /// The same, and then the user speaks again.
    pub second_question: Result<Option<PrefixBreak>, TemplateError>,
}

impl ChatTemplate {
    /// Where the template first changes what it wrote for the beginning of `conversation`. At each
    /// assistant message three texts are compared: what the policy reads, that with its message,
    /// and what it reads next.
    ///
    /// # Errors
    /// When the template raises on the conversation or on a beginning of it.
    pub fn first_prefix_break(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<Option<PrefixBreak>, TemplateError> {
        let messages = conversation.messages;
        let by_assistant = |message: &Value| message["role"] == "assistant";
        let mut before = String::new();
        for end in 1..=messages.len() {
            let next = messages.get(end);
            let is_reply = by_assistant(&messages[end - 1]);
            let is_prompt = next.is_none_or(by_assistant) && !is_reply;
            if !is_reply && !is_prompt {
                continue;
            }
            let shown = Conversation {
                messages: &messages[..end],
                add_generation_prompt: is_prompt,
                ..*conversation
            };
            let after = self.render(&shown)?.text;
            if !after.starts_with(&before) {
                let role = messages[end - 1]["role"].as_str().unwrap_or_default().to_owned();
                return Ok(Some(PrefixBreak::between(before, after, end - 1, role)));
            }
            before = after;
        }
        Ok(None)
    }

    /// Probes the template: call it when a checkpoint is loaded. `extra` are the variables that
    /// the run will render with.
    #[must_use]
    pub fn probe_prefixes(&self, extra: Option<&serde_json::Map<String, Value>>) -> PrefixReport {
        let (messages, tools) = probe();
        let question = messages.iter().rposition(|message| message["role"] == "user");
        let check = |messages: &[Value]| {
            let conversation =
                Conversation { messages, tools: Some(&tools), extra, ..Conversation::default() };
            self.first_prefix_break(&conversation)
        };
        PrefixReport {
            tool_loop: check(&messages[..question.unwrap_or(messages.len())]),
            second_question: check(&messages),
        }
    }
}

impl PrefixReport {
    /// Whether episodes, which have one user message, can be rendered turn by turn.
    #[must_use]
    pub fn episodes_are_preserved(&self) -> bool {
        matches!(self.tool_loop, Ok(None))
    }
}

impl PrefixBreak {
    pub(crate) fn between(before: String, after: String, message: usize, role: String) -> Self {
        let mut pairs = std::iter::zip(before.char_indices(), after.chars());
        let difference = pairs.find(|((_, a), b)| a != b).map(|((at, _), _)| at);
        let at_byte = difference.unwrap_or(before.len().min(after.len()));
        Self { message, role, at_byte, before, after }
    }
}

impl fmt::Display for PrefixBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, role, at_byte, before, after } = self;
        let excerpt = |text: &str| text[*at_byte..].chars().take(EXCERPT_CHARS).collect::<String>();
        write!(
            f,
            "with message {message} ({role}), the text changes at byte {at_byte} from {:?} to {:?}",
            excerpt(before),
            excerpt(after)
        )
    }
}

impl fmt::Display for PrefixReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let probes =
            [("calls and results", &self.tool_loop), ("a second question", &self.second_question)];
        for (index, (name, outcome)) in probes.into_iter().enumerate() {
            write!(f, "{}{name}: ", if index > 0 { "; " } else { "" })?;
            match outcome {
                Ok(None) => write!(f, "kept")?,
                Ok(Some(difference)) => write!(f, "not kept, {difference}")?,
                Err(error) => write!(f, "cannot be rendered, {error}")?,
            }
        }
        Ok(())
    }
}

/// Messages and tools. One call at a time, ids of nine letters and digits, and arguments as
/// objects, because some families take nothing else.
fn probe() -> (Vec<Value>, Vec<Value>) {
    let call = |id: &str, city: &str| {
        json!({"role": "assistant", "content": "", "reasoning_content": format!("I look up {city}."),
            "tool_calls": [{"id": id, "type": "function",
                "function": {"name": "weather", "arguments": {"city": city}}}]})
    };
    let result = |id: &str, content: &str| json!({"role": "tool", "name": "weather", "tool_call_id": id, "content": content});
    let answer = |reasoning: &str, content: &str| json!({"role": "assistant", "content": content, "reasoning_content": reasoning});
    let messages = vec![
        json!({"role": "user", "content": "Where is it warmer, Bern or Oslo?"}),
        call("call00001", "Bern"),
        result("call00001", "{\"celsius\": 21}"),
        call("call00002", "Oslo"),
        result("call00002", "{\"celsius\": 17}"),
        answer("21 is more than 17.", "In Bern."),
        json!({"role": "user", "content": "By how much?"}),
        answer("21 - 17 = 4.", "By four degrees."),
    ];
    let tool = json!({"type": "function", "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "required": ["city"],
            "properties": {"city": {"type": "string", "description": "A city."}}}}});
    (messages, vec![tool])
}
