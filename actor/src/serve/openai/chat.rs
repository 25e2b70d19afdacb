//! `/v1/chat/completions`: a request to plans.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    ApiError, Identity, Request,
    chat_answer::ChatAnswer,
    messages::{conversation, tools},
    options::read_request,
};
use crate::serve::{sequence::Plan, served_model::ServedModel};

/// What only this endpoint has. Messages and tools are read apart, to name their faults by path.
#[derive(Debug, Deserialize)]
struct ChatFields {
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// Variables for the chat template, for example `enable_thinking`.
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Checks a request and turns it into plans. `seed` is for requests that bring none.
///
/// # Errors
/// The first fault, named by its field.
pub fn chat(
    model: &std::sync::Arc<ServedModel>,
    body: &Value,
    identity: Identity,
    seed: u64,
) -> Result<Request, ApiError> {
    let (options, fields): (_, ChatFields) = read_request(body, &model.name)?;
    if fields.top_logprobs.unwrap_or(0) > 0 {
        let message = "top_logprobs: only the sampled token's log-probability is computed; use 0";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    if fields.parallel_tool_calls == Some(false) {
        let message = "parallel_tool_calls = false cannot be enforced; leave it out";
        return Err(ApiError::invalid("parallel_tool_calls", message));
    }
    let messages = conversation(body.get("messages"))?;
    let tools = offered(tools(body.get("tools"))?, fields.tool_choice.as_ref())?;
    let stop_strings = options.stop_strings()?;
    if !tools.is_empty() && !stop_strings.is_empty() {
        let message = "stop strings could cut a tool call in two; with tools use stop_token_ids";
        return Err(ApiError::invalid("stop", message));
    }
    let prompt =
        model.chat_prompt(&messages, &tools, &fields.chat_template_kwargs.unwrap_or_default())?;
    let asked = fields.max_completion_tokens.or(fields.max_tokens);
    let tokens_max = model.tokens_max(prompt.len(), asked, None)?;
    let reply = options.reply(fields.logprobs.unwrap_or(false));
    let plan = |index| {
        Ok(Plan {
            prompt: prompt.clone(),
            sampling: options.sampling(model.vocab_size, seed, index)?,
            tokens_max,
            stop_tokens: options.stop_tokens(&model.stop_tokens),
            stop_strings: stop_strings.clone(),
        })
    };
    let plans: Vec<Plan> = (0..options.choices(1)?).map(plan).collect::<Result<_, ApiError>>()?;
    let prompt_tokens = prompt.len();
    let answer =
        ChatAnswer::new(identity, model.tokenizer.clone(), prompt, reply, plans.len(), &tools);
    Ok(Request { plans, prompt_tokens, reply, answer: Box::new(answer) })
}

/// The tools the model is told about: all or none. Without constrained decoding nothing else can be
/// promised.
fn offered(tools: Vec<Value>, choice: Option<&Value>) -> Result<Vec<Value>, ApiError> {
    match choice {
        None | Some(Value::Null) => Ok(tools),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        Some(Value::String(choice)) if choice == "none" => Ok(Vec::new()),
        Some(other) => {
            let message =
                format!("tool_choice = {other} cannot be enforced; use \"auto\" or \"none\"");
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}
