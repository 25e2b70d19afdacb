//! What the values mean: ranges of each key, and keys that contradict each other.

mod schedule;
mod store;

use std::{fmt::Display, ops::RangeInclusive};

pub use self::schedule::PHASE_END_METRICS;
use super::{Fault, shape::is_similar};
use crate::{
    config::{Config, Model},
    net,
};

/// Longest run name, in bytes: it becomes a directory name.
const RUN_NAME_BYTES_MAX: usize = 100;
/// Calls of one task.
const CALLS: RangeInclusive<u32> = 1..=8;
/// Any count of episodes, tasks, groups or tokens: far above what one machine can do.
const COUNT_MAX: u32 = 1 << 24;
const STEPS_MAX: u64 = 1 << 40;
const LEARNING_RATE: RangeInclusive<f64> = 1e-12..=1.0;
const TEMPERATURE_MAX: f32 = 10.0;
const SECONDS: RangeInclusive<f64> = 0.1..=86_400.0;
/// The learner keeps old batches and the actors old versions for as long as this.
const STALENESS_MAX: u64 = 64;
const THREADS_MAX: u32 = 1024;
/// The coordinator takes no more from one actor.
const SLOTS_MAX: u32 = 4096;

/// What `chat` can read; it refuses anything else itself, but later.
const TOOL_CALL_FORMATS: [&str; 4] = ["hermes", "llama3", "qwen_xml", "pythonic"];
/// Variables of a chat template that are no setting.
const SET_BY_EPISODES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Every fault of meaning, without the origin, which the caller knows.
pub(super) fn check(config: &Config) -> Vec<Fault> {
    let mut faults = Faults::default();
    check_run(config, &mut faults);
    schedule::check(config, &mut faults);
    check_training(config, &mut faults);
    check_episodes(config, &mut faults);
    check_processes(config, &mut faults);
    store::check(&config.coordinator.store, &mut faults);
    check_engine(config, &mut faults);
    faults.0
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn require(&mut self, sound: bool, key: &str, problem: impl FnOnce() -> String) {
        if !sound {
            let subject = key.to_owned();
            self.0.push(Fault { subject, problem: problem(), origin: String::new() });
        }
    }

    /// A NaN is in no range.
    fn range<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        let problem = || format!("is {value}; allowed: {} to {}", range.start(), range.end());
        self.require(range.contains(&value), key, problem);
    }

    fn one_of(&mut self, key: &str, value: &str, allowed: &[&str]) {
        self.require(allowed.contains(&value), key, || {
            // A short word resembles too many others.
            let near = allowed.iter().find(|known| known.len() > 4 && is_similar(value, known));
            let suggestion = near.map(|near| format!(" (did you mean `{near}`?)"));
            let suggestion = suggestion.unwrap_or_default();
            format!("is `{value}`{suggestion}; allowed: {}", allowed.join(", "))
        });
    }

    fn address(&mut self, key: &str, value: &str) {
        let problem = || {
            format!("is `{value}`; write HOST:PORT, for example 127.0.0.1:7711 (0: a free port)")
        };
        self.require(net::split_address(value).is_some(), key, problem);
    }

    fn calls(&mut self, key: &str, calls: &[u32]) {
        let sound = !calls.is_empty() && calls.iter().all(|count| CALLS.contains(count));
        self.require(sound, key, || {
            let (first, last) = (CALLS.start(), CALLS.end());
            format!("is {calls:?}; allowed: at least one number, each {first} to {last}")
        });
    }
}

fn check_run(config: &Config, faults: &mut Faults) {
    let name = &config.run.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let sound = (1..=RUN_NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.chars().all(plain);
    faults.require(sound, "run.name", || {
        format!("is `{name}`; allowed: 1 to {RUN_NAME_BYTES_MAX} of A-Z a-z 0-9 - _ . (no leading . or -)")
    });
    // TOML integers end at i64::MAX, and the run directory keeps the configuration as TOML.
    faults.range("run.seed", config.run.seed, 0..=i64::MAX as u64);
    let empty = || "is empty; write a directory".to_owned();
    faults.require(!config.run.directory.as_os_str().is_empty(), "run.directory", empty);
    faults.require(!config.model.checkpoint.as_os_str().is_empty(), "model.checkpoint", empty);
    check_template(&config.model, faults);
    let tasks = &config.tasks;
    faults.require(!tasks.world.is_empty(), "tasks.world", || {
        "is empty; write a world's name".into()
    });
    faults.range("tasks.demonstrations", tasks.demonstrations, 0..=COUNT_MAX);
    faults.calls("tasks.demonstration_calls", &tasks.demonstration_calls);
    faults.calls("tasks.calls", &tasks.calls);
}

fn check_template(model: &Model, faults: &mut Faults) {
    if !model.tool_call_format.is_empty() {
        faults.one_of("model.tool_call_format", &model.tool_call_format, &TOOL_CALL_FORMATS);
    }
    for name in model.template_variables.keys() {
        let key = format!("model.template_variables.{name}");
        let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        faults.require(is_name, &key, || {
            "is no name of a variable; allowed: letters, digits and _".into()
        });
        faults.require(!SET_BY_EPISODES.contains(&name.as_str()), &key, || {
            "is set by every conversation itself; remove it".into()
        });
    }
}

fn check_training(config: &Config, faults: &mut Faults) {
    let rl = &config.rl;
    faults.range("rl.group_size", rl.group_size, 2..=1024);
    faults.range("rl.groups_per_batch", rl.groups_per_batch, 1..=COUNT_MAX);
    faults.range("rl.staleness_max", rl.staleness_max, 0..=STALENESS_MAX);
    faults.range("rl.replaced_max", rl.replaced_max, 0..=COUNT_MAX);
    // Exploration needs a spread: greedy siblings are all the same, and their advantages zero.
    faults.range("rl.temperature", rl.temperature, 0.01..=TEMPERATURE_MAX);
    faults.range("rl.learning_rate", rl.learning_rate, LEARNING_RATE);
    faults.range("rl.clip_low", rl.clip_low, 0.0..=1.0);
    faults.range("rl.clip_high", rl.clip_high, 0.0..=100.0);
    let sft = &config.sft;
    faults.range("sft.batch", sft.batch, 1..=COUNT_MAX);
    faults.range("sft.cold_start_learning_rate", sft.cold_start_learning_rate, LEARNING_RATE);
    faults.range("sft.learning_rate", sft.learning_rate, LEARNING_RATE);
    faults.range("sft.failed.window", sft.failed.window, 1..=1024);
    let optimizer = &config.optimizer;
    // AdamW divides by 1 - beta^t.
    faults.range("optimizer.beta1", optimizer.beta1, 0.0..=0.999_999);
    faults.range("optimizer.beta2", optimizer.beta2, 0.0..=0.999_999);
    faults.range("optimizer.weight_decay", optimizer.weight_decay, 0.0..=1.0);
    faults.range("optimizer.gradient_norm_max", optimizer.gradient_norm_max, 1e-6..=1e6);
    let evaluation = &config.evaluation;
    faults.range("evaluation.tasks", evaluation.tasks, 1..=COUNT_MAX);
    faults.calls("evaluation.calls", &evaluation.calls);
    faults.range("evaluation.check_tasks", evaluation.check_tasks, 1..=COUNT_MAX);
    faults.range("evaluation.temperature", evaluation.temperature, 0.0..=TEMPERATURE_MAX);
}

fn check_episodes(config: &Config, faults: &mut Faults) {
    let episode = &config.episode;
    faults.range("episode.turns_max", episode.turns_max, 1..=1024);
    faults.range("episode.trajectory_tokens_max", episode.trajectory_tokens_max, 16..=COUNT_MAX);
    faults.range("episode.message_tokens_max", episode.message_tokens_max, 1..=COUNT_MAX);
    faults.range("episode.seconds_max", episode.seconds_max, SECONDS);
    let (trajectory, message) = (episode.trajectory_tokens_max, episode.message_tokens_max);
    faults.require(message <= trajectory, "episode.message_tokens_max", || {
        format!("is {message}, more than episode.trajectory_tokens_max = {trajectory}")
    });
    let micro_batch = config.learner.micro_batch_tokens;
    faults.require(micro_batch >= trajectory, "learner.micro_batch_tokens", || {
        format!("is {micro_batch}; one trajectory must fit: at least {trajectory} (episode.trajectory_tokens_max)")
    });
}

fn check_processes(config: &Config, faults: &mut Faults) {
    let devices = ["cpu", "cuda"];
    faults.address("coordinator.listen", &config.coordinator.listen);
    faults.range("coordinator.actor_lease_s", config.coordinator.actor_lease_s, SECONDS);
    let learner = &config.learner;
    faults.address("learner.listen", &learner.listen);
    if !learner.advertise.is_empty() {
        faults.address("learner.advertise", &learner.advertise);
    }
    faults.one_of("learner.device", &learner.device, &devices);
    faults.range("learner.threads", learner.threads, 1..=THREADS_MAX);
    faults.range("learner.checkpoint_every", learner.checkpoint_every, 1..=STEPS_MAX);
    let actor = &config.actor;
    faults.range("actor.count", actor.count, 0..=1024);
    faults.range("actor.slots", actor.slots, 1..=SLOTS_MAX);
    faults.one_of("actor.device", &actor.device, &devices);
    faults.range("actor.threads", actor.threads, 1..=THREADS_MAX);
    faults.one_of("actor.dtype", &actor.dtype, &["fp32", "bf16", "auto"]);
    faults.range("actor.kv_cache_mib", actor.kv_cache_mib, 0..=COUNT_MAX);
}

fn check_engine(config: &Config, faults: &mut Faults) {
    let engine = &config.actor.engine;
    let kind = engine.kind.as_str();
    faults.one_of("actor.engine.kind", kind, &["libtorch", "vllm", "sglang", "ballast"]);
    faults.one_of("actor.engine.logprobs", &engine.logprobs, &["raw", "processed"]);
    faults.range("actor.engine.patience_s", engine.patience_s, SECONDS);
    if kind == "libtorch" {
        return;
    }
    faults.require(engine.url.starts_with("http://"), "actor.engine.url", || {
        format!(
            "is `{}`; write http://HOST:PORT of the {kind} server (https is not spoken)",
            engine.url
        )
    });
    let count = config.actor.count;
    faults.require(count <= 1, "actor.count", || {
        format!(
            "is {count}, but a {kind} server holds the weights of one actor; start further actors \
                 with configurations that name servers of their own"
        )
    });
    if kind == "ballast" || engine.logprobs == "processed" {
        return;
    }
    // Greedy tokens are measured at temperature 1.
    let told = |temperature: f32| temperature == 1.0 || temperature == 0.0;
    for (key, temperature) in [
        ("rl.temperature", config.rl.temperature),
        ("evaluation.temperature", config.evaluation.temperature),
    ] {
        faults.require(told(temperature), key, || {
            format!(
                "is {temperature}, where raw log-probabilities are not those of the samples; make \
                     {kind} return processed ones and set actor.engine.logprobs = \"processed\""
            )
        });
    }
}
