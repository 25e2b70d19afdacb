//! The external decoder against servers that misbehave.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod double;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use ballast_actor::{
    decoder::{DecodeError, Decoder, DecoderFactory as _, Sampling},
    external::ExternalDecoderFactory,
    weights::StagedPolicy,
};
use ballast_proto::{ManifestHash, PolicyVersion};
use ballast_runtime::config::ActorEngine;
use serde_json::{Value, json};

use double::{Asked, Double, End, Reply};

const PROMPT: [u32; 3] = [10, 11, 12];
const TOKENS_MAX: usize = 40;
/// A failure must be told long before this.
const BOUND: Duration = Duration::from_secs(10);

const COMPLETIONS: &str = "/v1/completions";
const UPDATE: &str = "/update_weights_from_disk";

fn staged(version: u64) -> StagedPolicy {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/market/base"));
    StagedPolicy {
        policy_version: PolicyVersion(version),
        manifest_hash: ManifestHash([version as u8; 32]),
        tensors: Vec::new(),
        config_json: fs::read(base.join("config.json")).unwrap().into(),
        tokenizer_json: fs::read(base.join("tokenizer.json")).unwrap().into(),
        template_files: ballast_chat::TemplateFiles::default(),
    }
}

/// A decoder of two slots over a server of this kind, which it has half a second of patience with.
fn decoder(kind: &str, url: &str, spool: &Path) -> Box<dyn Decoder> {
    let engine = ActorEngine {
        kind: kind.into(),
        url: url.into(),
        patience_s: 0.5,
        ..ActorEngine::default()
    };
    let factory = ExternalDecoderFactory::new(&engine, spool.to_owned(), None);
    factory.unwrap().build(&staged(1), 2, TOKENS_MAX).unwrap()
}

/// A well-behaved server in the manner of `ballast-actor serve`, in which tests break one thing. The
/// token at a position is 100 and the position, so that none can be lost or doubled unseen.
#[derive(Clone, Default)]
struct Sound {
    version: Arc<Mutex<String>>,
}

impl Sound {
    fn answer(&self, asked: &Asked) -> Reply {
        match asked.path.as_str() {
            UPDATE => {
                let version = asked.body["weight_version"].as_str().unwrap();
                version.clone_into(&mut self.version.lock().unwrap());
                Reply::new(200, json!({"success": true}).to_string())
            }
            "/model_info" => {
                let version = self.version.lock().unwrap().clone();
                Reply::new(200, json!({ "weight_version": version }).to_string())
            }
            COMPLETIONS => completion(asked, 3),
            other => panic!("{other} is not asked for"),
        }
    }
}

/// `count` tokens for a request, of which the last one ends it.
fn completion(asked: &Asked, count: usize) -> Reply {
    let start = asked.body["prompt"].as_array().unwrap().len();
    let event = |at: usize| {
        let finish = (at + 1 == count).then_some("length");
        event(&json!([100 + start + at]), &json!({"token_logprobs": [-0.5]}), &json!(finish))
    };
    Reply { pieces: (0..count).map(event).collect(), ..Reply::new(200, "") }
}

fn event(token_ids: &Value, logprobs: &Value, finish_reason: &Value) -> String {
    let choice = json!({"index": 0, "text": "", "token_ids": token_ids, "logprobs": logprobs,
        "finish_reason": finish_reason});
    format!("data: {}\n\n", json!({ "choices": [choice] }))
}

fn open(decoder: &mut dyn Decoder, slot: usize) {
    decoder.open(slot, Sampling::new(1, 1.0));
    decoder.feed(slot, &PROMPT);
}

/// The next `count` tokens of a slot.
fn tokens(decoder: &mut dyn Decoder, slot: usize, count: usize) -> Vec<u32> {
    (0..count).map(|_| decoder.step(&[slot]).unwrap()[0].token).collect()
}

fn expected(from: usize, count: usize) -> Vec<u32> {
    (from..from + count).map(|at| 100 + at as u32).collect()
}

/// The error of the first step, which must come in time.
fn failure(
    kind: &str,
    answering: impl FnMut(&Asked) -> Reply + Send + 'static,
) -> (String, Double) {
    let (server, spool) = (Double::start(answering), tempfile::tempdir().unwrap());
    let mut decoder = decoder(kind, &server.url, spool.path());
    let (error, _) = timed(|| {
        open(&mut *decoder, 0);
        decoder.step(&[0]).unwrap_err()
    });
    let address = server.url.strip_suffix("/v1").unwrap();
    assert!(error.0.contains(address), "{error} does not name {address}");
    (error.0, server)
}

fn timed(work: impl FnOnce() -> DecodeError) -> (DecodeError, Duration) {
    let started = Instant::now();
    let error = work();
    assert!(started.elapsed() < BOUND, "{error} came after {:?}", started.elapsed());
    (error, started.elapsed())
}

fn spooled(spool: &Path) -> Vec<PathBuf> {
    fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_message_may_take_several_requests() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let server = Double::start(move |asked| sound.answer(asked));
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 8), expected(3, 8));
    let prompts: Vec<Value> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.path == COMPLETIONS)
        .map(|asked| asked.body["prompt"].clone())
        .collect();
    assert_eq!(prompts[1], json!([10, 11, 12, 103, 104, 105]));
    assert_eq!(prompts.len(), 3, "one request for each three tokens");
}

#[test]
fn an_interruption_loses_and_doubles_nothing_and_ends_in_the_right_weights() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let mut requests = 0;
    let server = Double::start(move |asked| {
        let reply = sound.answer(asked);
        if asked.path != COMPLETIONS {
            return reply;
        }
        requests += 1;
        match requests % 4 {
            1 => Reply { pieces: reply.pieces[..2].to_vec(), end: End::Cut, ..reply },
            2 => Reply::new(500, "{\"error\": \"engine\"}"),
            3 => Reply {
                pieces: vec!["data: {\"error\": {\"message\": \"x\"}}\n\n".into()],
                ..reply
            },
            _ => reply,
        }
    });
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 12), expected(3, 12));
    assert!(server.count(UPDATE) >= 4, "the server is trusted with nothing after a failure");
}

#[test]
fn a_request_that_ends_after_its_last_token_is_followed_by_another() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let gate = Arc::new(Barrier::new(2));
    let held = Arc::clone(&gate);
    let server = Double::start(move |asked| {
        let reply = sound.answer(asked);
        if asked.path != COMPLETIONS || asked.body["prompt"].as_array().unwrap().len() > 3 {
            return reply;
        }
        // The first request: its end comes by itself, once the test lets it.
        let end = event(&json!([]), &Value::Null, &json!("length"));
        let pieces = vec![completion(asked, 9).pieces[0].clone(), end];
        Reply { pieces, gate: Some(Arc::clone(&held)), ..reply }
    });
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(3, 1));
    let opener = thread::spawn(move || gate.wait());
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(4, 1));
    opener.join().unwrap();
    assert_eq!(server.count(UPDATE), 1, "nothing was interrupted");
}

#[test]
fn a_busy_server_is_asked_again() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let mut requests = 0;
    let server = Double::start(move |asked| {
        requests += usize::from(asked.path == COMPLETIONS);
        if asked.path == COMPLETIONS && requests == 1 {
            return Reply::new(429, "later");
        }
        sound.answer(asked)
    });
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 3), expected(3, 3));
    assert_eq!(server.count(UPDATE), 1, "it was not interrupted");
}

#[test]
fn what_lasts_is_told_with_the_address_and_the_remedy() {
    let sound = Sound::default();
    let (error, _) = failure("ballast", move |asked| match asked.path.as_str() {
        COMPLETIONS => Reply { end: End::Silence, ..Reply::new(200, ": ping\n") },
        _ => sound.answer(asked),
    });
    assert!(error.contains("sent nothing") && error.contains("actor.engine.patience_s"), "{error}");

    let sound = Sound::default();
    let (error, _) = failure("ballast", move |asked| match asked.path.as_str() {
        COMPLETIONS => Reply::new(500, "on fire"),
        _ => sound.answer(asked),
    });
    assert!(error.contains("500: on fire"), "{error}");

    // Nobody listens there any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spool = tempfile::tempdir().unwrap();
    let mut decoder = decoder("vllm", &format!("http://{port}"), spool.path());
    open(&mut *decoder, 0);
    let (error, _) = timed(|| decoder.step(&[0]).unwrap_err());
    assert!(error.0.contains("cannot connect") && error.0.contains(&port.to_string()), "{error}");
}

#[test]
fn what_would_go_wrong_again_is_refused_at_once() {
    let answered = |reply: Reply| {
        let sound = Sound::default();
        let (error, server) = failure("ballast", move |asked| match asked.path.as_str() {
            COMPLETIONS => reply.clone(),
            _ => sound.answer(asked),
        });
        assert_eq!(server.count(COMPLETIONS), 1, "{error}");
        error
    };
    let told = json!({"token_logprobs": [-0.5]});
    let error = answered(Reply::new(200, event(&Value::Null, &told, &Value::Null)));
    assert!(error.contains("return_token_ids"), "{error}");
    let error = answered(Reply::new(200, event(&json!([7]), &Value::Null, &Value::Null)));
    assert!(error.contains("log-probability"), "{error}");
    let error = answered(Reply::new(200, event(&json!([474]), &told, &Value::Null)));
    assert!(error.contains("token 474 and this model has 474"), "{error}");
    let many = event(&json!([7]), &told, &Value::Null).repeat(TOKENS_MAX);
    let sound = Sound::default();
    let (spool, server) = (
        tempfile::tempdir().unwrap(),
        Double::start(move |asked| match asked.path.as_str() {
            COMPLETIONS => Reply::new(200, many.clone()),
            _ => sound.answer(asked),
        }),
    );
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    let mut steps = (0..=TOKENS_MAX).map(|_| decoder.step(&[0]));
    let error = steps.find_map(Result::err).unwrap();
    assert!(error.0.contains("more than the 37 tokens"), "{error}");
    let error = answered(Reply::new(400, "{\"message\": \"context is 8\"}"));
    assert!(error.contains("400: {\"message\": \"context is 8\"}"), "{error}");
}

#[test]
fn a_server_without_the_calls_for_weights_is_named_with_the_switch() {
    let (error, server) = failure("vllm", |_| Reply::new(404, "{\"detail\":\"Not Found\"}"));
    assert!(error.contains("VLLM_SERVER_DEV_MODE=1"), "{error}");
    assert_eq!(server.count(COMPLETIONS), 0, "nothing is sampled from unknown weights");
    let (error, _) = failure("ballast", |_| Reply::new(403, "{}"));
    assert!(error.contains("--allow-weight-updates"), "{error}");
    let (error, _) = failure("sglang", |_| {
        Reply::new(200, json!({"success": false, "message": "no such shape"}).to_string())
    });
    assert!(error.contains("no such shape"), "{error}");
}

#[test]
fn what_is_no_longer_wanted_is_closed_at_the_server() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let server = Double::start(move |asked| match asked.path.as_str() {
        // Long, but only its first token ever comes.
        COMPLETIONS => {
            let reply = completion(asked, 9);
            Reply { pieces: reply.pieces[..1].to_vec(), end: End::Silence, ..reply }
        }
        _ => sound.answer(asked),
    });
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    open(&mut *decoder, 1);
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(3, 1));
    decoder.feed(0, &[7]);
    server.wait_for_departures(1);
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(5, 1), "it goes on behind the tool's result");
    decoder.close(0);
    server.wait_for_departures(2);
    assert_eq!(tokens(&mut *decoder, 1, 1), expected(3, 1));
    drop(decoder);
    server.wait_for_departures(3);
}

#[test]
fn weights_that_the_server_refuses_leave_the_old_ones_in_use() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let server = Double::start(move |asked| {
        if asked.body["weight_version"].as_str().is_some_and(|name| name.starts_with("policy-2-")) {
            return Reply::new(400, "{\"message\": \"NaN\"}");
        }
        sound.answer(asked)
    });
    let mut decoder = decoder("ballast", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(3, 1));
    let error = decoder.load(&staged(2)).unwrap_err();
    assert!(error.0.contains("NaN"), "{error}");
    assert_eq!(tokens(&mut *decoder, 0, 2), expected(4, 2));
    let updates: Vec<String> = server
        .asked()
        .iter()
        .filter_map(|asked| asked.body["weight_version"].as_str())
        .map(|name| name[..9].to_owned())
        .collect();
    // Half loaded weights are possible, so the old ones are loaded again.
    assert_eq!(updates, ["policy-1-", "policy-2-", "policy-1-"]);
    decoder.load(&staged(3)).unwrap();
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(6, 1));
    let kept = spooled(spool.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].file_name().unwrap().to_string_lossy().starts_with("policy-3-"));
}

#[test]
fn a_server_with_other_weights_is_found_out() {
    let (sound, spool) = (Sound::default(), tempfile::tempdir().unwrap());
    let held = Arc::clone(&sound.version);
    let server = Double::start(move |asked| sound.answer(asked));
    let mut decoder = decoder("sglang", &server.url, spool.path());
    open(&mut *decoder, 0);
    assert_eq!(tokens(&mut *decoder, 0, 1), expected(3, 1));
    // It was restarted, and nothing was under way.
    "default".clone_into(&mut held.lock().unwrap());
    let started = Instant::now();
    let mut at = 4;
    while server.count(UPDATE) < 2 {
        assert!(started.elapsed() < BOUND, "nobody noticed");
        decoder.open(0, Sampling::new(1, 1.0));
        decoder.feed(0, &vec![7; at]);
        assert_eq!(tokens(&mut *decoder, 0, 1), expected(at, 1));
        at = 4 + at % 8;
    }
    assert!(held.lock().unwrap().starts_with("policy-1-"));
}
