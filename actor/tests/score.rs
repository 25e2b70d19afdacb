//! `ballast-actor score` and `generate` as real processes, with the shipped model.

#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the server is for other tests")]
mod support;

use std::{fs, process::Output};

use serde_json::{Value, json};
use support::{actor, model};

/// Runs `ballast-actor COMMAND` on a file with this text.
fn run(command: &str, file_flag: &str, text: &str, args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input.json");
    fs::write(&path, text).unwrap();
    let mut process = actor();
    process.arg(command).arg("--model").arg(model()).arg(file_flag).arg(path);
    process.args(["--threads", "1"]).args(args).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn logprobs(line: &Value, key: &str) -> Vec<f64> {
    line[key].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

#[test]
fn what_was_generated_scores_the_same() {
    let prompts = json!([[5, 6, 7], [9], (0..150).map(|id| id * 3 % 470).collect::<Vec<_>>()]);
    let args = ["--max-tokens", "20", "--temperature", "0.7", "--seed", "4", "--json"];
    let generated = lines(&run("generate", "--tokens", &prompts.to_string(), &args));
    assert_eq!(generated.len(), 3);
    let whole = |line: &Value| {
        let ids = |key: &str| line[key].as_array().unwrap().clone();
        [ids("prompt_token_ids"), ids("token_ids")].concat()
    };
    let wholes: Vec<Vec<Value>> = generated.iter().map(whole).collect();
    let scored = lines(&run("score", "--tokens", &json!(wholes).to_string(), &[]));
    for ((generated, scored), prompt) in
        generated.iter().zip(&scored).zip(prompts.as_array().unwrap())
    {
        assert_eq!(&generated["prompt_token_ids"], prompt);
        assert_eq!(scored["logprobs"][0], Value::Null);
        let scored = logprobs(scored, "logprobs");
        let sampled = logprobs(generated, "logprobs");
        let tail = &scored[scored.len() - sampled.len()..];
        for (one, other) in sampled.iter().zip(tail) {
            assert!((one - other).abs() < 1e-4, "{one} against {other}");
        }
        assert_ne!(
            generated["logprobs"], generated["sampled_logprobs"],
            "the temperature is not 1"
        );
    }
    let again = lines(&run("generate", "--tokens", &prompts.to_string(), &args));
    assert_eq!(again, generated, "a seed repeats");
}

#[test]
fn lists_of_any_length_are_scored_in_order() {
    let scored = lines(&run("score", "--tokens", "[[7, 8, 9], [], [3], [7, 8]]", &[]));
    assert_eq!(scored[1], json!({"token_ids": [], "logprobs": []}));
    assert_eq!(scored[2], json!({"token_ids": [3], "logprobs": [null]}));
    assert_eq!(scored[0]["token_ids"], json!([7, 8, 9]));
    let (long, short) = (logprobs(&scored[0], "logprobs"), logprobs(&scored[3], "logprobs"));
    assert!((long[0] - short[0]).abs() < 1e-5, "padding changes nothing");
    assert_eq!(run("score", "--tokens", "[]", &[]).stdout, b"");
}

#[test]
fn a_conversation_is_continued() {
    const GREEDY: [&str; 4] = ["--temperature", "0", "--max-tokens", "40"];
    let file = json!({
        "messages": [{"role": "user", "content": "cost of 3 lamp"}],
        "tools": [{"name": "product", "parameters": {"name": "string"}}]
    });
    let json = [&GREEDY[..], &["--json"]].concat();
    let one = lines(&run("generate", "--messages", &file.to_string(), &json));
    let two = json!([file, {"messages": file["messages"]}]).to_string();
    let two = lines(&run("generate", "--messages", &two, &json));
    assert_eq!((one.len(), two.len()), (1, 2));
    assert_eq!(one[0]["token_ids"], two[0]["token_ids"]);
    let list = file["messages"].to_string();
    let plain = run("generate", "--messages", &list, &GREEDY);
    let text = two[1]["text"].as_str().unwrap().to_owned();
    assert_eq!(String::from_utf8(plain.stdout).unwrap(), text + "\n");
}

#[test]
fn bad_input_is_named_and_exits_with_78() {
    let faults = [
        ("score", "--tokens", "[[1, 2", "no valid JSON"),
        ("score", "--tokens", "[[1], [2, 474]]", "list 1: token id 474 at index 1"),
        (
            "score",
            "--tokens",
            &format!("[{:?}]", vec![1; 1025]),
            "1025 tokens; the model's context is 1024",
        ),
        ("generate", "--tokens", "[[1], []]", "list 1 is empty"),
        (
            "generate",
            "--tokens",
            &format!("[{:?}]", vec![1; 1000]),
            "1000 tokens and 256 to generate",
        ),
        ("generate", "--messages", "[{\"role\": \"robot\"}]", "messages[0].role"),
    ];
    for (command, flag, text, expected) in faults {
        let output = run(command, flag, text, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains(expected), "{stderr} lacks {expected}");
    }
    let missing = actor().args(["score", "--model", "/nowhere", "--tokens", "x"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere"));
}
