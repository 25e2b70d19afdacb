//! `ballast-actor generate`: completions of prompts in a file.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use ballast_runtime::exit;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    decoder::Sampling,
    model::{Model, ModelArgs},
    serve::{
        batch::Batch,
        openai::{conversation, tools},
        prompt::Prompter,
        sequence::{Finish, Plan, Update},
    },
    token_lists,
};

/// Completions under way at once.
const SLOTS_MAX: usize = 32;
/// Largest softmax temperature.
const TEMPERATURE_MAX: f32 = 100.0;

/// Continue prompts and print each completion.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Tokens of one completion, at most.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Softmax temperature; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Seed of the first completion; those after it count on from it.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print one JSON line per completion, with token ids and log-probabilities.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct PromptArgs {
    /// JSON file: a list of lists of token ids.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// JSON file: a list of messages, or {"messages": .., "tools": ..}, or a list of such objects.
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
}

#[derive(Serialize)]
struct Line<'a> {
    prompt_token_ids: &'a [u32],
    token_ids: Vec<u32>,
    /// Natural logs under the policy: softmax at temperature 1.
    logprobs: Vec<f32>,
    /// Natural logs under the distribution each token was drawn from.
    sampled_logprobs: Vec<f32>,
    /// Null where the checkpoint has no usable tokenizer.
    text: Option<String>,
    finish_reason: &'static str,
}

/// Generates and writes every completion, in the order of the prompts.
///
/// # Errors
/// The model or the file cannot be used, or the network failed.
pub fn run(args: &GenerateArgs, out: &mut impl Write) -> anyhow::Result<()> {
    if !(0.0..=TEMPERATURE_MAX).contains(&args.temperature) {
        let message =
            format!("--temperature {} is not in 0 to {TEMPERATURE_MAX}", args.temperature);
        return Err(exit::unusable(message).into());
    }
    let model = Model::open(&args.model).map_err(exit::unusable)?;
    let prompts = prompts(args, &model).map_err(exit::unusable)?;
    let tokenizer = match model.tokenizer() {
        Ok(tokenizer) => Some(tokenizer),
        Err(error) if args.json => {
            tracing::warn!("completions have no text: {error}");
            None
        }
        Err(error) => return Err(exit::unusable(error.to_string()).into()),
    };
    let has_text = tokenizer.is_some();
    let plans = plans(args, &model, prompts);
    let longest = plans.iter().map(|plan| plan.prompt.len() + plan.tokens_max).max().unwrap_or(1);
    let slots = plans.len().clamp(1, SLOTS_MAX);
    let mut batch = Batch::new(model.into_decoder(slots, longest), slots, tokenizer);
    let completions = complete(&mut batch, &plans)?;
    for (plan, updates) in plans.iter().zip(completions) {
        let text = updates.iter().map(|update| update.text.as_str()).collect::<String>();
        if !args.json {
            writeln!(out, "{text}")?;
            continue;
        }
        let length = updates.last().is_some_and(|last| last.finish == Some(Finish::Length));
        let line = Line {
            prompt_token_ids: &plan.prompt,
            token_ids: updates.iter().map(|update| update.token).collect(),
            logprobs: updates.iter().map(|update| update.policy_logprob).collect(),
            sampled_logprobs: updates.iter().map(|update| update.logprob).collect(),
            text: has_text.then_some(text),
            finish_reason: if length { "length" } else { "stop" },
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn plans(args: &GenerateArgs, model: &Model, prompts: Vec<Vec<u32>>) -> Vec<Plan> {
    let stop_tokens: Arc<[u32]> = model.stop_tokens().into();
    let plan = |(index, prompt): (usize, Vec<u32>)| Plan {
        prompt: prompt.into(),
        sampling: Sampling::new(args.seed.wrapping_add(index as u64), args.temperature),
        tokens_max: args.max_tokens as usize,
        stop_tokens: Arc::clone(&stop_tokens),
        stop_strings: Vec::new(),
    };
    prompts.into_iter().enumerate().map(plan).collect()
}

/// Runs all plans, as many at once as there are slots.
fn complete(batch: &mut Batch, plans: &[Plan]) -> anyhow::Result<Vec<Vec<Update>>> {
    let mut completions: Vec<Vec<Update>> = vec![Vec::new(); plans.len()];
    let mut waiting = plans.iter().enumerate().peekable();
    // Which plan runs in which slot.
    let mut running = vec![0; batch.free()];
    loop {
        while let Some((index, plan)) = waiting.next_if(|_| batch.free() > 0) {
            if let Some(slot) = batch.admit(plan) {
                running[slot] = index;
            }
        }
        if batch.running() == 0 {
            return Ok(completions);
        }
        for (slot, update) in batch.step().context("the network failed")? {
            completions[running[slot]].push(update);
        }
    }
}

fn prompts(args: &GenerateArgs, model: &Model) -> anyhow::Result<Vec<Vec<u32>>> {
    let (vocab_size, context) = (model.vocab_size(), model.context_tokens());
    let reserved = args.max_tokens as usize;
    let lists = match (&args.prompts.tokens, &args.prompts.messages) {
        (Some(path), _) => token_lists::read(path, vocab_size, context, reserved)?,
        (None, Some(path)) => conversations(path, model, reserved)?,
        (None, None) => bail!("name the prompts with --tokens or --messages"),
    };
    match lists.iter().position(Vec::is_empty) {
        Some(index) => bail!("list {index} is empty; a prompt has at least one token"),
        None => Ok(lists),
    }
}

fn conversations(path: &Path, model: &Model, reserved: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let file = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {file}"))?;
    let value: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{file} is no valid JSON"))?;
    let prompter = Prompter::open(model.directory(), model.tokenizer()?)?;
    let prompt = |(index, conversation): (usize, &Value)| {
        let named = || format!("{file}: conversation {index}");
        let prompt = prompt(&prompter, conversation).with_context(named)?;
        let context = model.context_tokens();
        let fits = token_lists::fits(prompt, context, reserved).map_err(anyhow::Error::msg);
        fits.with_context(named)
    };
    split(&value).iter().enumerate().map(prompt).collect()
}

/// The conversations of a file: one if it is an object or a list of messages.
fn split(value: &Value) -> Vec<Value> {
    let is_conversation = |item: &Value| item.get("messages").is_some();
    match value.as_array() {
        Some(items) if items.iter().any(is_conversation) => items.clone(),
        _ => vec![value.clone()],
    }
}

fn prompt(prompter: &Prompter, value: &Value) -> anyhow::Result<Vec<u32>> {
    let messages = if value.is_array() { Some(value) } else { value.get("messages") };
    let messages = conversation(messages)?;
    let tools = tools(value.get("tools"))?;
    Ok(prompter.prompt(&messages, &tools, &Map::new())?)
}
