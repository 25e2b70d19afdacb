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

/// Which loss the samples feed.
#[derive(Clone, Copy, Debug)]
pub enum LossKind {
    /// Clipped policy gradient on the advantages.
    PolicyGradient(Clip),
    /// Cross-entropy on the tokens.
    CrossEntropy,
}

/// A part of a step's loss: the mean of one loss over the trained tokens of its samples, times a
/// weight. The loss of the step is the sum of its parts.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it trains on.
    pub samples: Vec<TrainingSample>,
    /// How.
    pub kind: LossKind,
    /// Its weight in the sum.
    pub weight: f64,
}

impl Part {
    /// The only part of a step.
    #[must_use]
    pub fn whole(samples: Vec<TrainingSample>, kind: LossKind) -> Self {
        Self { samples, kind, weight: 1.0 }
    }

    fn trained_tokens(&self) -> f64 {
        self.samples.iter().map(TrainingSample::trained_tokens).sum()
    }
}

/// Whose moments a step uses. A joint step has some of its own: its gradients are like neither's.
fn moments_of(parts: &[Part]) -> Loss {
    match parts {
        [Part { kind: LossKind::PolicyGradient(_), .. }] => Loss::PolicyGradient,
        [Part { kind: LossKind::CrossEntropy, .. }] => Loss::CrossEntropy,
        _ => Loss::Joint,
    }
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// A loss or gradient was not finite; nothing was applied.
    pub skipped: bool,
    /// Sum of the parts of the loss.
    pub loss: f64,
    /// Policy-gradient loss per trained token; absent without that part.
    pub policy_gradient: Option<f64>,
    /// Cross-entropy per trained token, before its weight; absent without that part.
    pub cross_entropy: Option<f64>,
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

    /// Forgets the optimizer's history.
    pub fn reset_optimizer(&mut self) {
        self.optimizer.reset();
    }

    /// One optimizer step on the sum of the parts. In a part every trained token weighs the same,
    /// whatever the length of its sequence (token mean, DAPO eq. 8). Samples without a trained token,
    /// such as a batch of groups without reward spread, leave the weights as they are.
    pub fn step(&mut self, parts: &[Part], learning_rate: f64) -> StepReport {
        let started = Instant::now();
        let mut report = StepReport { importance_ratio: 1.0, ..Default::default() };
        report.trained_tokens = parts.iter().map(Part::trained_tokens).sum();
        if report.trained_tokens > 0.0 {
            self.zero_gradients();
            for part in parts.iter().filter(|part| part.trained_tokens() > 0.0) {
                self.accumulate_part(part, &mut report);
            }
            report.entropy /= report.trained_tokens;
            self.apply(moments_of(parts), learning_rate, &mut report);
        }
        report.seconds = started.elapsed().as_secs_f64();
        report
    }

    /// Forward and backward of one part; gradients add up in the leaves.
    fn accumulate_part(&self, part: &Part, report: &mut StepReport) {
        if matches!(part.kind, LossKind::PolicyGradient(_)) {
            report.importance_ratio = 0.0;
        }
        let share = 1.0 / part.trained_tokens();
        let device = self.policy.device();
        let mut loss = 0.0;
        for batch in MicroBatch::split(&part.samples, self.micro_batch_tokens, device) {
            loss += self.accumulate(&batch, part, share, report);
        }
        match part.kind {
            LossKind::PolicyGradient(_) => report.policy_gradient = Some(loss),
            LossKind::CrossEntropy => report.cross_entropy = Some(loss),
        }
        report.loss += part.weight * loss;
    }

    /// Forward and backward of one micro-batch, of which every token counts `share`. Returns its
    /// share of the part's loss, before its weight.
    fn accumulate(
        &self,
        batch: &MicroBatch,
        part: &Part,
        share: f64,
        report: &mut StepReport,
    ) -> f64 {
        let (logprobs, entropy) = token_logprobs(&self.policy, batch);
        let loss = match part.kind {
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
        // A weight of 1 must not cost a rounding: a step of one part is what it always was.
        if part.weight == 1.0 {
            loss.backward()
        } else {
            (&loss * part.weight).backward()
        };
        report.entropy += entropy;
        report.processed_tokens += batch.grid_tokens() as f64;
        loss.double_value(&[])
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
