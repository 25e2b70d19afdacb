//! Sampling throughput on one machine, for `cargo xtask bench`.

mod swap;

use std::{io::Write, path::PathBuf, time::Instant};

use ballast_policy::{Policy, open_device, set_threads};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::{
    decoder::{Decoder as _, Sampling},
    torch_decoder::TorchDecoder,
};

/// Tokens at the start of a prompt that count it.
const PROMPT_DIGITS: usize = 3;

/// Measure how fast this machine samples, and print one line of JSON: tokens sampled per second and per
/// second of processor time, one number for each run, and the forced tokens that were computed and
/// saved over all runs.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Hugging Face checkpoint directory.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Sequences sampled at once.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Sequences that share a prompt, as the siblings of a group do.
    #[arg(long, default_value_t = 1)]
    group: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 96)]
    prompt: usize,
    /// Tokens sampled in each turn.
    #[arg(long, default_value_t = 64)]
    new: usize,
    /// Turns; between two of them a tool answers.
    #[arg(long, default_value_t = 1)]
    turns: usize,
    /// Tokens of a tool's answer.
    #[arg(long, default_value_t = 0)]
    tool: usize,
    /// Leave the prompts out of the measurement.
    #[arg(long)]
    decode_only: bool,
    /// Swap in other weights all the time, and time that instead.
    #[arg(long)]
    swap: bool,
    /// Measured runs, after one that warms up.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Threads of the backend.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Numbers the network computes with: fp32 or bf16 [default: whichever is faster here].
    #[arg(long)]
    dtype: Option<String>,
}

impl BenchArgs {
    /// The fewest forced tokens that one run can compute: each group's prompt once, and every tool's
    /// answer. The last token of each, for every sequence, is computed with the first one sampled.
    fn prefill_ideal(&self) -> usize {
        let groups = self.batch.div_ceil(self.group.max(1));
        let prompts = groups * self.prompt.saturating_sub(1);
        let tools = self.batch * (self.turns.saturating_sub(1)) * self.tool;
        prompts + self.batch + tools
    }
}

/// Measures and prints.
///
/// # Errors
/// The checkpoint cannot be loaded, or nothing can be written.
pub fn run(args: &BenchArgs, output: &mut impl Write) -> anyhow::Result<()> {
    set_threads(args.threads);
    let device = open_device("cpu")?;
    let dtype = match &args.dtype {
        Some(dtype) => dtype.parse()?,
        None => ballast_policy::Dtype::fastest(device),
    };
    let policy = Policy::open(&args.checkpoint, device, dtype)?;
    let mut bench = Bench::new(args, policy);
    if args.swap {
        let line = swap::measure(args, &mut bench.decoder)?;
        writeln!(output, "{line}")?;
        return Ok(());
    }
    bench.measure()?;
    let (mut tokens_per_s, mut tokens_per_cpu_s) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        let Seconds { wall, processor } = bench.measure()?;
        let tokens = (args.batch * args.new * args.turns) as f64;
        tokens_per_s.push(tokens / wall);
        tokens_per_cpu_s.push(tokens / processor);
    }
    let work = bench.decoder.work();
    let line = json!({
        "tokens_per_s": tokens_per_s,
        "tokens_per_cpu_s": tokens_per_cpu_s,
        "prefill_computed": work.prefill_computed,
        "prefill_saved": work.prefill_saved,
        "prefill_ideal": args.prefill_ideal() * (args.repeat + 1),
    });
    writeln!(output, "{line}")?;
    Ok(())
}

struct Bench<'a> {
    args: &'a BenchArgs,
    decoder: TorchDecoder,
    vocabulary: usize,
    /// Prompts used so far: none comes twice, or its keys would still be there.
    prompts: usize,
}

struct Seconds {
    wall: f64,
    processor: f64,
}

impl<'a> Bench<'a> {
    fn new(args: &'a BenchArgs, policy: Policy) -> Self {
        let vocabulary = usize::try_from(policy.config().vocab_size).unwrap_or(1);
        let length = args.prompt + args.turns * (args.new + args.tool);
        let decoder = TorchDecoder::new(policy, [0; 8], args.batch, length);
        Self { args, decoder, vocabulary, prompts: 0 }
    }

    /// One run: every sequence from its prompt to its end.
    fn measure(&mut self) -> anyhow::Result<Seconds> {
        let slots: Vec<usize> = (0..self.args.batch).collect();
        let mut clock = Clock::start();
        self.prompts += self.args.batch;
        for slot in &slots {
            self.decoder.open(*slot, Sampling::new(*slot as u64, 1.0));
            let prompt = self.prompt(self.prompts + slot / self.args.group.max(1));
            self.decoder.feed(*slot, &prompt);
        }
        if self.args.decode_only {
            // The first sample ends the prefill; the tokens that count come after it.
            self.decoder.step(&slots)?;
            clock = Clock::start();
        }
        for turn in 0..self.args.turns {
            if turn > 0 {
                for slot in &slots {
                    let answer = self.tokens(turn * 1009 + slot * 13, self.args.tool);
                    self.decoder.feed(*slot, &answer);
                }
            }
            for _ in 0..self.args.new {
                self.decoder.step(&slots)?;
            }
        }
        Ok(clock.elapsed())
    }

    /// Prompt `number`: its first tokens are its own.
    fn prompt(&self, number: usize) -> Vec<u32> {
        let mut tokens = self.tokens(number, self.args.prompt);
        for (digit, token) in tokens.iter_mut().take(PROMPT_DIGITS).enumerate() {
            let value = number / self.vocabulary.pow(digit as u32);
            *token = (value % self.vocabulary) as u32;
        }
        tokens
    }

    fn tokens(&self, seed: usize, count: usize) -> Vec<u32> {
        (0..count).map(|at| ((seed * 31 + at * 7) % self.vocabulary) as u32).collect()
    }
}

struct Clock {
    wall: Instant,
    processor: f64,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_seconds() }
    }

    fn elapsed(&self) -> Seconds {
        let processor = processor_seconds() - self.processor;
        Seconds { wall: self.wall.elapsed().as_secs_f64(), processor }
    }
}

/// Time that all threads of this process have run.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
