//! Prints market tasks as the expert solves them, and how long opening and scoring take.
//!
//! `cargo run -p ballast-arena --example tasks`

use std::time::Instant;

use anyhow::Context as _;
use ballast_arena::{Environment, ExpertAction, market, open, task};

const TIMED_TASKS: u64 = 1_000;

fn main() -> anyhow::Result<()> {
    for calls in market::CALLS {
        for seed in 0..4 {
            show(&mut *open(&task(market::NAME, "train", seed, calls))?)?;
        }
    }
    let start = Instant::now();
    for seed in 0..TIMED_TASKS {
        open(&task(market::NAME, "test", seed, 5))?.score(Some(""))?;
    }
    let each = start.elapsed() / u32::try_from(TIMED_TASKS)?;
    println!("opening and scoring a held-out task of 5 calls takes {each:?}");
    Ok(())
}

fn show(environment: &mut dyn Environment) -> anyhow::Result<()> {
    println!("{}", environment.prompt());
    let mut expert = environment.expert();
    let mut last_result = None;
    loop {
        match expert.next(last_result.as_ref()) {
            ExpertAction::Call { name, arguments } => {
                let outcome = environment.call(&name, &arguments)?;
                let arguments = serde_json::to_string(&arguments)?;
                println!("  {name} {arguments} -> {}", outcome.to_text());
                last_result = Some(outcome.into_result().context("the expert was refused")?);
            }
            ExpertAction::Answer(answer) => {
                println!("  {answer}   reward {}\n", environment.score(Some(&answer))?.reward);
                return Ok(());
            }
        }
    }
}
