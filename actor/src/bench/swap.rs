//! How long a swap of weights holds up the decode steps.

use std::{
    sync::mpsc::{self, TryRecvError},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use ballast_policy::{Device, Dtype, Policy};
use ballast_proto::{ManifestHash, PolicyVersion};
use bytes::Bytes;
use serde_json::{Value, json};

use super::BenchArgs;
use crate::{
    decoder::{Decoder, Sampling},
    torch_decoder::{TorchDecoder, wire_tensors},
    weights::StagedPolicy,
};

/// Decodes `batch` sequences, `repeat` times `new` steps, while the checkpoint's weights are made
/// ready again and again on another thread, and swapped in when they are.
pub(super) fn measure(args: &BenchArgs, decoder: &mut TorchDecoder) -> anyhow::Result<Value> {
    let staged = staged(args)?;
    let slots: Vec<usize> = (0..args.batch).collect();
    let (mut swaps, mut steps, mut steps_after) = (Vec::new(), Vec::new(), Vec::new());
    let (sender, ready) = mpsc::sync_channel(1);
    let begin = |decoder: &TorchDecoder| {
        let (make_ready, sender) = (decoder.make_ready(&staged), sender.clone());
        thread::spawn(move || sender.send(make_ready()))
    };
    begin(decoder);
    for _ in 0..args.repeat {
        for slot in &slots {
            decoder.open(*slot, Sampling::new(*slot as u64, 1.0));
            let prompt: Vec<u32> = (0..args.prompt).map(|at| (at + slot) as u32 % 256).collect();
            decoder.feed(*slot, &prompt);
        }
        decoder.step(&slots)?;
        let mut swapped = false;
        for _ in 1..args.new {
            let began = Instant::now();
            decoder.step(&slots)?;
            let step = began.elapsed().as_secs_f64() * 1e3;
            if swapped {
                steps_after.push(step)
            } else {
                steps.push(step)
            }
            let began = Instant::now();
            swapped = match ready.try_recv() {
                Ok(weights) => {
                    decoder.swap(weights?)?;
                    swaps.push(began.elapsed().as_secs_f64() * 1e3);
                    begin(decoder);
                    true
                }
                Err(TryRecvError::Empty) => false,
                Err(TryRecvError::Disconnected) => anyhow::bail!("no weights come any more"),
            };
        }
    }
    // The process must not end while libtorch is at work.
    decoder.swap(ready.recv()??)?;
    Ok(json!({
        "swaps": swaps.len(),
        "swap_ms_p50": percentile(&mut swaps, 0.5),
        "swap_ms_p99": percentile(&mut swaps, 0.99),
        "step_ms_p50": percentile(&mut steps, 0.5),
        "step_after_swap_ms_p50": percentile(&mut steps_after, 0.5),
    }))
}

/// The checkpoint, as it comes over the wire.
fn staged(args: &BenchArgs) -> anyhow::Result<StagedPolicy> {
    let directory = &args.checkpoint;
    let policy = Policy::open(directory, Device::Cpu, Dtype::F32)?;
    let read = |name: &str| -> anyhow::Result<Bytes> {
        let path = directory.join(name);
        let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        Ok(bytes.into())
    };
    Ok(StagedPolicy {
        policy_version: PolicyVersion(0),
        manifest_hash: ManifestHash([0; 32]),
        tensors: wire_tensors(&policy),
        config_json: read(ballast_policy::CONFIG_FILE)?,
        tokenizer_json: read(ballast_policy::TOKENIZER_FILE)?,
        template_files: ballast_chat::TemplateFiles::default(),
    })
}

/// NaN, which JSON writes as null, if there is nothing.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).max(1) - 1;
    values.get(at).copied().unwrap_or(f64::NAN)
}
