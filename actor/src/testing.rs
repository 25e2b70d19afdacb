//! What the tests of this crate share: a small tokenizer, assignments on the market world, and a
//! decoder that plays from a table.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ballast_chat::{TemplateFiles, Tokenizer, python_json, render_call, train_tokenizer};
use ballast_proto::{
    EpisodeId, GroupId, ManifestHash, PolicyVersion,
    v1::{Mode, Trajectory},
};
use serde_json::json;

use crate::{
    assignment::{Assignment, Limits},
    decoder::{
        DecodeError, Decoder, DecoderFactory, DecoderWork, ReadyWeights, Sampled, Sampling,
        rows::Rows,
    },
    engine::{Engine, Outcome, Report},
    language::Language,
    weights::StagedPolicy,
};

pub(crate) const LIMITS: Limits = Limits {
    turns_max: 8,
    message_tokens_max: 64,
    trajectory_tokens_max: 1024,
    duration_max: Duration::from_secs(60),
};

/// Trained once on what the market world says.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let texts = (0..20).flat_map(|seed| {
            let task = ballast_arena::task("market", "train", seed, 4);
            let world = ballast_arena::open(&task).expect("a task");
            let tools = world.tools().iter().map(|tool| python_json(tool) + "\n").collect();
            let arguments = json!({"name": "lamp", "a": 1, "b": 2, "op": "add"});
            let call = render_call("product", arguments.as_object().expect("an object"));
            [tools, world.prompt().to_owned(), call]
        });
        train_tokenizer(texts.collect::<Vec<_>>().into_iter(), 700).expect("a tokenizer")
    })
}

pub(crate) fn language() -> Language {
    static LANGUAGE: OnceLock<Language> = OnceLock::new();
    let built_in = || Language::built_in(tokenizer().clone()).expect("a language");
    LANGUAGE.get_or_init(built_in).clone()
}

pub(crate) fn config_json(vocab_size: usize) -> Vec<u8> {
    json!({ "vocab_size": vocab_size }).to_string().into_bytes()
}

/// A policy without tensors; its hash is made of its version.
pub(crate) fn staged(version: u64) -> StagedPolicy {
    StagedPolicy {
        policy_version: PolicyVersion(version),
        manifest_hash: ManifestHash([version as u8; 32]),
        tensors: Vec::new(),
        config_json: config_json(tokenizer().vocab_size()).into(),
        tokenizer_json: tokenizer().json().to_vec().into(),
        template_files: TemplateFiles::default(),
    }
}

/// A small random network over the tokenizer, large enough in its weights that attention matters.
#[cfg(feature = "torch")]
pub(crate) fn network(seed: u64) -> ballast_policy::Policy {
    let config = ballast_policy::ModelConfig::from_json(&network_json()).expect("a configuration");
    let policy = ballast_policy::Policy::random(config, seed as i64, ballast_policy::Device::Cpu);
    for (_, mut tensor) in policy.named_tensors() {
        let _scaled = tensor.g_mul_scalar_(4.0);
    }
    policy
}

/// The same as the learner would publish it.
#[cfg(feature = "torch")]
pub(crate) fn staged_network(version: u64, seed: u64) -> StagedPolicy {
    StagedPolicy {
        tensors: crate::torch_decoder::wire_tensors(&network(seed)),
        config_json: network_json().into(),
        ..staged(version)
    }
}

#[cfg(feature = "torch")]
fn network_json() -> Vec<u8> {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "vocab_size": tokenizer().vocab_size(), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "hidden_act": "silu",
    })
    .to_string()
    .into_bytes()
}

/// Episode `id` on task `id` of the training split.
pub(crate) fn assignment(id: u64, mode: Mode) -> Assignment {
    Assignment {
        episode_id: EpisodeId(id),
        group_id: (mode == Mode::Explore).then_some(GroupId(id / 8)),
        task: ballast_arena::task("market", "train", id, 2 + (id % 4) as u32),
        mode,
        min_policy_version: None,
        sampling: Sampling::new(id, 1.0),
        limits: LIMITS,
    }
}

/// The same on the wire.
pub(crate) fn wire(assignment: Assignment) -> ballast_proto::v1::Assignment {
    let limits = assignment.limits;
    ballast_proto::v1::Assignment {
        episode_id: assignment.episode_id.0,
        group_id: assignment.group_id.map(|group| group.0),
        task: Some(assignment.task),
        mode: assignment.mode.into(),
        min_policy_version: assignment.min_policy_version.map(|version| version.0),
        sampling_seed: assignment.sampling.seed,
        temperature: assignment.sampling.temperature,
        limits: Some(ballast_proto::v1::EpisodeLimits {
            turns_max: limits.turns_max,
            message_tokens_max: limits.message_tokens_max as u32,
            trajectory_tokens_max: limits.trajectory_tokens_max as u32,
            duration_ms_max: limits.duration_max.as_millis() as u64,
        }),
    }
}

/// The token to sample, from the sequence's seed and the number of tokens sampled in it before.
pub(crate) type Script = Arc<dyn Fn(u64, usize) -> u32 + Send + Sync>;

/// A script that plays the texts of one message after another, the same for every seed.
pub(crate) fn plays(messages: &[&str]) -> Script {
    let encode = |message: &&str| tokenizer().encode(&format!("{message}<|im_end|>"));
    let tokens =
        messages.iter().map(|m| encode(m).expect("encodable")).collect::<Vec<_>>().concat();
    Arc::new(move |_, index| tokens.get(index).copied().unwrap_or(tokenizer().control().im_end))
}

/// A script that plays, for each sampling seed, the expert's tokens of a demonstration.
pub(crate) fn plays_demonstrations(demonstrations: &[Trajectory]) -> Script {
    let actions = |t: &Trajectory| -> Vec<u32> {
        let tokens = t.token_ids.iter().zip(&t.loss_mask);
        tokens.filter(|(_, mask)| **mask == 1).map(|(token, _)| *token).collect()
    };
    let table: BTreeMap<u64, Vec<u32>> =
        demonstrations.iter().map(|t| (t.sampling_seed, actions(t))).collect();
    Arc::new(move |seed, index| table[&seed][index])
}

/// A script of arbitrary tokens, control tokens among them.
pub(crate) fn babbles() -> Script {
    Arc::new(|seed, index| {
        let hash = blake3::hash(format!("{seed} {index}").as_bytes());
        let bytes = hash.as_bytes();
        let draw = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let control = tokenizer().control().all();
        // One control token in four, so that messages end, and calls open and close, often.
        if bytes[4] < 64 {
            control[draw as usize % control.len()]
        } else {
            draw % tokenizer().vocab_size() as u32
        }
    })
}

/// Builds [`TableDecoder`]s, which fail from the decode step `failing_from` on, and have memory for
/// `memory` sequences at most.
pub(crate) struct TableFactory {
    pub(crate) script: Script,
    pub(crate) failing_from: usize,
    pub(crate) memory: usize,
}

impl TableFactory {
    /// Decoders that never fail and lack no memory.
    pub(crate) fn new(script: Script) -> Self {
        Self { script, failing_from: usize::MAX, memory: usize::MAX }
    }
}

pub(crate) struct TableDecoder {
    script: Script,
    sequences: Vec<Option<Sequence>>,
    rows: Rows,
    steps: usize,
    failing_from: usize,
}

struct Sequence {
    seed: u64,
    fed: usize,
    sampled: usize,
}

impl DecoderFactory for TableFactory {
    fn build(
        &mut self,
        _staged: &StagedPolicy,
        slots: usize,
        _trajectory_tokens_max: usize,
    ) -> Result<Box<dyn Decoder>, DecodeError> {
        let (script, memory) = (Arc::clone(&self.script), self.memory.min(slots));
        Ok(Box::new(TableDecoder::new(script, slots, memory, self.failing_from)))
    }
}

impl TableDecoder {
    fn new(script: Script, slots: usize, memory: usize, failing_from: usize) -> Self {
        let sequences = std::iter::repeat_with(|| None).take(slots).collect();
        Self { script, sequences, rows: Rows::new(slots, memory), steps: 0, failing_from }
    }
}

impl Decoder for TableDecoder {
    fn open(&mut self, slot: usize, sampling: Sampling) {
        assert!(self.sequences[slot].is_none(), "slot {slot} opened twice");
        self.sequences[slot] = Some(Sequence { seed: sampling.seed, fed: 0, sampled: 0 });
        self.rows.open(slot);
    }

    fn feed(&mut self, slot: usize, tokens: &[u32]) {
        self.sequences[slot].as_mut().expect("an open slot").fed += tokens.len();
        self.rows.feed(slot, tokens);
    }

    fn close(&mut self, slot: usize) {
        assert!(self.sequences[slot].take().is_some(), "slot {slot} closed twice");
        self.rows.close(slot);
    }

    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError> {
        assert!(want.is_sorted(), "{want:?}");
        self.steps += 1;
        if self.steps > self.failing_from {
            return Err(DecodeError("the table is on fire".into()));
        }
        let mut slots: Vec<usize> =
            self.rows.plan(want)?.batch.iter().map(|entry| entry.slot).collect();
        slots.sort_unstable();
        let sample = |slot: &usize| {
            let sequence = self.sequences[*slot].as_mut().expect("an open slot");
            assert!(sequence.fed > 0, "sampled before the prompt was fed");
            let token = (self.script)(sequence.seed, sequence.sampled);
            sequence.sampled += 1;
            self.rows.sampled(*slot, token);
            Sampled {
                slot: *slot,
                token,
                logprob: -0.5,
                policy_logprob: -0.5,
                entropy: 1.0,
                control_probs: [0.01; 8],
            }
        };
        Ok(slots.iter().map(sample).collect())
    }

    fn swap(&mut self, _ready: ReadyWeights) -> Result<(), DecodeError> {
        self.rows.swapped(true);
        Ok(())
    }

    fn work(&self) -> DecoderWork {
        self.rows.work()
    }
}

/// An engine over a [`TableDecoder`], and the hand of its clock in milliseconds.
pub(crate) fn engine(script: Script, slots: usize) -> (Engine, Arc<AtomicU64>) {
    engine_of(TableFactory::new(script), slots)
}

pub(crate) fn engine_of(
    factory: impl DecoderFactory + 'static,
    slots: usize,
) -> (Engine, Arc<AtomicU64>) {
    let hand = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&hand);
    let engine = Engine::new(
        Box::new(factory),
        slots,
        LIMITS.trajectory_tokens_max,
        Box::new(move || Duration::from_millis(clock.load(Relaxed))),
    );
    (engine, hand)
}

/// Runs until the engine has nothing left to do; the trajectories by episode id.
pub(crate) fn finish(engine: &mut Engine) -> Vec<Trajectory> {
    let mut trajectories = Vec::new();
    for _ in 0..20_000 {
        if !engine.is_runnable() {
            break;
        }
        trajectories.extend(engine.step().into_iter().map(trajectory));
    }
    assert!(!engine.is_runnable(), "the episodes never end");
    trajectories.sort_by_key(|trajectory| trajectory.episode_id);
    trajectories
}

pub(crate) fn trajectory(report: Report) -> Trajectory {
    match report.outcome {
        Outcome::Finished(trajectory) => *trajectory,
        Outcome::Returned { episode_id, reason, .. } => {
            panic!("{episode_id} was returned: {reason}")
        }
    }
}
