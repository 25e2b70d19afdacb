//! The batched draws against a slow reference in plain Rust.

use proptest::prelude::*;

use super::*;

fn rows(count: i64) -> Tensor {
    Tensor::from_slice(&[0.0f32, 1.0, 2.0, f32::NEG_INFINITY]).unsqueeze(0).repeat([count, 1])
}

#[test]
fn frequencies_follow_the_softmax_and_impossible_tokens_never_come() {
    let mut sampler = Sampler::new(7, 1.0);
    let logits = rows(1);
    let mut counts = [0u32; 4];
    for _ in 0..4000 {
        let draws = Sampler::draw(&mut [&mut sampler], &logits, &[2]);
        counts[draws[0].token as usize] += 1;
        assert!((draws[0].watched[0] - 0.665_24).abs() < 1e-4);
        assert!((draws[0].entropy - 0.832_39).abs() < 1e-4, "{}", draws[0].entropy);
    }
    assert_eq!(counts[3], 0);
    // Softmax of (0, 1, 2) is (.0900, .2447, .6652); 4 standard deviations of 4000 draws.
    for (count, expected) in counts.iter().zip([0.0900, 0.2447, 0.6652]) {
        assert!((f64::from(*count) / 4000.0 - expected).abs() < 0.03, "{counts:?}");
    }
}

#[test]
fn temperature_zero_is_greedy() {
    let mut greedy = Sampler::new(0, 0.0);
    let draw = Sampler::draw(&mut [&mut greedy], &rows(1), &[])[0].clone();
    assert_eq!(draw.token, 2);
    assert_eq!(draw.logprob, draw.policy_logprob);
}

#[test]
fn a_bias_moves_the_draw_and_not_the_policy() {
    let biased = Distribution {
        logit_bias: vec![(0, 50.0), (2, -1.0), (99, 7.0)],
        ..Distribution::plain(1.0)
    };
    let draw = Sampler::draw(&mut [&mut Sampler::over(5, biased)], &rows(1), &[0])[0].clone();
    assert_eq!(draw.token, 0);
    assert!(draw.logprob.abs() < 1e-6);
    assert!((f64::from(draw.policy_logprob) - 0.0900f64.ln()).abs() < 1e-3);
    assert!((draw.watched[0] - 0.0900).abs() < 1e-3);
}

#[test]
fn only_the_top_token_is_left_to_draw() {
    let one = [
        Distribution { top_k: 1, ..Distribution::plain(5.0) },
        Distribution { top_p: 0.01, ..Distribution::plain(5.0) },
        Distribution { min_p: 0.999, ..Distribution::plain(5.0) },
    ];
    for distribution in one {
        let mut sampler = Sampler::over(1, distribution.clone());
        for _ in 0..20 {
            let draw = Sampler::draw(&mut [&mut sampler], &rows(1), &[])[0].clone();
            assert_eq!((draw.token, draw.logprob), (2, 0.0), "{distribution:?}");
        }
    }
}

/// What one row draws from, in f64 and with loops: the probability of each token, and how close the
/// nearest decision to drop or keep was.
fn reference(distribution: &Distribution, logits: &[f32]) -> (Vec<f64>, f64) {
    let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    for (token, bias) in &distribution.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += f64::from(*bias);
        }
    }
    logits.iter_mut().for_each(|logit| *logit /= f64::from(distribution.divisor()));
    let mut margin = f64::INFINITY;
    if distribution.filtered() {
        let probs = softmax(&logits);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| probs[*b].total_cmp(&probs[*a]));
        if distribution.top_k > 0 {
            order.truncate(distribution.top_k as usize);
        }
        if distribution.top_p < 1.0 {
            let share =
                f64::from(distribution.top_p) * order.iter().map(|at| probs[*at]).sum::<f64>();
            let mut before = 0.0;
            let mut kept = 0;
            for token in &order {
                margin = margin.min((before - share).abs());
                if before >= share {
                    break;
                }
                before += probs[*token];
                kept += 1;
            }
            order.truncate(kept);
        }
        let floor = f64::from(distribution.min_p) * probs[order[0]];
        margin = order.iter().map(|at| (probs[*at] - floor).abs()).fold(margin, f64::min);
        order.retain(|at| probs[*at] >= floor);
        let least = order.iter().map(|at| logits[*at]).fold(f64::INFINITY, f64::min);
        logits.iter_mut().filter(|logit| **logit < least).for_each(|l| *l = f64::NEG_INFINITY);
    }
    (softmax(&logits), margin)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
    logits.iter().map(|logit| (logit - top).exp() / total).collect()
}

const VOCAB: usize = 24;

fn distribution() -> impl Strategy<Value = Distribution> {
    (
        prop::collection::vec((0..VOCAB as u32 + 4, -3.0f32..3.0), 0..4),
        prop::sample::select(vec![0.0f32, 0.5, 1.0, 1.0, 1.7]),
        prop::sample::select(vec![0u32, 0, 1, 3, 10, 100]),
        prop::sample::select(vec![1.0f32, 1.0, 0.3, 0.9]),
        prop::sample::select(vec![0.0f32, 0.0, 0.05, 0.5]),
    )
        .prop_map(|(logit_bias, temperature, top_k, top_p, min_p)| Distribution {
            logit_bias,
            temperature,
            top_k,
            top_p,
            min_p,
        })
}

fn row() -> impl Strategy<Value = (Distribution, u64, Vec<f32>)> {
    (distribution(), any::<u64>(), prop::collection::vec(-4.0f32..4.0, VOCAB))
}

proptest! {
    #[test]
    fn a_batch_of_any_shapes_draws_as_the_reference_does(rows in prop::collection::vec(row(), 1..6)) {
        // A decision that hangs on the last bit may go either way.
        prop_assume!(rows.iter().all(|(distribution, _, logits)| reference(distribution, logits).1 > 1e-5));
        let logits: Vec<f32> = rows.iter().flat_map(|(.., logits)| logits.clone()).collect();
        let logits = Tensor::from_slice(&logits).view([-1, VOCAB as i64]);
        let mut samplers: Vec<Sampler> =
            rows.iter().map(|(distribution, seed, _)| Sampler::over(*seed, distribution.clone())).collect();
        let mut batch: Vec<&mut Sampler> = samplers.iter_mut().collect();
        let draws = Sampler::draw(&mut batch, &logits, &[3]);
        prop_assert_eq!(draws.len(), rows.len());
        for (index, ((distribution, seed, row), draw)) in rows.iter().zip(&draws).enumerate() {
            let (probs, _) = reference(distribution, row);
            let policy = softmax(&row.iter().map(|logit| f64::from(*logit)).collect::<Vec<_>>());
            let token = draw.token as usize;
            if distribution.greedy() {
                let largest = probs.iter().copied().fold(0.0, f64::max);
                prop_assert!((probs[token] - largest).abs() < 1e-6);
            } else {
                // The inverse CDF of the reference at the same uniform number.
                let uniform = f64::from(Sampler::new(*seed, 1.0).uniform());
                let below: f64 = probs[..token].iter().sum();
                prop_assert!(below <= uniform + 1e-5, "{} {}", below, uniform);
                prop_assert!(below + probs[token] >= uniform - 1e-5);
            }
            prop_assert!((f64::from(draw.logprob) - probs[token].ln()).abs() < 1e-4);
            prop_assert!((f64::from(draw.policy_logprob) - policy[token].ln()).abs() < 1e-4);
            prop_assert!((f64::from(draw.watched[0]) - policy[3]).abs() < 1e-5);
            let entropy: f64 = policy.iter().map(|p| -p * p.ln()).sum();
            prop_assert!((f64::from(draw.entropy) - entropy).abs() < 1e-4);
            // Alone, bit for bit the same.
            let mut alone = Sampler::over(*seed, distribution.clone());
            let same = Sampler::draw(&mut [&mut alone], &logits.narrow(0, index as i64, 1), &[3]);
            prop_assert_eq!(&same[0], draw);
        }
    }
}
