//! Checkpoints on disk: round trips are exact, and what is wrong with a directory is named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path};

use ballast_policy::{
    CONFIG_FILE, Device, Dtype, INDEX_FILE, ModelConfig, Policy, Tensor, WEIGHTS_FILE, read_config,
    read_weights, tensor_from_bytes, write_weights,
};
use proptest::prelude::*;

const CONFIG: &str = r#"{
    "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 16,
    "tie_word_embeddings": true, "hidden_act": "silu"
}"#;

const NORM: &str = "model.norm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

fn policy(seed: i64) -> Policy {
    Policy::random(ModelConfig::from_json(CONFIG.as_bytes()).unwrap(), seed, Device::Cpu)
}

/// A checkpoint directory whose weights were changed.
fn directory(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = policy(1).named_tensors().into_iter().collect();
    change(&mut tensors);
    fs::write(directory.path().join(CONFIG_FILE), CONFIG).unwrap();
    let tensors: Vec<_> = tensors.into_iter().collect();
    write_weights(&directory.path().join(WEIGHTS_FILE), &tensors).unwrap();
    directory
}

/// The sharded fixture, copied to be spoilt.
fn shards() -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/llama_untied_sharded");
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

fn refusal(directory: &Path) -> String {
    Policy::open(directory, Device::Cpu, Dtype::F32).unwrap_err().to_string()
}

#[test]
fn weights_survive_the_disk_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(WEIGHTS_FILE);
    let (written, other) = (policy(1), policy(2));
    write_weights(&path, &written.named_tensors()).unwrap();
    other.load(&read_weights(&path).unwrap()).unwrap();
    assert!(other.flat().equal(written.flat()));
}

#[test]
fn a_truncated_file_is_named() {
    let directory = directory(|_| ());
    let path = directory.path().join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, 40, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let message = refusal(directory.path());
        assert!(message.contains("model.safetensors is truncated"), "{message}");
    }
}

#[test]
fn a_missing_directory_is_named() {
    let message = read_config(Path::new("/nowhere/model")).unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/model/config.json"), "{message}");
    let message = refusal(Path::new("/nowhere/model"));
    assert!(message.starts_with("/nowhere/model/model.safetensors: No such file"), "{message}");
}

#[test]
fn weights_that_are_not_the_networks_are_named() {
    type Fault = (&'static str, fn(&mut BTreeMap<String, Tensor>));
    let faults: [Fault; 5] = [
        ("lacks the tensor model.norm.weight", |tensors| {
            tensors.remove(NORM);
        }),
        ("holds the tensor model.extra.weight", |tensors| {
            tensors.insert("model.extra.weight".into(), Tensor::from(1f32));
        }),
        ("tensor model.norm.weight has shape [3]; config.json asks for [8]", |tensors| {
            let short = tensors[NORM].narrow(0, 0, 3);
            tensors.insert(NORM.into(), short);
        }),
        ("tie_word_embeddings: true", |tensors| {
            let head = &tensors[EMBEDDING] + 1.0;
            tensors.insert("lm_head.weight".into(), head);
        }),
        ("model.safetensors: tensor model.norm.weight holds NaN or infinity", |tensors| {
            let spoilt = tensors[NORM].copy();
            let _filled = spoilt.get(5).fill_(f64::NAN);
            tensors.insert(NORM.into(), spoilt);
        }),
    ];
    for (expected, fault) in faults {
        let message = refusal(directory(fault).path());
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn infinity_is_named_and_a_sum_that_overflows_is_not() {
    let spoil = |value: f64| {
        directory(move |tensors| {
            let norm = tensors[NORM].copy();
            let _filled = norm.narrow(0, 2, 4).fill_(value);
            tensors.insert(NORM.into(), norm);
        })
    };
    assert!(refusal(spoil(f64::NEG_INFINITY).path()).contains("NaN or infinity"));
    assert!(Policy::open(spoil(3e38).path(), Device::Cpu, Dtype::F32).is_ok());
}

#[test]
fn a_head_that_repeats_the_tied_embedding_is_accepted() {
    let directory = directory(|tensors| {
        let copy = tensors[EMBEDDING].copy();
        tensors.insert("lm_head.weight".into(), copy);
    });
    let opened = Policy::open(directory.path(), Device::Cpu, Dtype::F32).unwrap();
    assert!(opened.flat().equal(policy(1).flat()));
}

#[test]
fn tensors_of_another_dtype_are_named() {
    let directory = directory(|_| ());
    let header = br#"{"model.norm.weight":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(&[0; 4]);
    fs::write(directory.path().join(WEIGHTS_FILE), bytes).unwrap();
    let message = refusal(directory.path());
    assert!(message.starts_with("tensor model.norm.weight has dtype I32"), "{message}");
}

#[test]
fn a_config_that_claims_too_much_is_refused_before_memory_is_taken() {
    let directory = directory(|_| ());
    let path = directory.path().join(CONFIG_FILE);
    fs::write(&path, CONFIG.replace("_layers\": 1", "_layers\": 16777216")).unwrap();
    let message = refusal(directory.path());
    assert!(message.contains("lacks the tensor model.layers.1."), "{message}");
}

#[test]
fn tensors_that_do_not_fit_change_nothing() {
    let policy = policy(1);
    let before = policy.flat().copy();
    let mut tensors: BTreeMap<_, _> =
        policy.named_tensors().into_iter().map(|(name, t)| (name, t.copy() + 1.0)).collect();
    let norm = tensors.remove(NORM).unwrap();
    assert!(policy.load(&tensors).unwrap_err().to_string().contains("lacks the tensor model.norm"));
    tensors.insert(NORM.into(), norm.narrow(0, 0, 3));
    assert!(policy.load(&tensors).unwrap_err().to_string().contains("has shape [3]"));
    tensors.insert(NORM.into(), norm);
    tensors.insert("lm_head.weight".into(), tensors[EMBEDDING].copy() * 2.0);
    assert!(policy.load(&tensors).unwrap_err().to_string().contains("lm_head.weight differs"));
    assert!(policy.flat().equal(&before));
}

#[test]
fn an_index_that_is_not_of_its_shards_is_named() {
    type Fault = (&'static str, fn(&Path));
    fn edit(directory: &Path, from: &str, to: &str) {
        let path = directory.join(INDEX_FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }
    let faults: [Fault; 6] = [
        ("lists the shard model-00002-of-00003.safetensors, which is not there", |directory| {
            fs::remove_file(directory.join("model-00002-of-00003.safetensors")).unwrap();
        }),
        ("places the tensor model.extra.weight in model-00003-of-00003", |directory| {
            let extra =
                "\"weight_map\": {\"model.extra.weight\": \"model-00003-of-00003.safetensors\",";
            edit(directory, "\"weight_map\": {", extra);
        }),
        ("does not place the tensor lm_head.weight in model-00003-of-00003", |directory| {
            edit(directory, "\"lm_head.weight\"", "\"other.weight\"");
        }),
        ("is not the name of a file beside it", |directory| {
            edit(directory, "\"model-00001-of-00003", "\"../model-00001-of-00003");
        }),
        ("missing field `weight_map`", |directory| edit(directory, "weight_map", "weights")),
        ("model-00001-of-00003.safetensors is truncated", |directory| {
            let path = directory.join("model-00001-of-00003.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ];
    for (expected, plant) in faults {
        let directory = shards();
        plant(directory.path());
        let message = refusal(directory.path());
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn bytes_from_the_wire_that_are_no_tensor_are_refused() {
    let refused = |dtype: &str, shape: &[i64], bytes: usize| {
        tensor_from_bytes(dtype, shape, &vec![0; bytes]).unwrap_err().to_string()
    };
    assert!(refused("I8", &[1], 1).contains("dtype I8"));
    assert!(refused("F32", &[2, 3], 20).contains("needs 24 bytes, not 20"));
    assert!(refused("BF16", &[-1, 0], 0).contains("[-1, 0]"));
    assert!(refused("F32", &[i64::MAX, i64::MAX], 4).contains("not 4"));
}

proptest! {
    /// Whatever a disk or a stranger does to the header, an answer comes back.
    #[test]
    fn a_corrupt_header_never_panics(
        damage in proptest::collection::vec((0usize..1200, any::<u8>()), 1..8),
        length in proptest::option::of(any::<u16>()),
    ) {
        let directory = directory(|_| ());
        let path = directory.path().join(WEIGHTS_FILE);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Some(length) = length {
            bytes.truncate(usize::from(length));
        }
        fs::write(&path, &bytes).unwrap();
        drop(Policy::open(directory.path(), Device::Cpu, Dtype::F32));
        drop(read_weights(&path));
    }

    /// The same for numbers in it, which stay well-formed JSON.
    #[test]
    fn a_lying_header_never_panics(
        which in any::<prop::sample::Index>(),
        number in prop_oneof![any::<u64>(), 0u64..64],
    ) {
        let directory = directory(|_| ());
        let path = directory.path().join(WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        let header_bytes = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
        let (header, data) = bytes[8..].split_at(header_bytes.unwrap());
        let header = std::str::from_utf8(header).unwrap();
        let numbers: Vec<_> = header.match_indices(|c: char| c.is_ascii_digit()).collect();
        let (at, digit) = numbers[which.index(numbers.len())];
        let header = format!("{}{number}{}", &header[..at], &header[at + digit.len()..]);
        let mut lying = (header.len() as u64).to_le_bytes().to_vec();
        lying.extend_from_slice(header.as_bytes());
        lying.extend_from_slice(data);
        fs::write(&path, &lying).unwrap();
        drop(Policy::open(directory.path(), Device::Cpu, Dtype::F32));
        drop(read_weights(&path));
    }
}
