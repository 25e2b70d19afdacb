//! What both endpoints let a client choose: how tokens are drawn, when a completion ends, and what
//! comes back with it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::ApiError;
use crate::decoder::Sampling;

/// Completions of one request, over all its prompts.
pub const CHOICES_MAX: usize = 128;
/// Stop strings of one request.
pub const STOP_STRINGS_MAX: usize = 16;
/// Bytes of one stop string.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
/// Tokens a request may bias.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Largest logit bias, either way: OpenAI's own bound.
const LOGIT_BIAS_LIMIT: f32 = 100.0;
/// Largest softmax temperature; far beyond it every token is as likely as any other.
const TEMPERATURE_MAX: f32 = 100.0;

/// The shared fields of a request. Fields that servers of this kind have and this one does not are
/// refused by `refuse_unsupported` unless they ask for nothing; unknown ones are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    model: Option<String>,
    n: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// 0 and -1 are off.
    top_k: Option<i64>,
    min_p: Option<f32>,
    seed: Option<i64>,
    logit_bias: Option<BTreeMap<String, f32>>,
    stop: Option<Strings>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum Strings {
    One(String),
    Many(Vec<String>),
}

/// What a client gets beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Chunks as server-sent events.
    pub stream: bool,
    /// A last chunk with the token counts.
    pub stream_usage: bool,
    /// Ids of the prompt's and the completion's tokens.
    pub token_ids: bool,
    /// Log-probability of each sampled token.
    pub logprobs: bool,
}

impl Options {
    /// Checks that the client asks for the model that is served. Leaving it out is fine.
    ///
    /// # Errors
    /// 404 for any other model.
    fn check_model(&self, served: &str) -> Result<(), ApiError> {
        match &self.model {
            Some(asked) if asked != served => {
                let message =
                    format!("the model {asked:?} does not exist; this server has {served:?}");
                Err(ApiError {
                    status: 404,
                    code: "model_not_found",
                    ..ApiError::invalid("model", message)
                })
            }
            _ => Ok(()),
        }
    }

    /// Completions for each prompt.
    ///
    /// # Errors
    /// Too few or too many.
    pub fn choices(&self, prompts: usize) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1);
        if n == 0 || n.saturating_mul(prompts) > CHOICES_MAX {
            let message = format!(
                "n = {n} with {prompts} prompt(s): a request has from 1 to {CHOICES_MAX} completions"
            );
            return Err(ApiError::invalid("n", message));
        }
        Ok(n)
    }

    /// How the completion `index` of the request is drawn. `fallback` is the seed of a request that
    /// brings none. Completions of one request draw from seeds that follow one another.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn sampling(
        &self,
        vocab_size: usize,
        fallback: u64,
        index: usize,
    ) -> Result<Sampling, ApiError> {
        let number = |name, value: Option<f32>, default: f32, allowed: fn(f32) -> bool, range| {
            let value = value.unwrap_or(default);
            let message = || format!("{name} = {value} is out of range: {range}");
            if allowed(value) { Ok(value) } else { Err(ApiError::invalid(name, message())) }
        };
        let from_zero = |value| (0.0..=TEMPERATURE_MAX).contains(&value);
        let share = |value| value > 0.0 && value <= 1.0;
        let probability = |value| (0.0..=1.0).contains(&value);
        let seed = self.seed.map_or(fallback, i64::cast_unsigned);
        Ok(Sampling {
            seed: seed.wrapping_add(index as u64),
            logit_bias: self.logit_bias(vocab_size)?,
            temperature: number("temperature", self.temperature, 1.0, from_zero, "0 to 100")?,
            top_k: self.top_k()?,
            top_p: number("top_p", self.top_p, 1.0, share, "above 0, to 1")?,
            min_p: number("min_p", self.min_p, 0.0, probability, "0 to 1")?,
        })
    }

    fn top_k(&self) -> Result<u32, ApiError> {
        match self.top_k {
            None | Some(-1) => Ok(0),
            Some(k) => u32::try_from(k).map_err(|_| {
                ApiError::invalid("top_k", format!("top_k = {k} is out of range: -1 (off) or more"))
            }),
        }
    }

    fn logit_bias(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(biases) = &self.logit_bias else { return Ok(Vec::new()) };
        let refuse = |message| ApiError::invalid("logit_bias", message);
        if biases.len() > LOGIT_BIAS_MAX {
            return Err(refuse(format!("{} tokens, at most {LOGIT_BIAS_MAX}", biases.len())));
        }
        let limits = -LOGIT_BIAS_LIMIT..=LOGIT_BIAS_LIMIT;
        let pair = |(token, bias): (&String, &f32)| {
            let id = token.parse().ok().filter(|id| (*id as usize) < vocab_size);
            let id: u32 = id.ok_or_else(|| {
                refuse(format!("{token:?} is no token id; ids are 0 to {}", vocab_size - 1))
            })?;
            if !limits.contains(bias) {
                return Err(refuse(format!("the bias {bias} of token {id} is not in -100 to 100")));
            }
            Ok((id, *bias))
        };
        biases.iter().map(pair).collect()
    }

    /// Texts that end a completion.
    ///
    /// # Errors
    /// Too many, too long, or an empty one.
    pub fn stop_strings(&self) -> Result<Vec<String>, ApiError> {
        let strings = match &self.stop {
            None => Vec::new(),
            Some(Strings::One(string)) => vec![string.clone()],
            Some(Strings::Many(strings)) => strings.clone(),
        };
        let fits = |string: &String| (1..=STOP_STRING_BYTES_MAX).contains(&string.len());
        if strings.len() > STOP_STRINGS_MAX || !strings.iter().all(fits) {
            let message = format!(
                "stop takes at most {STOP_STRINGS_MAX} strings of 1 to {STOP_STRING_BYTES_MAX} bytes"
            );
            return Err(ApiError::invalid("stop", message));
        }
        Ok(strings)
    }

    /// Tokens that end a completion: the model's own, unless the client wants to go on past them,
    /// and the client's.
    #[must_use]
    pub fn stop_tokens(&self, of_model: &[u32]) -> Arc<[u32]> {
        let own = if self.ignore_eos.unwrap_or(false) { &[] } else { of_model };
        let asked = self.stop_token_ids.as_deref().unwrap_or_default();
        own.iter().chain(asked).copied().collect()
    }

    /// What comes back beside the text.
    #[must_use]
    pub fn reply(&self, logprobs: bool) -> Reply {
        let usage = self.stream_options.as_ref().and_then(|options| options.include_usage);
        Reply {
            stream: self.stream.unwrap_or(false),
            stream_usage: usage.unwrap_or(false),
            token_ids: self.return_token_ids.unwrap_or(false),
            logprobs,
        }
    }
}

/// Reads what every endpoint shares and what only this one has, and checks what is checked alike.
///
/// # Errors
/// A field of the wrong type, another model, or a field that cannot be honoured.
pub(super) fn read_request<T: DeserializeOwned>(
    body: &Value,
    served: &str,
) -> Result<(Options, T), ApiError> {
    let (options, fields): (Options, T) = (read(body)?, read(body)?);
    options.check_model(served)?;
    refuse_unsupported(body)?;
    Ok((options, fields))
}

/// Reads one view of a request's body.
///
/// # Errors
/// The path of the first field with the wrong type.
fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        let message = format!("{path}: {}", error.inner());
        ApiError::invalid(&path, message)
    })
}

/// Refuses fields this server cannot honour, so that nobody believes it did.
///
/// # Errors
/// The first such field that asks for anything.
fn refuse_unsupported(body: &Value) -> Result<(), ApiError> {
    const UNSUPPORTED: [(&str, &str); 20] = [
        ("allowed_token_ids", "use logit_bias"),
        ("audio", "this model reads text only"),
        ("best_of", "use n and choose"),
        ("continue_final_message", "use /v1/completions with token ids"),
        ("echo", "the prompt is known to the client; score it with `ballast-actor score`"),
        ("frequency_penalty", "leave it out"),
        ("function_call", "use tool_choice"),
        ("functions", "use tools"),
        ("guided_json", "leave it out"),
        ("guided_regex", "leave it out"),
        ("length_penalty", "leave it out"),
        ("min_tokens", "leave it out"),
        ("presence_penalty", "leave it out"),
        ("prompt_logprobs", "score prompts with `ballast-actor score`"),
        ("repetition_penalty", "leave it out"),
        ("structured_outputs", "leave it out"),
        ("suffix", "leave it out"),
        ("truncate_prompt_tokens", "shorten the prompt"),
        ("use_beam_search", "leave it out"),
        ("web_search_options", "leave it out"),
    ];
    for (name, remedy) in UNSUPPORTED {
        let asks = body.get(name).is_some_and(|value| !asks_for_nothing(name, value));
        if asks {
            return Err(ApiError::invalid(name, format!("{name} is not supported; {remedy}")));
        }
    }
    let format = body.pointer("/response_format/type").and_then(Value::as_str);
    if format.is_some_and(|format| format != "text") {
        let message = "response_format: only {\"type\": \"text\"} is supported";
        return Err(ApiError::invalid("response_format", message));
    }
    Ok(())
}

/// Whether a value is the field's own default, as clients send it out of habit.
fn asks_for_nothing(name: &str, value: &Value) -> bool {
    let neutral =
        if matches!(name, "repetition_penalty" | "length_penalty" | "best_of") { 1.0 } else { 0.0 };
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(neutral),
        Value::String(text) => text.is_empty() || (name == "function_call" && text == "none"),
        Value::Array(items) => items.is_empty(),
        Value::Bool(true) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(body: Value) -> Options {
        read(&body).expect("readable")
    }

    #[test]
    fn what_is_left_out_is_plain_sampling() {
        let options = options(json!({"model": null, "seed": null, "stop": null}));
        assert_eq!(options.sampling(10, 42, 1), Ok(Sampling::new(43, 1.0)));
        assert_eq!(options.stop_strings(), Ok(Vec::new()));
        assert_eq!(options.reply(false), Reply::default());
        assert_eq!(options.stop_tokens(&[7])[..], [7]);
    }

    #[test]
    fn every_choice_reaches_the_sampler() {
        let options = options(json!({
            "seed": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1,
            "logit_bias": {"3": -100}, "stop_token_ids": [8], "ignore_eos": true,
            "stop": "END", "stream": true, "stream_options": {"include_usage": true},
            "return_token_ids": true
        }));
        let sampling = Sampling {
            seed: 5,
            logit_bias: vec![(3, -100.0)],
            temperature: 0.5,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.1,
        };
        assert_eq!(options.sampling(10, 0, 0), Ok(sampling));
        assert_eq!(options.stop_tokens(&[7])[..], [8]);
        assert_eq!(options.stop_strings(), Ok(vec!["END".to_owned()]));
        let reply = Reply { stream: true, stream_usage: true, token_ids: true, logprobs: true };
        assert_eq!(options.reply(true), reply);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let refused = [
            ("temperature", json!(-0.1)),
            ("top_p", json!(0.0)),
            ("top_k", json!(-2)),
            ("min_p", json!(1.5)),
            ("logit_bias", json!({"10": 1.0})),
            ("logit_bias", json!({"lamp": 1.0})),
            ("logit_bias", json!({"1": 101.0})),
        ];
        for (name, value) in refused {
            let mut body = json!({});
            body[name] = value;
            let error = options(body).sampling(10, 0, 0).expect_err(name);
            assert_eq!(error.param.as_deref(), Some(name));
            assert_eq!(error.status, 400);
        }
        assert!(options(json!({"stop": [""]})).stop_strings().is_err());
        assert!(options(json!({"n": 0})).choices(1).is_err());
        assert!(options(json!({"n": 65})).choices(2).is_err());
        assert_eq!(options(json!({"n": 64})).choices(2), Ok(64));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let error = read::<Options>(&json!({"stream_options": {"include_usage": 3}}));
        let error = error.expect_err("no boolean");
        assert_eq!(error.param.as_deref(), Some("stream_options.include_usage"));
        assert!(error.message.contains("expected a boolean"), "{error}");
    }

    #[test]
    fn another_model_does_not_exist() {
        assert_eq!(options(json!({})).check_model("a"), Ok(()));
        let error = options(json!({"model": "b"})).check_model("a").expect_err("another");
        assert_eq!((error.status, error.code), (404, "model_not_found"));
    }

    #[test]
    fn defaults_pass_and_what_cannot_be_honoured_does_not() {
        let habits = json!({"frequency_penalty": 0, "presence_penalty": 0.0, "echo": false,
            "best_of": 1, "functions": [], "response_format": {"type": "text"}, "unknown": 3});
        assert_eq!(refuse_unsupported(&habits), Ok(()));
        for body in [
            json!({"frequency_penalty": 0.1}),
            json!({"echo": true}),
            json!({"best_of": 2}),
            json!({"response_format": {"type": "json_object"}}),
        ] {
            assert_eq!(refuse_unsupported(&body).expect_err("unsupported").status, 400, "{body}");
        }
    }
}
