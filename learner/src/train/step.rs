//! The training step, top to bottom.

use std::time::Instant;

use ballast_policy::Policy;
use tch::{Kind, Tensor};

use super::MicroBatch;
use crate::{
    algorithm::TrainingSample,
    loss::{Clip, cross_entropy, policy_gradient},
    optimizer::{AdamW, Loss, clip},
};

/// Which loss part the samples feed.
#[derive(Clone, Copy, Debug)]
pub enum LossKind {
    /// Clipped policy gradient on the advantages.
    PolicyGradient(Clip),
    /// Cross-entropy on the tokens.
    CrossEntropy,
}

impl LossKind {
    fn loss(self) -> Loss {
        match self {
            Self::PolicyGradient(_) => Loss::PolicyGradient,
            Self::CrossEntropy => Loss::CrossEntropy,
        }
    }
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// A loss or gradient was not finite; nothing was applied.
    pub skipped: bool,
    /// Loss per trained token.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// Mean entropy of the policy at the trained positions, nats.
    pub entropy: f64,
    /// Share of trained tokens whose ratio was cut; 0 for cross-entropy.
    pub clip_fraction: f64,
    /// k3 estimate of KL(behavior || learner) per trained token; 0 for cross-entropy.
    pub behavior_kl: f64,
    /// Mean importance ratio; 1 for cross-entropy.
    pub importance_ratio: f64,
    /// Largest difference between the learner's and the actor's log-probability of a token that the
    /// very weights being trained sampled; absent when no sequence was. The numerics promise: below
    /// 1e-4 in fp32 on a CPU.
    pub logprob_gap_max: Option<f64>,
    /// Tokens that carried loss.
    pub trained_tokens: f64,
    /// Tokens run through the network, padding included.
    pub processed_tokens: f64,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// Policy and optimizer.
#[derive(Debug)]
pub struct Trainer {
    policy: Policy,
    optimizer: AdamW,
    gradient_norm_max: f64,
    micro_batch_tokens: usize,
}

impl Trainer {
    /// Takes over a policy; its leaves track gradients from here on.
    #[must_use]
    pub fn new(
        policy: Policy,
        optimizer: AdamW,
        gradient_norm_max: f64,
        micro_batch_tokens: usize,
    ) -> Self {
        policy.train();
        Self { policy, optimizer, gradient_norm_max, micro_batch_tokens }
    }

    /// The policy being trained.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The optimizer, for a checkpoint.
    #[must_use]
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// One optimizer step over all samples; every trained token weighs the same, whatever the length
    /// of its sequence (token mean, DAPO eq. 8). Samples without a trained token, such as a batch of
    /// groups without reward spread, leave the weights as they are.
    pub fn step(
        &mut self,
        samples: &[TrainingSample],
        kind: LossKind,
        learning_rate: f64,
    ) -> StepReport {
        let started = Instant::now();
        let device = self.policy.device();
        let trained_tokens: f64 = samples.iter().map(TrainingSample::trained_tokens).sum();
        let mut report = StepReport { trained_tokens, importance_ratio: 1.0, ..Default::default() };
        if trained_tokens > 0.0 {
            self.zero_gradients();
            if matches!(kind, LossKind::PolicyGradient(_)) {
                report.importance_ratio = 0.0;
            }
            for batch in MicroBatch::split(samples, self.micro_batch_tokens, device) {
                self.accumulate(&batch, kind, &mut report);
            }
            self.apply(kind.loss(), learning_rate, &mut report);
        }
        report.seconds = started.elapsed().as_secs_f64();
        report
    }

    /// Forward and backward of one micro-batch; gradients add up in the leaves.
    fn accumulate(&self, batch: &MicroBatch, kind: LossKind, report: &mut StepReport) {
        let (logprobs, entropy) = token_logprobs(&self.policy, batch);
        let share = 1.0 / report.trained_tokens;
        let loss = match kind {
            LossKind::CrossEntropy => cross_entropy(&logprobs),
            LossKind::PolicyGradient(clip) => {
                let part =
                    policy_gradient(&logprobs, &batch.behavior_logprobs, &batch.advantages, clip);
                report.clip_fraction += part.clipped.double_value(&[]) * share;
                report.behavior_kl += part.behavior_kl.double_value(&[]) * share;
                report.importance_ratio += part.ratio.double_value(&[]) * share;
                if let Some(gap) = on_policy_gap(&logprobs, batch) {
                    report.logprob_gap_max = Some(report.logprob_gap_max.unwrap_or(0.0).max(gap));
                }
                part.loss
            }
        } * share;
        loss.backward();
        report.loss += loss.double_value(&[]);
        report.entropy += entropy * share;
        report.processed_tokens += batch.grid_tokens() as f64;
    }

    fn apply(&mut self, loss: Loss, learning_rate: f64, report: &mut StepReport) {
        let gradients: Vec<Tensor> =
            self.policy.leaves().iter().map(|leaf| leaf.grad().reshape([-1])).collect();
        let (norm, gradient) = clip(&Tensor::cat(&gradients, 0), self.gradient_norm_max);
        report.gradient_norm = norm;
        if !norm.is_finite() || !report.loss.is_finite() {
            report.skipped = true;
            return;
        }
        self.optimizer.step(loss, self.policy.flat(), &gradient, learning_rate);
    }

    fn zero_gradients(&self) {
        for leaf in self.policy.leaves() {
            let mut gradient = leaf.grad();
            if gradient.defined() {
                let _zeroed = gradient.zero_();
            }
        }
    }
}

/// Largest |learner - behavior| log-probability over the on-policy targets of a micro-batch.
fn on_policy_gap(logprobs: &Tensor, batch: &MicroBatch) -> Option<f64> {
    tch::no_grad(|| {
        let any = batch.on_policy.max().double_value(&[]) > 0.0;
        let gap = ((logprobs - &batch.behavior_logprobs).abs() * &batch.on_policy).max();
        any.then(|| gap.double_value(&[]))
    })
}

/// The learner's log-probabilities `[N]` of a micro-batch's targets, with gradient, and the sum of the
/// entropies at their positions, in nats.
pub(crate) fn token_logprobs(policy: &Policy, batch: &MicroBatch) -> (Tensor, f64) {
    let hidden = policy.hidden(&batch.tokens);
    let width = *hidden.size().last().expect("hidden states are [B, T, E]");
    let hidden = hidden.view([-1, width]).index_select(0, &batch.sources);
    let logprobs = policy.head(&hidden).log_softmax(-1, Kind::Float);
    let entropy = tch::no_grad(|| -(logprobs.exp() * &logprobs).sum(Kind::Float).double_value(&[]));
    let targets = batch.targets.unsqueeze(1);
    (logprobs.gather(1, &targets, false).squeeze_dim(1), entropy)
}
