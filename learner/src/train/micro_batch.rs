//! Samples grouped for one forward pass: like lengths together, padded to the longest, within a
//! budget of tokens.

use tch::{Device, Tensor};

use crate::algorithm::TrainingSample;

/// Samples of one forward pass. B sequences padded to T tokens; N tokens carry loss.
#[derive(Debug)]
pub struct MicroBatch {
    /// [B, T] token ids, int64.
    pub tokens: Tensor,
    /// `[N]` cells of the flattened [B, T] grid whose *next* token carries loss.
    pub sources: Tensor,
    /// `[N]` the token each source predicts.
    pub targets: Tensor,
    /// `[N]` advantage of each target.
    pub advantages: Tensor,
    /// `[N]` behavior log-probability of each target.
    pub behavior_logprobs: Tensor,
    /// `[N]` 1 where the target was sampled by the weights being trained, else 0.
    pub on_policy: Tensor,
}

impl MicroBatch {
    /// Splits samples into micro-batches of at most `tokens_max` tokens, padding included; a sample
    /// longer than that gets one of its own. The order is by length and then as given, so the same
    /// samples always make the same micro-batches.
    #[must_use]
    pub fn split(samples: &[TrainingSample], tokens_max: usize, device: Device) -> Vec<Self> {
        let mut order: Vec<&TrainingSample> =
            samples.iter().filter(|sample| sample.trained_tokens() > 0.0).collect();
        order.sort_by_key(|sample| sample.token_ids.len());
        let mut batches = Vec::new();
        let mut rows: Vec<&TrainingSample> = Vec::new();
        for sample in order {
            // Sorted: the new sample is the longest of its batch.
            if !rows.is_empty() && (rows.len() + 1) * sample.token_ids.len() > tokens_max {
                batches.push(Self::pack(&rows, device));
                rows.clear();
            }
            rows.push(sample);
        }
        if !rows.is_empty() {
            batches.push(Self::pack(&rows, device));
        }
        batches
    }

    fn pack(rows: &[&TrainingSample], device: Device) -> Self {
        let width = rows.iter().map(|row| row.token_ids.len()).max().unwrap_or(0);
        let mut tokens = vec![0i64; rows.len() * width];
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        let (mut advantages, mut behavior_logprobs) = (Vec::new(), Vec::new());
        let mut on_policy = Vec::new();
        for (row, sample) in rows.iter().enumerate() {
            for (column, token) in sample.token_ids.iter().enumerate() {
                tokens[row * width + column] = i64::from(*token);
                if column > 0 && sample.mask[column] > 0.0 {
                    sources.push((row * width + column - 1) as i64);
                    targets.push(i64::from(*token));
                    advantages.push(sample.advantages[column]);
                    behavior_logprobs.push(sample.behavior_logprobs[column]);
                    on_policy.push(f32::from(u8::from(sample.on_policy)));
                }
            }
        }
        let shape = [rows.len() as i64, width as i64];
        Self {
            tokens: Tensor::from_slice(&tokens).view(shape).to(device),
            sources: Tensor::from_slice(&sources).to(device),
            targets: Tensor::from_slice(&targets).to(device),
            advantages: Tensor::from_slice(&advantages).to(device),
            behavior_logprobs: Tensor::from_slice(&behavior_logprobs).to(device),
            on_policy: Tensor::from_slice(&on_policy).to(device),
        }
    }

    /// Tokens of the grid, padding included.
    #[must_use]
    pub fn grid_tokens(&self) -> usize {
        self.tokens.numel()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(length: usize, trained: &[usize]) -> TrainingSample {
        let mut mask = vec![0.0; length];
        trained.iter().for_each(|index| mask[*index] = 1.0);
        TrainingSample {
            token_ids: (0..length as u32).map(|id| id + 10).collect(),
            advantages: mask.clone(),
            behavior_logprobs: mask.iter().map(|mask| -mask).collect(),
            on_policy: false,
            mask,
        }
    }

    #[test]
    fn every_trained_token_appears_once_with_its_context() {
        let samples = [sample(5, &[2, 4]), sample(3, &[1]), sample(9, &[8]), sample(4, &[])];
        let batches = MicroBatch::split(&samples, 10, Device::Cpu);
        let mut pairs = Vec::new();
        for batch in &batches {
            let grid = Vec::<i64>::try_from(batch.tokens.reshape([-1])).unwrap();
            let sources = Vec::<i64>::try_from(&batch.sources).unwrap();
            let targets = Vec::<i64>::try_from(&batch.targets).unwrap();
            pairs.extend(sources.iter().zip(targets).map(|(at, to)| (grid[*at as usize], to)));
        }
        pairs.sort_unstable();
        assert_eq!(pairs, vec![(10, 11), (11, 12), (13, 14), (17, 18)]);
        // The sample without loss is left out; 3 and 5 fit together, 9 does not.
        assert_eq!(batches.iter().map(MicroBatch::grid_tokens).collect::<Vec<_>>(), vec![10, 9]);
    }

    #[test]
    fn a_sample_longer_than_the_budget_gets_a_batch_of_its_own() {
        let batches = MicroBatch::split(&[sample(30, &[3]), sample(31, &[3])], 8, Device::Cpu);
        assert_eq!(batches.len(), 2);
    }
}
