//! `/v1/chat/completions`: sampled tokens to messages, whole or in chunks.

use std::sync::Arc;

use ballast_chat::Tokenizer;
use serde_json::{Value, json};

use super::{
    Reply,
    answer::{Answer, Identity, Token, finish_reason, ids, set, stop_reason, usage},
};
use crate::serve::{
    message_reader::{MessageReader, Part},
    sequence::{Finish, Update},
};

const CHUNK: &str = "chat.completion.chunk";

/// All choices of one chat request.
#[derive(Debug)]
pub(super) struct ChatAnswer {
    identity: Identity,
    tokenizer: Tokenizer,
    prompt: Arc<[u32]>,
    reply: Reply,
    choices: Vec<Choice>,
}

/// One assistant message in the making.
#[derive(Debug)]
struct Choice {
    /// Absent where no tool was offered: then a message is only text.
    reader: Option<MessageReader>,
    content: String,
    calls: Vec<Value>,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl ChatAnswer {
    pub(super) fn new(
        identity: Identity,
        tokenizer: Tokenizer,
        prompt: Arc<[u32]>,
        reply: Reply,
        choices: usize,
        tools: &[Value],
    ) -> Self {
        let with_tools = !tools.is_empty();
        let choice = || Choice {
            reader: with_tools.then(|| MessageReader::new(tokenizer.clone(), tools)),
            content: String::new(),
            calls: Vec::new(),
            tokens: Vec::new(),
            finish: None,
        };
        let choices = std::iter::repeat_with(choice).take(choices).collect();
        Self { identity, tokenizer, prompt, reply, choices }
    }

    fn chunk(&self, index: usize, delta: &Value, finish_reason: Option<&str>) -> Value {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish_reason,
        });
        self.identity.envelope(CHUNK, vec![choice])
    }

    fn completion_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens.len()).sum()
    }

    fn usage(&self) -> Value {
        usage(self.prompt.len(), self.completion_tokens())
    }
}

impl Answer for ChatAnswer {
    fn opening(&self) -> Vec<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        let mut chunks: Vec<Value> =
            (0..self.choices.len()).map(|index| self.chunk(index, &delta, None)).collect();
        if self.reply.token_ids
            && let Some(first) = chunks.first_mut()
        {
            set(first, "prompt_token_ids", json!(self.prompt[..]));
        }
        chunks
    }

    fn take(&mut self, index: usize, update: &Update) -> Option<Value> {
        let choice = self.choices.get_mut(index)?;
        let delta = choice.take(update, &self.identity.id, index);
        let reason = choice.finish_reason();
        let Reply { token_ids, logprobs, .. } = self.reply;
        let tells = delta.as_object().is_some_and(|delta| !delta.is_empty()) || reason.is_some();
        if !tells && !token_ids && !logprobs {
            return None;
        }
        let mut chunk = self.chunk(index, &delta, reason);
        let written = &mut chunk["choices"][0];
        if reason.is_some() {
            set(written, "stop_reason", stop_reason(update.finish.as_ref()));
        }
        if logprobs {
            set(written, "logprobs", logprobs_of(&self.tokenizer, &[Token::of(update)]));
        }
        if token_ids {
            set(written, "token_ids", json!([update.token]));
        }
        Some(chunk)
    }

    fn closing_usage(&self) -> Value {
        let mut chunk = self.identity.envelope(CHUNK, Vec::new());
        set(&mut chunk, "usage", self.usage());
        chunk
    }

    fn whole(&mut self) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let mut written = json!({
                "index": index,
                "message": choice.message(),
                "logprobs": null,
                "finish_reason": choice.finish_reason(),
                "stop_reason": stop_reason(choice.finish.as_ref()),
            });
            if self.reply.logprobs {
                set(&mut written, "logprobs", logprobs_of(&self.tokenizer, &choice.tokens));
            }
            if self.reply.token_ids {
                set(&mut written, "token_ids", json!(ids(&choice.tokens)));
            }
            written
        };
        let choices = self.choices.iter().enumerate().map(choice).collect();
        let mut answer = self.identity.envelope("chat.completion", choices);
        set(&mut answer, "usage", self.usage());
        if self.reply.token_ids {
            set(&mut answer, "prompt_token_ids", json!(self.prompt[..]));
        }
        answer
    }
}

impl Choice {
    /// Takes one token and says what it adds to the message: the `delta` of a chunk.
    fn take(&mut self, update: &Update, answer_id: &str, index: usize) -> Value {
        self.tokens.push(Token::of(update));
        self.finish.clone_from(&update.finish);
        let parts = self.parts(update);
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(piece) => text.push_str(&piece),
                Part::Call { name, arguments } => {
                    let at = self.calls.len();
                    let call = json!({
                        "id": format!("call-{answer_id}-{index}-{at}"),
                        "type": "function",
                        "function": { "name": name, "arguments": arguments },
                    });
                    self.calls.push(call.clone());
                    let mut call = call;
                    set(&mut call, "index", json!(at));
                    calls.push(call);
                }
            }
        }
        self.content.push_str(&text);
        let mut delta = json!({});
        if !text.is_empty() {
            set(&mut delta, "content", text.into());
        }
        if !calls.is_empty() {
            set(&mut delta, "tool_calls", calls.into());
        }
        delta
    }

    fn parts(&mut self, update: &Update) -> Vec<Part> {
        let Some(reader) = &mut self.reader else {
            return vec![Part::Text(update.text.clone())];
        };
        let mut parts = match update.finish {
            Some(Finish::StopToken(_)) => Vec::new(),
            _ => reader.push(update.token),
        };
        if update.finish.is_some() {
            parts.extend(reader.finish());
        }
        parts
    }

    fn finish_reason(&self) -> Option<&'static str> {
        let reason = finish_reason(self.finish.as_ref()?);
        // A message cut off in its second call must not pass for a complete one.
        Some(if reason == "stop" && !self.calls.is_empty() { "tool_calls" } else { reason })
    }

    fn message(&self) -> Value {
        let only_calls = self.content.is_empty() && !self.calls.is_empty();
        let content = if only_calls { Value::Null } else { self.content.clone().into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if !self.calls.is_empty() {
            set(&mut message, "tool_calls", self.calls.clone().into());
        }
        message
    }
}

fn logprobs_of(tokenizer: &Tokenizer, tokens: &[Token]) -> Value {
    let entry = |token: &Token| {
        json!({
            "token": token.text(tokenizer),
            "logprob": token.policy_logprob,
            "sampled_logprob": token.sampled_logprob,
            "bytes": token.bytes(tokenizer),
            "top_logprobs": [],
        })
    };
    json!({ "content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null })
}
