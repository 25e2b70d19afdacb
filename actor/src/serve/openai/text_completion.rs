//! `/v1/completions`: prompts as text or token ids, continued as they are.

use std::sync::Arc;

use ballast_chat::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, Reply, Request,
    answer::{Answer, Identity, Token, finish_reason, ids, set, stop_reason, usage},
    options::{CHOICES_MAX, read_request},
};
use crate::serve::{
    sequence::{Finish, Plan, Update},
    served_model::ServedModel,
};

/// Tokens of a completion that asks for no number: what the API documents.
const TOKENS_DEFAULT: usize = 16;

const OBJECT: &str = "text_completion";

#[derive(Debug, Deserialize)]
struct TextFields {
    prompt: Prompts,
    max_tokens: Option<usize>,
    /// How many of the likeliest tokens to list beside the sampled one.
    logprobs: Option<u32>,
    /// Control tokens whose log-probabilities to list at every position, as vLLM has it.
    logprob_token_ids: Option<Vec<u32>>,
    /// Names tokens `token_id:ID` in the lists of log-probabilities.
    return_tokens_as_token_ids: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, a list of token ids, or a list of such lists"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// Checks a request and turns it into plans. `seed` is for requests that bring none.
///
/// # Errors
/// The first fault, named by its field.
pub fn text_completion(
    model: &Arc<ServedModel>,
    body: &Value,
    identity: Identity,
    seed: u64,
) -> Result<Request, ApiError> {
    let (options, fields): (_, TextFields) = read_request(body, &model.name)?;
    if fields.logprobs.unwrap_or(0) > 0 {
        let message = "logprobs: only the sampled token's log-probability is computed; use 0";
        return Err(ApiError::invalid("logprobs", message));
    }
    let listing = Listing::new(model, &fields)?;
    let prompts = prompts(model, fields.prompt)?;
    let n = options.choices(prompts.len())?;
    let stop_strings = options.stop_strings()?;
    let stop_tokens = options.stop_tokens(&model.stop_tokens);
    let reply = options.reply(fields.logprobs.is_some());
    let (mut plans, mut choices) = (Vec::new(), Vec::new());
    for prompt in &prompts {
        let tokens_max = model.tokens_max(prompt.len(), fields.max_tokens, Some(TOKENS_DEFAULT))?;
        for _ in 0..n {
            plans.push(Plan {
                prompt: prompt.clone(),
                sampling: options.sampling(model.vocab_size, seed, plans.len())?,
                tokens_max,
                stop_tokens: stop_tokens.clone(),
                stop_strings: stop_strings.clone(),
            });
            choices.push(Choice::new(prompt.clone()));
        }
    }
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
    let tokenizer = model.tokenizer.clone();
    let answer = TextAnswer { identity, tokenizer, prompt_tokens, reply, listing, choices };
    Ok(Request { plans, prompt_tokens, reply, answer: Box::new(answer) })
}

fn prompts(model: &ServedModel, prompts: Prompts) -> Result<Vec<Arc<[u32]>>, ApiError> {
    let count = match &prompts {
        Prompts::Texts(texts) => texts.len(),
        Prompts::IdLists(lists) => lists.len(),
        Prompts::Text(_) | Prompts::Ids(_) => 1,
    };
    if count == 0 || count > CHOICES_MAX {
        let message = format!("{count} prompts; a request has from 1 to {CHOICES_MAX}");
        return Err(ApiError::invalid("prompt", message));
    }
    match prompts {
        Prompts::Text(text) => Ok(vec![model.text_prompt(&text)?]),
        Prompts::Ids(ids) => Ok(vec![model.checked("prompt", ids)?]),
        Prompts::Texts(texts) => texts.iter().map(|text| model.text_prompt(text)).collect(),
        Prompts::IdLists(lists) => {
            let named = |(at, ids)| model.checked(&format!("prompt[{at}]"), ids);
            lists.into_iter().enumerate().map(named).collect()
        }
    }
}

/// All completions of one request.
#[derive(Debug)]
struct TextAnswer {
    identity: Identity,
    tokenizer: Tokenizer,
    prompt_tokens: usize,
    reply: Reply,
    listing: Listing,
    choices: Vec<Choice>,
}

/// How log-probabilities are listed.
#[derive(Debug)]
struct Listing {
    /// Tokens are named by their ids.
    by_id: bool,
    /// Control tokens to list at every position: index in `ControlTokens::all`, and name.
    control: Option<Vec<(usize, String)>>,
}

impl Listing {
    fn new(model: &ServedModel, fields: &TextFields) -> Result<Self, ApiError> {
        let by_id = fields.return_tokens_as_token_ids.unwrap_or(false);
        let Some(asked) = fields.logprob_token_ids.as_ref().filter(|asked| !asked.is_empty())
        else {
            return Ok(Self { by_id, control: None });
        };
        let refused = |message: String| ApiError::invalid("logprob_token_ids", message);
        if fields.logprobs.is_none() || !by_id {
            // The texts of two tokens can be alike.
            return Err(refused(
                "logprob_token_ids takes logprobs and return_tokens_as_token_ids beside it".into(),
            ));
        }
        let all = model.tokenizer.control().all();
        if asked.len() > all.len() {
            let (count, most) = (asked.len(), all.len());
            return Err(refused(format!("logprob_token_ids lists {count} tokens, at most {most}")));
        }
        let place = |id: &u32| {
            let index = all.iter().position(|other| other == id);
            let unknown = || refused(format!("{id} is no control token; those are {all:?}"));
            Ok((index.ok_or_else(unknown)?, name(*id)))
        };
        let control = asked.iter().map(place).collect::<Result<_, ApiError>>()?;
        Ok(Self { by_id, control: Some(control) })
    }

    fn top(&self, token: Token) -> Value {
        let Some(control) = &self.control else { return Value::Null };
        let entry =
            |(index, name): &(usize, String)| (name.clone(), json!(token.control_logprob(*index)));
        Value::Object(control.iter().map(entry).collect())
    }
}

fn name(id: u32) -> String {
    format!("token_id:{id}")
}

#[derive(Debug)]
struct Choice {
    prompt: Arc<[u32]>,
    text: String,
    tokens: Vec<Token>,
    /// Characters of token texts before the next token.
    offset: usize,
    finish: Option<Finish>,
}

impl Choice {
    fn new(prompt: Arc<[u32]>) -> Self {
        Self { prompt, text: String::new(), tokens: Vec::new(), offset: 0, finish: None }
    }
}

impl TextAnswer {
    fn completion_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens.len()).sum()
    }

    /// `tokens` of a choice, of which the first begins at character `offset` of the completion.
    fn logprobs(&self, tokens: &[Token], mut offset: usize) -> Value {
        let texts: Vec<String> = tokens.iter().map(|token| token.text(&self.tokenizer)).collect();
        let mut offsets = Vec::with_capacity(texts.len());
        for text in &texts {
            offsets.push(offset);
            offset += text.chars().count();
        }
        let names = if self.listing.by_id {
            tokens.iter().map(|token| name(token.id)).collect()
        } else {
            texts
        };
        let top = self.listing.control.as_ref();
        let top = top.map(|_| tokens.iter().map(|token| self.listing.top(*token)).collect());
        json!({
            "tokens": names,
            "token_logprobs": tokens.iter().map(|token| token.policy_logprob).collect::<Vec<_>>(),
            "sampled_logprobs": tokens.iter().map(|token| token.sampled_logprob).collect::<Vec<_>>(),
            "entropies": tokens.iter().map(|token| token.entropy).collect::<Vec<_>>(),
            "top_logprobs": top.unwrap_or(Value::Null),
            "text_offset": offsets,
        })
    }

    /// A choice, or the part of one that `tokens` added.
    fn written(&self, index: usize, text: &str, tokens: &[Token], offset: usize) -> Value {
        let choice = &self.choices[index];
        let mut written = json!({
            "index": index,
            "text": text,
            "logprobs": null,
            "finish_reason": choice.finish.as_ref().map(finish_reason),
            "stop_reason": stop_reason(choice.finish.as_ref()),
        });
        if self.reply.logprobs {
            set(&mut written, "logprobs", self.logprobs(tokens, offset));
        }
        if self.reply.token_ids {
            set(&mut written, "token_ids", json!(ids(tokens)));
            if tokens.len() == choice.tokens.len() {
                set(&mut written, "prompt_token_ids", json!(choice.prompt[..]));
            }
        }
        written
    }
}

impl Answer for TextAnswer {
    fn opening(&self) -> Vec<Value> {
        Vec::new()
    }

    fn take(&mut self, index: usize, update: &Update) -> Option<Value> {
        let token = Token::of(update);
        let characters = token.text(&self.tokenizer).chars().count();
        let choice = self.choices.get_mut(index)?;
        choice.text.push_str(&update.text);
        choice.tokens.push(token);
        choice.finish.clone_from(&update.finish);
        let offset = choice.offset;
        choice.offset += characters;
        let tells = !update.text.is_empty() || update.finish.is_some();
        if !tells && !self.reply.token_ids && !self.reply.logprobs {
            return None;
        }
        let written = self.written(index, &update.text, &[token], offset);
        Some(self.identity.envelope(OBJECT, vec![written]))
    }

    fn closing_usage(&self) -> Value {
        let mut chunk = self.identity.envelope(OBJECT, Vec::new());
        set(&mut chunk, "usage", usage(self.prompt_tokens, self.completion_tokens()));
        chunk
    }

    fn whole(&mut self) -> Value {
        let choice = |index: usize| {
            let choice = &self.choices[index];
            self.written(index, &choice.text, &choice.tokens, 0)
        };
        let choices = (0..self.choices.len()).map(choice).collect();
        let mut answer = self.identity.envelope(OBJECT, choices);
        set(&mut answer, "usage", usage(self.prompt_tokens, self.completion_tokens()));
        answer
    }
}
