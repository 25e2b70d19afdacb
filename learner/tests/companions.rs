//! What goes with the weights: published, saved, and found again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path};

use ballast_chat::{CHAT_TEMPLATE, Format};
use ballast_learner::{
    companions::Companions,
    new_model::{self, Shape},
    worker::Worker,
};
use ballast_proto::v1::{StepKind, TrainBatch};
use ballast_runtime::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A small model and the configuration of a run that starts from it.
fn model() -> (TempDir, Config) {
    let directory = tempfile::tempdir().unwrap();
    let shape = Shape {
        vocab_size: 400,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        positions_max: 64,
    };
    new_model::create(&directory.path().join("model"), "market", &shape, 1).unwrap();
    let mut config = Config::default();
    config.run.directory = directory.path().join("runs");
    config.model.checkpoint = directory.path().join("model");
    config.episode.trajectory_tokens_max = 64;
    (directory, config)
}

/// The files on offer, by name.
fn published(worker: &Worker) -> BTreeMap<String, Vec<u8>> {
    let manifest = worker.store().watch().borrow().clone().unwrap();
    let contents = |hash: &[u8]| worker.store().chunk(hash.try_into().unwrap()).unwrap().to_vec();
    let files = manifest.files.iter();
    files.map(|file| (file.name.clone(), contents(&file.chunk.as_ref().unwrap().hash))).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn refusal(config: &Config) -> String {
    Worker::open(config).unwrap_err().to_string()
}

const THOUGHTFUL: &str =
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '' }}{%- endif %}\n";

#[test]
fn the_template_and_the_settings_travel_with_the_weights_and_through_checkpoints() {
    let (_directory, mut config) = model();
    let model = config.model.checkpoint.clone();
    let source = THOUGHTFUL.to_owned() + CHAT_TEMPLATE;
    fs::write(model.join("chat_template.jinja"), &source).unwrap();
    fs::create_dir(model.join("additional_chat_templates")).unwrap();
    fs::write(model.join("additional_chat_templates/tool_use.jinja"), &source).unwrap();
    config.model.tool_call_format = "hermes".into();
    config.model.template_variables.insert("enable_thinking".into(), false.into());

    let mut worker = Worker::open(&config).unwrap();
    let files = published(&worker);
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    let expected = [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(files["chat_template.jinja"], source.as_bytes());
    let config_json: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    assert_eq!(config_json["tool_call_format"], "hermes");
    assert_eq!(config_json["chat_template_kwargs"], json!({"enable_thinking": false}));

    let step = TrainBatch { kind: StepKind::Checkpoint.into(), ..Default::default() };
    assert!(worker.perform(&step).unwrap().checkpoint.is_some());
    let saved = config.run.directory.join("run/checkpoints/step-0");
    assert_eq!(read_json(&saved.join("config.json")), config_json);
    assert_eq!(fs::read(saved.join(expected[0])).unwrap(), source.as_bytes());
    // A run that says nothing goes on as the checkpoint says.
    config.model.tool_call_format = String::new();
    config.model.template_variables.clear();
    assert_eq!(published(&Worker::open(&config).unwrap()), files);
}

#[test]
fn what_episodes_cannot_be_told_with_is_refused_by_name() {
    let (_directory, mut config) = model();
    config.model.tool_call_format = "xml".into();
    assert!(refusal(&config).contains("model.tool_call_format: unknown tool-call format \"xml\""));
    config.model.tool_call_format = "pythonic".into();
    let message = refusal(&config);
    assert!(message.contains("tokenizer_config.json writes a call as"), "{message}");
    assert!(message.contains("set model.tool_call_format"), "{message}");
    assert!(message.ends_with("to hermes"), "{message}");
    config.model.tool_call_format = String::new();
    config.model.template_variables.insert("enable_thinkin".into(), false.into());
    assert!(refusal(&config).contains("no variable \"enable_thinkin\""));
    config.model.template_variables.clear();
    let forgetful =
        CHAT_TEMPLATE.replacen("for message in messages", "for message in messages[-3:]", 1);
    fs::write(config.model.checkpoint.join("chat_template.jinja"), forgetful).unwrap();
    let message = refusal(&config);
    assert!(message.contains("chat_template.jinja does not keep what it wrote"), "{message}");
    assert!(message.contains("with message 3 (assistant)"), "{message}");
    assert!(message.contains("or remove it to use the built-in one"), "{message}");
    // Without any template there is the built-in one.
    fs::remove_file(config.model.checkpoint.join("chat_template.jinja")).unwrap();
    fs::remove_file(config.model.checkpoint.join("tokenizer_config.json")).unwrap();
    assert_eq!(published(&Worker::open(&config).unwrap()).len(), 2);
}

/// The configuration is checked where no tokenizer is at hand.
#[test]
fn the_configuration_knows_the_formats_of_chat() {
    let (_directory, config) = model();
    for format in Format::ALL {
        let set = format!("model.tool_call_format={format}");
        let config = ballast_runtime::config_file::load(&[], &[set]).unwrap();
        assert_eq!(config.model.tool_call_format, format.name());
    }
    assert!(Companions::read(&config.model.checkpoint, &config.model).is_ok());
}
