//! Tokens per second of the quickstart's model: sampling as an actor does it and training as the
//! learner does it, beside transformers on eager PyTorch with the same checkpoint and shapes.

use std::process::Command;

use anyhow::Result;

use super::Pair;
use crate::checkout::Checkout;
use crate::{command, machine, python};

/// The shipped model, relative to the checkout.
const CHECKPOINT: &str = "examples/market/base";

/// The peer's script, relative to the checkout.
const PEER_SCRIPT: &str = "bench/peers/transformers_eager.py";

/// The peer, as `bench/requirements.txt` pins it.
const PEER: &str = "transformers 5.23.0, torch 2.11.0";

/// Shape of sampling: 64 episodes at once, a market prompt, and a trajectory's worth of tokens.
const ROLLOUT: &str = "--batch 64 --prompt 96 --new 64 --repeat 3";

/// Shape of an optimizer step: 32 trajectories of the mean length.
const TRAIN: &str = "--batch 32 --tokens 256 --repeat 3";

/// The two metrics, ready to be measured.
pub(super) fn pairs(checkout: &Checkout) -> Result<Vec<Pair>> {
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let ours = |role: &str, shape: &str| {
        let mut program = command::program(checkout, checkout.program(role));
        program.arg("bench");
        shaped(program, shape)
    };
    let theirs = |mode: &str, shape: &str| -> Result<Command> {
        let mut program = python::with(checkout, &python::TRANSFORMERS)?;
        program.args([PEER_SCRIPT, mode]);
        Ok(shaped(program, shape))
    };
    Ok(vec![
        Pair {
            metric: "rollout".into(),
            unit: "tokens/s",
            peer: PEER,
            ours: ours("ballast-actor", &format!("{ROLLOUT} --dtype fp32")),
            theirs: theirs("rollout", ROLLOUT)?,
        },
        Pair {
            metric: "training".into(),
            unit: "tokens/s",
            peer: PEER,
            ours: ours("ballast-learner", TRAIN),
            theirs: theirs("train", TRAIN)?,
        },
    ])
}

/// Both sides get the same checkpoint, shape and threads.
fn shaped(mut program: Command, shape: &str) -> Command {
    program.args(["--checkpoint", CHECKPOINT]).args(shape.split(' '));
    program.args(["--threads", &machine::cores().to_string()]);
    program
}
