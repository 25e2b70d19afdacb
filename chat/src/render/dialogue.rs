//! One conversation of an episode, told turn by turn.

use ballast_proto::v1::Role;
use serde_json::{Map, Value, json};

use super::{Inner, Renderer, Segment};
use crate::{
    format::{AssistantMessage, REASONING_END},
    template::{Conversation, Stripped, TemplateError, Texts},
};

/// Begins the reasoning that a message begins with, where the header does not.
const REASONING_BEGIN: &str = "<think>";

/// One conversation, growing.
#[derive(Clone, Debug)]
pub struct Dialogue {
    renderer: Renderer,
    tools: Vec<Value>,
    texts: Texts,
    /// What the template wrote so far, without the header of the message to come.
    context: String,
    /// Calls so far; their ids are made of it.
    calls: usize,
}

/// What the policy reads between two of its messages, but for the header of the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Belongs to the message that ended: a newline, or nothing.
    pub trailer: Vec<u32>,
    /// The results of its calls.
    pub results: Segment,
}

impl Dialogue {
    /// A conversation that begins with a request, and the tokens up to the first header.
    pub(super) fn open(
        renderer: Renderer,
        tools: &[Value],
        request: &str,
    ) -> Result<(Self, Vec<u32>), TemplateError> {
        let Inner { encoder, header, .. } = &*renderer.inner;
        let tools: Vec<_> = tools.iter().map(tool_definition).collect();
        let texts = encoder.texts(&Conversation {
            messages: &[json!({"role": "user", "content": request})],
            tools: (!tools.is_empty()).then_some(&*tools),
            ..Conversation::default()
        })?;
        let context = String::new();
        let mut dialogue = Self { renderer: renderer.clone(), tools, texts, context, calls: 0 };
        let prompt = dialogue.prompt(0)?;
        let end = prompt.text.len() - header.len();
        let ids = encoder.encode_part(&prompt, 0..end)?.token_ids;
        dialogue.keep(prompt, end);
        Ok((dialogue, ids))
    }

    /// The definitions of the tools, as messages are to be parsed with.
    #[must_use]
    pub fn tools(&self) -> &[Value] {
        &self.tools
    }

    /// What the policy would have to write to say `text` and make `calls`, each as (name,
    /// arguments): its tokens, the one that ends the message included.
    ///
    /// # Errors
    /// When the template refuses the message, or writes it otherwise than behind the header.
    pub fn message_of(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<u32>, TemplateError> {
        let Inner { encoder, header, .. } = &*self.renderer.inner;
        let calls: Vec<_> = calls.iter().zip(self.calls..).map(call_of).collect();
        let mut texts = self.texts.clone();
        encoder.push(&mut texts, &assistant_message(text, &calls))?;
        let rendered = self.render(&texts, false)?;
        let prompt = [self.context.as_str(), header].concat();
        if !rendered.text.starts_with(&prompt) {
            let (at, role) = (self.texts.len(), "assistant".to_owned());
            return Err(encoder.not_preserving(&prompt, &rendered.text, at, role));
        }
        let end = encoder.stop_after(&rendered, prompt.len());
        let end = end.ok_or_else(|| encoder.unfit("ends no message of the assistant"))?;
        Ok(encoder.encode_part(&rendered, prompt.len()..end)?.token_ids)
    }

    /// Goes on behind `reply` with the results of its calls, malformed ones included, in order.
    ///
    /// # Errors
    /// When the template refuses the conversation or changes what it wrote before.
    pub fn answer(
        &mut self,
        reply: &AssistantMessage,
        results: &[String],
    ) -> Result<Continuation, TemplateError> {
        let at = self.texts.len();
        let names = reply.calls.iter().map(|call| (call.name.as_str(), &call.arguments));
        let calls = std::iter::zip(names, self.calls..);
        let calls: Vec<_> = calls.map(|(call, number)| call_of((&call, number))).collect();
        self.calls += calls.len();
        let reply = assistant_message(&reply.text, &calls);
        let told = self.tell(&reply, &calls, results).and_then(|()| self.prompt(at));
        let prompt = told.or_else(|_| {
            // Llama 3 knows one call a message, and what a policy writes may be too much for any
            // template. Of the reply only its end is looked for, so that another will do.
            self.texts.truncate(at);
            self.tell(&stand_in(&calls), &calls, results)?;
            self.prompt(at)
        })?;
        let Inner { encoder, header, .. } = &*self.renderer.inner;
        let end = prompt.text.len() - header.len();
        let behind = encoder.stop_after(&prompt, self.context.len()).filter(|stop| *stop <= end);
        let behind = behind.ok_or_else(|| encoder.unfit("ends no message of the assistant"))?;
        let mut ids = encoder.encode_part(&prompt, behind..end)?.token_ids;
        let start = self.renderer.tokenizer().control().im_start;
        let results = ids.split_off(ids.iter().position(|id| *id == start).unwrap_or(0));
        self.keep(prompt, end);
        Ok(Continuation { trailer: ids, results: Segment { role: Role::Tool, token_ids: results } })
    }

    /// Adds a message of the assistant and the results of its calls.
    fn tell(
        &mut self,
        reply: &Value,
        calls: &[Value],
        results: &[String],
    ) -> Result<(), TemplateError> {
        let encoder = &self.renderer.inner.encoder;
        encoder.push(&mut self.texts, reply)?;
        for (call, result) in calls.iter().zip(results) {
            let message = json!({"role": "tool", "name": call["function"]["name"],
                "tool_call_id": call["id"], "content": result});
            encoder.push(&mut self.texts, &message)?;
        }
        Ok(())
    }

    /// Renders up to and including the header, and checks that what was there is still there.
    /// `newest` is the first message that was not.
    fn prompt(&self, newest: usize) -> Result<Stripped, TemplateError> {
        let Inner { encoder, header, .. } = &*self.renderer.inner;
        let prompt = self.render(&self.texts, true)?;
        if !prompt.text.starts_with(&self.context) {
            let role = self.texts.role(newest);
            return Err(encoder.not_preserving(&self.context, &prompt.text, newest, role));
        }
        if !prompt.text[self.context.len()..].ends_with(header.as_str()) {
            return Err(encoder.unfit("does not end every prompt with the same text"));
        }
        Ok(prompt)
    }

    fn render(
        &self,
        texts: &Texts,
        add_generation_prompt: bool,
    ) -> Result<Stripped, TemplateError> {
        let Inner { encoder, variables, .. } = &*self.renderer.inner;
        encoder.template().render_texts(texts, add_generation_prompt, Some(variables))
    }

    fn keep(&mut self, prompt: Stripped, end: usize) {
        self.context = prompt.text;
        self.context.truncate(end);
    }
}

/// The reasoning that a message begins with, if it has some, and what it says behind it.
#[must_use]
pub fn split_reasoning(text: &str) -> (Option<&str>, &str) {
    let Some((reasoning, said)) = text.split_once(REASONING_END) else { return (None, text) };
    let reasoning = reasoning.trim();
    let reasoning = reasoning.strip_prefix(REASONING_BEGIN).unwrap_or(reasoning);
    (Some(reasoning.trim()), said.trim())
}

/// As the OpenAI API has it, which is what templates expect.
fn tool_definition(tool: &Value) -> Value {
    match tool.get("function") {
        Some(_) => tool.clone(),
        None => json!({"type": "function", "function": tool}),
    }
}

/// A call and its number in the conversation. Some families want ids of nine letters and digits.
fn call_of(((name, arguments), number): (&(&str, &Map<String, Value>), usize)) -> Value {
    json!({"id": format!("call{number:05}"), "type": "function",
        "function": {"name": name, "arguments": arguments}})
}

fn assistant_message(text: &str, calls: &[Value]) -> Value {
    let (reasoning, content) = split_reasoning(text);
    let mut message = json!({"role": "assistant", "content": content});
    if let Some(reasoning) = reasoning {
        message["reasoning_content"] = reasoning.into();
    }
    // Templates ask whether the key is there.
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// What a template is told in place of a message that it cannot write.
fn stand_in(calls: &[Value]) -> Value {
    let first = calls.first().cloned().map(|mut call| {
        call["function"]["arguments"] = json!({});
        call
    });
    assistant_message("", &Vec::from_iter(first))
}
