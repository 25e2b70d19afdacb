//! `ballast-actor serve` as a real process, over real HTTP, with the shipped model.

#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use support::Server;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A conversation of the market world, and the tools as its model knows them.
fn conversation() -> Value {
    json!({
        "model": "market",
        "messages": [{"role": "user", "content": "cost of 3 lamp"}],
        "tools": [{"name": "product", "parameters": {"name": "string"}}],
        "max_tokens": 48,
        "seed": 7,
        "logprobs": true,
        "return_token_ids": true,
    })
}

fn with(mut body: Value, key: &str, value: impl Into<Value>) -> Value {
    body[key] = value.into();
    body
}

/// What a client makes of the chunks of one choice: text, calls, token ids, log-probabilities.
#[derive(Debug, Default, PartialEq)]
struct Put {
    content: String,
    calls: Vec<Value>,
    token_ids: Vec<Value>,
    logprobs: Vec<Value>,
    finish_reason: Value,
}

fn put_together(chunks: &[Value], index: u64) -> Put {
    let mut put = Put::default();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        if choice["index"] != index {
            continue;
        }
        let delta = &choice["delta"];
        put.content.push_str(delta["content"].as_str().unwrap_or_default());
        for mut call in delta["tool_calls"].as_array().cloned().unwrap_or_default() {
            assert_eq!(call["index"], put.calls.len());
            call.as_object_mut().unwrap().shift_remove("index");
            put.calls.push(call);
        }
        put.token_ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        let logprobs = choice["logprobs"]["content"].as_array();
        put.logprobs.extend(logprobs.cloned().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            assert!(put.finish_reason.is_null(), "a choice finishes once");
            put.finish_reason = choice["finish_reason"].clone();
        }
    }
    put
}

fn whole(choice: &Value) -> Put {
    let message = &choice["message"];
    Put {
        content: message["content"].as_str().unwrap_or_default().to_owned(),
        calls: message["tool_calls"].as_array().cloned().unwrap_or_default(),
        token_ids: choice["token_ids"].as_array().unwrap().clone(),
        logprobs: choice["logprobs"]["content"].as_array().unwrap().clone(),
        finish_reason: choice["finish_reason"].clone(),
    }
}

/// Call ids name the answer they came in; everything else must be equal, log-probabilities up to
/// what another batch changes in their last bits.
fn assert_same(mut one: Put, mut other: Put) {
    assert_close(&logprobs(&one), &logprobs(&other));
    for put in [&mut one, &mut other] {
        put.logprobs.clear();
        put.calls.iter_mut().for_each(|call| {
            call.as_object_mut().unwrap().shift_remove("id").unwrap();
        });
    }
    assert_eq!(one, other);
}

fn logprobs(put: &Put) -> Vec<Value> {
    put.logprobs.iter().map(|entry| entry["logprob"].clone()).collect()
}

fn assert_close(one: &[Value], other: &[Value]) {
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
        assert!((one - other).abs() < 1e-4, "{one} against {other}");
    }
}

#[test]
fn a_streamed_answer_says_what_the_whole_one_says() {
    let server = Server::start(&[]);
    let body = with(conversation(), "n", 3);
    let answer = server.post(CHAT, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let streamed =
        with(with(body, "stream", true), "stream_options", json!({"include_usage": true}));
    let chunks = server.post(CHAT, &streamed).events();

    assert_eq!(answer["object"], "chat.completion");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["prompt_token_ids"], answer["prompt_token_ids"]);
    assert_eq!(chunks.last().unwrap()["usage"], answer["usage"]);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let mut tokens = 0;
    for (index, choice) in choices.iter().enumerate() {
        let whole = whole(choice);
        tokens += whole.token_ids.len();
        assert_eq!(whole.token_ids.len(), whole.logprobs.len());
        assert_same(put_together(&chunks, index as u64), whole);
    }
    assert_ne!(choices[0]["token_ids"], choices[1]["token_ids"], "each choice has its own seed");
    assert_eq!(answer["usage"]["completion_tokens"], tokens);
    let prompt = answer["prompt_token_ids"].as_array().unwrap().len();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(server.metric("ballast_serve_requests_total"), 2);
    assert_eq!(server.metric("ballast_serve_completion_tokens_total"), 2 * tokens as u64);
}

#[test]
fn a_prompt_of_ids_is_continued_as_a_prompt_of_text() {
    let server = Server::start(&[]);
    let asked = json!({
        "prompt": "<|im_start|>user\nlamp", "max_tokens": 12, "temperature": 0, "logprobs": 0,
        "return_token_ids": true, "ignore_eos": true
    });
    let answer = server.post(TEXT, &asked).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 12);
    let by_ids = with(asked.clone(), "prompt", json!([choice["prompt_token_ids"]]));
    let same = server.post(TEXT, &by_ids).json();
    assert_eq!(same["choices"][0]["token_ids"], choice["token_ids"]);
    let chunks = server.post(TEXT, &with(asked, "stream", true)).events();
    let text: String =
        chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, choice["text"].as_str().unwrap());
    let told = |logprobs: &Value| logprobs["token_logprobs"].as_array().unwrap().clone();
    let streamed: Vec<Value> =
        chunks.iter().flat_map(|chunk| told(&chunk["choices"][0]["logprobs"])).collect();
    assert_close(&streamed, &told(&choice["logprobs"]));
}

#[test]
fn stop_strings_and_biases_are_obeyed() {
    let server = Server::start(&[]);
    let asked = json!({"prompt": "x", "max_tokens": 40, "temperature": 0, "ignore_eos": true});
    let free = server.post(TEXT, &asked).json()["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = free.chars().skip(5).take(3).collect();
    let stopped = server.post(TEXT, &with(asked.clone(), "stop", stop.clone())).json();
    let choice = &stopped["choices"][0];
    assert_eq!(choice["text"].as_str().unwrap(), free.split(&stop).next().unwrap());
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));

    let biased = with(asked, "logit_bias", json!({"65": 100}));
    let biased = with(biased, "return_token_ids", true);
    let answer = server.post(TEXT, &biased).json();
    assert_eq!(answer["choices"][0]["token_ids"], json!(vec![65; 40]));
}

#[test]
fn what_cannot_be_answered_is_refused_precisely() {
    let server = Server::start(&["--context", "256"]);
    let refused = [
        (with(conversation(), "model", "gpt"), 404, "\"gpt\" does not exist"),
        (with(conversation(), "top_logprobs", 3), 400, "top_logprobs"),
        (with(conversation(), "tool_choice", "required"), 400, "tool_choice"),
        (with(conversation(), "temperature", -1), 400, "temperature = -1"),
        (with(conversation(), "max_tokens", 250), 400, "context is 256 tokens"),
        (with(conversation(), "messages", json!([])), 400, "messages"),
        (
            with(conversation(), "messages", json!([{"role": "system", "content": "x"}])),
            400,
            "this model knows the roles",
        ),
        (
            with(
                conversation(),
                "messages",
                json!([{"role": "user", "content": "ab ".repeat(9000)}]),
            ),
            400,
            "context is 256 tokens; the prompt has ",
        ),
        (with(conversation(), "n", "two"), 400, "n: invalid type"),
        (with(conversation(), "response_format", json!({"type": "json_object"})), 400, "text"),
    ];
    for (body, status, expected) in refused {
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, status, "{answer:?}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    for (body, expected) in [
        (json!({"prompt": [1, 99999]}), "token 99999 at index 1"),
        (json!({"prompt": []}), "0 prompts"),
        (json!({"prompt": ""}), "empty"),
        (json!({"prompt": {"a": 1}}), "a list of token ids"),
        (json!({}), "missing field `prompt`"),
        (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
    ] {
        let answer = server.post(TEXT, &body);
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains(expected), "{answer:?} lacks {expected}");
    }
    let garbage = server.request("POST", CHAT, "{\"model\": ", "");
    assert_eq!(garbage.status, 400);
    assert!(garbage.body.contains("no valid JSON"), "{garbage:?}");
    let large = server.request("POST", CHAT, &" ".repeat((10 << 20) + 1), "");
    assert_eq!(large.status, 413);
    assert!(large.body.contains("10485760"), "{large:?}");
    assert_eq!(server.get("/v2").status, 404);
    assert_eq!(server.get(CHAT).status, 405);
    assert_eq!(server.post(CHAT, &conversation()).status, 200, "it still serves");
    assert_eq!(server.get("/health").body, "ok\n");
    let models = server.get("/v1/models").json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("market"), &json!(256))
    );
    assert_eq!(server.get("/v1/models/market").json()["id"], "market");
    assert_eq!(server.get("/v1/models/other").status, 404);
}

#[test]
fn control_tokens_are_watched_by_their_ids() {
    let server = Server::start(&[]);
    // `<|im_start|>` to `</tool_call>` of the shipped tokenizer.
    let watched = [467, 468, 469, 470, 471];
    let asked = json!({"prompt": "lamp", "max_tokens": 6, "ignore_eos": true, "temperature": 0,
        "return_token_ids": true, "logprobs": 0, "logprob_token_ids": watched,
        "return_tokens_as_token_ids": true, "logit_bias": {"470": 100}});
    let choice = server.post(TEXT, &asked).json()["choices"][0].clone();
    let told = &choice["logprobs"];
    assert_eq!(told["tokens"], json!(vec!["token_id:470"; 6]));
    for at in 0..6 {
        let top = told["top_logprobs"][at].as_object().unwrap();
        let names: Vec<String> = watched.iter().map(|id| format!("token_id:{id}")).collect();
        assert!(top.keys().eq(&names), "{top:?}");
        assert_close(&[top["token_id:470"].clone()], &[told["token_logprobs"][at].clone()]);
        let mass: f64 = top.values().map(|logprob| logprob.as_f64().unwrap().exp()).sum();
        assert!((0.0..=1.0).contains(&mass), "the policy's, not the biased ones: {mass}");
        assert!(told["entropies"][at].as_f64().unwrap() > 0.0);
    }
    for (key, value, expected) in [
        ("logprob_token_ids", json!([3]), "3 is no control token"),
        ("logprob_token_ids", json!(vec![467; 9]), "9 tokens, at most 8"),
        ("logprobs", json!(null), "takes logprobs"),
        ("return_tokens_as_token_ids", json!(false), "return_tokens_as_token_ids"),
    ] {
        let answer = server.post(TEXT, &with(asked.clone(), key, value));
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains(expected), "{answer:?} lacks {expected}");
    }
}

/// A request that would hold a slot for long.
fn endless(n: usize) -> Value {
    json!({"prompt": "x", "max_tokens": 1000, "ignore_eos": true, "stream": true, "n": n})
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = Server::start(&["--slots", "1"]);
    let stream = server.send("POST", TEXT, &endless(100).to_string(), "");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended");
    }
    assert_eq!(server.metric("ballast_serve_completions_running"), 1);
    assert!(server.metric("ballast_serve_completions_waiting") >= 90);
    drop(reader);
    // It would take its turn behind 99 others.
    let next = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(server.post(TEXT, &next).status, 200);
    assert!(server.metric("ballast_serve_completions_cancelled_total") >= 1);
    assert_eq!(server.metric("ballast_serve_completions_waiting"), 0);
    assert_eq!(server.metric("ballast_serve_completions_running"), 0);
    assert!(server.metric("ballast_serve_completion_tokens_total") < 50_000);
}

#[test]
fn a_full_queue_says_try_again() {
    let server = Server::start(&["--slots", "1"]);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = server.send("POST", TEXT, &endless(128).to_string(), "");
            // The head of the answer: the request is in the queue.
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    let refused = server.post(TEXT, &endless(128));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{refused:?}");
    assert!(refused.body.contains("256"), "{refused:?}");
    drop(clients);
    assert_eq!(server.post(TEXT, &json!({"prompt": "x", "max_tokens": 2})).status, 200);
}

#[test]
fn a_signal_lets_running_completions_finish() {
    let server = Server::start(&[]);
    let body = with(endless(1), "max_tokens", 400);
    let mut stream = server.send("POST", TEXT, &body.to_string(), "");
    stream.read_exact(&mut [0]).unwrap();
    let started = Instant::now();
    assert_eq!(server.terminate(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(20), "it does not wait for its deadline");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
}

#[test]
fn a_seed_gives_the_same_tokens_whatever_else_runs() {
    let server = Server::start(&["--slots", "8"]);
    let asked = json!({"prompt": "lamp", "max_tokens": 24, "seed": 3, "return_token_ids": true});
    let alone = server.post(TEXT, &asked).json()["choices"][0]["token_ids"].clone();
    let company: Vec<_> = (0..5)
        .map(|_| {
            let mut stream = server.send("POST", TEXT, &endless(1).to_string(), "");
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    let beside = server.post(TEXT, &asked).json()["choices"][0]["token_ids"].clone();
    assert_eq!(alone, beside);
    drop(company);
}
