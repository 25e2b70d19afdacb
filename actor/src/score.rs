//! `ballast-actor score`: log-probabilities of given tokens.

use std::{io::Write, path::PathBuf};

use anyhow::{Context as _, ensure};
use ballast_policy::{Device, Dtype, Policy, Tensor};
use ballast_runtime::exit;
use serde::Serialize;

use crate::{
    model::{Model, ModelArgs},
    token_lists,
};

/// Tokens of one forward pass, padding included.
const BATCH_TOKENS_MAX: usize = 4096;
/// Numbers of one table of logits: 64 Mi of them are 256 MiB.
const LOGITS_MAX: i64 = 64 << 20;

/// Print the log-probability of every token given those before it, one JSON line for each list.
#[derive(Debug, clap::Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON file: a list of lists of token ids.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
}

#[derive(Serialize)]
struct Line<'a> {
    token_ids: &'a [u32],
    /// Natural logs; none for the first token, which nothing predicts.
    logprobs: Vec<Option<f32>>,
}

/// Scores the file and writes a line per list, in its order.
///
/// # Errors
/// The model or the file cannot be used, or a log-probability is not finite.
pub fn run(args: &ScoreArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let model = Model::open(&args.model).map_err(exit::unusable)?;
    let (vocab_size, context) = (model.vocab_size(), model.context_tokens());
    let lists = token_lists::read(&args.tokens, vocab_size, context, 0).map_err(exit::unusable)?;
    let lengths: Vec<usize> = lists.iter().map(Vec::len).collect();
    let mut scores: Vec<Vec<f32>> = vec![Vec::new(); lists.len()];
    for rows in batches_of_like_length(&lengths, BATCH_TOKENS_MAX) {
        let batch: Vec<&[u32]> = rows.iter().map(|row| lists[*row].as_slice()).collect();
        let scored = logprobs(model.policy(), &batch).context("read the log-probabilities")?;
        for (row, logprobs) in rows.into_iter().zip(scored) {
            let place = logprobs.iter().position(|logprob| !logprob.is_finite());
            ensure!(
                place.is_none(),
                "list {row}: the log-probability at index {} is not finite; are the weights sound?",
                place.unwrap_or(0) + 1
            );
            scores[row] = logprobs;
        }
    }
    for (token_ids, scores) in lists.iter().zip(scores) {
        let first = token_ids.first().map(|_| None);
        let logprobs = first.into_iter().chain(scores.into_iter().map(Some)).collect();
        serde_json::to_writer(&mut *out, &Line { token_ids, logprobs })?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

/// Rows to run together: sorted by length, so that little is padded, and of at most `tokens_max`
/// cells unless one row alone is longer. Rows of fewer than two tokens have nothing to score.
fn batches_of_like_length(lengths: &[usize], tokens_max: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..lengths.len()).filter(|row| lengths[*row] >= 2).collect();
    rows.sort_by_key(|row| lengths[*row]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for row in rows {
        match batches.last_mut() {
            // The newest row is the longest: the others are padded to it.
            Some(batch) if (batch.len() + 1) * lengths[row] <= tokens_max => batch.push(row),
            _ => batches.push(vec![row]),
        }
    }
    batches
}

/// For each list its length - 1 log-probabilities: of each token given those before it.
fn logprobs(policy: &Policy, lists: &[&[u32]]) -> anyhow::Result<Vec<Vec<f32>>> {
    let width = lists.iter().map(|list| list.len()).max().unwrap_or(0);
    let padded = |list: &&[u32]| {
        let pad = std::iter::repeat_n(0, width - list.len());
        list.iter().map(|id| i64::from(*id)).chain(pad).collect::<Vec<_>>()
    };
    let grid: Vec<i64> = lists.iter().flat_map(padded).collect();
    let tokens_bt = Tensor::from_slice(&grid)
        .view([lists.len() as i64, width as i64])
        .to_device(policy.device());
    let hidden_bte = policy.hidden(&tokens_bt.narrow(1, 0, width as i64 - 1));
    let hidden_ne = hidden_bte.flatten(0, 1);
    let targets_n = tokens_bt.narrow(1, 1, width as i64 - 1).flatten(0, 1);
    // The head is the wide part: its table is made a few rows at a time.
    let rows = (LOGITS_MAX / policy.config().vocab_size).max(1);
    let parts = hidden_ne.split(rows, 0).into_iter().zip(targets_n.split(rows, 0));
    let scored = parts.map(|(hidden, targets)| {
        let logprobs = policy.head(&hidden).log_softmax(-1, Dtype::F32.kind());
        logprobs.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
    });
    let flat_n = Tensor::cat(&scored.collect::<Vec<_>>(), 0).to_device(Device::Cpu).contiguous();
    let flat = Vec::<f32>::try_from(flat_n)?;
    let row = |(row, list): (usize, &&[u32])| {
        let start = row * (width - 1);
        flat[start..start + list.len() - 1].to_vec()
    };
    Ok(lists.iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_like_length_are_scored_together() {
        let batches = batches_of_like_length(&[5, 1, 90, 4, 0, 100, 6], 24);
        assert_eq!(batches, [vec![3, 0, 6], vec![2], vec![5]]);
        assert!(batches_of_like_length(&[0, 1], 24).is_empty());
    }
}
