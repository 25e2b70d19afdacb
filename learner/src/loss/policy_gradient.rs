//! Clipped policy gradient: the surrogate objective of PPO (Schulman et al. 2017, eq. 7) with
//! separate bounds below and above (DAPO's clip-higher, Yu et al. 2025, eq. 8).

use tch::{Kind, Tensor};

/// Beyond this log-ratio the exponential is meaningless and its gradient dangerous.
const LOG_RATIO_MAX: f64 = 20.0;

/// Bounds of the importance ratio.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// The ratio is cut below 1 - low.
    pub low: f64,
    /// The ratio is cut above 1 + high.
    pub high: f64,
}

/// Loss and diagnostics, each a scalar sum over the tokens.
#[derive(Debug)]
pub struct PolicyGradient {
    /// -sum min(ratio * A, clip(ratio) * A); carries the gradient.
    pub loss: Tensor,
    /// Number of tokens whose clipped branch was taken and differs from the other.
    pub clipped: Tensor,
    /// Sum of the k3 estimate of KL(behavior || learner): ratio - 1 - ln ratio (Schulman 2020).
    pub behavior_kl: Tensor,
    /// Sum of the importance ratios.
    pub ratio: Tensor,
}

/// The loss over N tokens: `logprobs` `[N]` of the learner (with gradient), `behavior_logprobs` `[N]` of
/// the policy that sampled them, `advantages` `[N]`.
#[must_use]
pub fn policy_gradient(
    logprobs: &Tensor,
    behavior_logprobs: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> PolicyGradient {
    let log_ratio = (logprobs - behavior_logprobs).clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX);
    let ratio = log_ratio.exp();
    let free = &ratio * advantages;
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantages;
    let loss = -free.minimum(&clipped).sum(Kind::Float);
    tch::no_grad(|| PolicyGradient {
        loss,
        clipped: clipped.lt_tensor(&free).sum(Kind::Float),
        behavior_kl: (&ratio - 1.0 - &log_ratio).sum(Kind::Float),
        ratio: ratio.sum(Kind::Float),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objective for one token in plain numbers, and its derivative by ln p.
    fn reference(logprob: f64, behavior: f64, advantage: f64) -> (f64, f64) {
        let ratio = (logprob - behavior).exp();
        let clipped = ratio.clamp(0.8, 1.3);
        let free_is_lower = ratio * advantage <= clipped * advantage;
        let loss = -(ratio * advantage).min(clipped * advantage);
        (loss, if free_is_lower { -ratio * advantage } else { 0.0 })
    }

    #[test]
    fn values_and_gradients_follow_the_piecewise_table() {
        // Every combination of ratio below, inside and above the bounds with either sign.
        let cases: Vec<(f64, f64)> = [0.5, 0.9, 1.0, 1.2, 2.0]
            .into_iter()
            .flat_map(|ratio: f64| [(ratio.ln(), 1.5), (ratio.ln(), -1.5), (ratio.ln(), 0.0)])
            .collect();
        let behavior = -2.0;
        let logprobs: Vec<f64> = cases.iter().map(|(log_ratio, _)| behavior + log_ratio).collect();
        let advantages: Vec<f64> = cases.iter().map(|(_, advantage)| *advantage).collect();
        let input = Tensor::from_slice(&logprobs).set_requires_grad(true);
        let output = policy_gradient(
            &input,
            &Tensor::from_slice(&vec![behavior; cases.len()]),
            &Tensor::from_slice(&advantages),
            Clip { low: 0.2, high: 0.3 },
        );
        output.loss.backward();
        let gradient = Vec::<f64>::try_from(input.grad()).unwrap();
        let mut total = 0.0;
        for (index, (logprob, advantage)) in logprobs.iter().zip(&advantages).enumerate() {
            let (loss, slope) = reference(*logprob, behavior, *advantage);
            total += loss;
            // At the kink both one-sided slopes are right; none of the cases is on it but ratio 1.
            assert!((gradient[index] - slope).abs() < 1e-6, "case {index}");
        }
        assert!((output.loss.double_value(&[]) - total).abs() < 1e-5);
        // Below with A < 0 twice (0.5 only) and above with A > 0 (2.0 only) are cut.
        assert_eq!(output.clipped.double_value(&[]), 2.0);
    }

    #[test]
    fn on_policy_tokens_have_no_kl_and_unit_ratio() {
        let logprobs = Tensor::from_slice(&[-1.0f32, -0.1, -3.0]);
        let advantages = Tensor::from_slice(&[1.0f32, -1.0, 0.5]);
        let output =
            policy_gradient(&logprobs, &logprobs, &advantages, Clip { low: 0.2, high: 0.2 });
        assert_eq!(output.behavior_kl.double_value(&[]), 0.0);
        assert_eq!(output.ratio.double_value(&[]), 3.0);
        assert!((output.loss.double_value(&[]) + 0.5).abs() < 1e-6);
    }
}
