//! AdamW (Loshchilov and Hutter 2019, algorithm 2) over one flat fp32 vector, with moments of its own
//! for every loss.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

/// Numerical floor of the denominator.
const EPSILON: f64 = 1e-8;

/// A loss that keeps moments of its own. Gradients of a policy loss are ten times and more those of
/// imitation: divided by their second moment, an SFT step between RL steps would move next to nothing,
/// and would repeat the direction of the last RL steps instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Clipped policy gradient.
    PolicyGradient,
    /// Cross-entropy on demonstrations.
    CrossEntropy,
    /// Both in one step.
    Joint,
}

/// Settings, and the moments of the losses that have been stepped on so far.
#[derive(Debug)]
pub struct AdamW {
    /// First-moment decay.
    beta1: f64,
    /// Second-moment decay.
    beta2: f64,
    /// Decoupled weight decay, per unit of learning rate.
    weight_decay: f64,
    moments: MomentsByLoss,
}

/// What a checkpoint keeps of the optimizer. A loss that was never stepped on takes no memory.
pub type MomentsByLoss = BTreeMap<Loss, Moments>;

/// History of one loss.
#[derive(Debug)]
pub struct Moments {
    /// Steps taken.
    pub steps: u64,
    /// First moment, the shape of the parameters.
    pub first: Tensor,
    /// Second moment, the shape of the parameters.
    pub second: Tensor,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PolicyGradient, Self::CrossEntropy, Self::Joint];

    /// Name in a checkpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PolicyGradient => "policy_gradient",
            Self::CrossEntropy => "cross_entropy",
            Self::Joint => "joint",
        }
    }
}

impl Moments {
    /// No history yet, for parameters like `flat`.
    fn zero(flat: &Tensor) -> Self {
        Self { steps: 0, first: flat.zeros_like(), second: flat.zeros_like() }
    }
}

impl AdamW {
    /// An optimizer that continues from `moments`; a loss without any starts anew.
    #[must_use]
    pub fn new(beta1: f64, beta2: f64, weight_decay: f64, moments: MomentsByLoss) -> Self {
        Self { beta1, beta2, weight_decay, moments }
    }

    /// One step on `flat` against the `gradient` of a loss, both `[P]`.
    pub fn step(&mut self, loss: Loss, flat: &Tensor, gradient: &Tensor, learning_rate: f64) {
        tch::no_grad(|| {
            let moments = self.moments.entry(loss).or_insert_with(|| Moments::zero(flat));
            let Moments { steps, first, second } = moments;
            *steps += 1;
            let exponent = i32::try_from(*steps).unwrap_or(i32::MAX);
            let correction1 = 1.0 - self.beta1.powi(exponent);
            let correction2 = 1.0 - self.beta2.powi(exponent);
            first.g_mul_scalar_inplace(self.beta1);
            *first += gradient * (1.0 - self.beta1);
            second.g_mul_scalar_inplace(self.beta2);
            *second += gradient * gradient * (1.0 - self.beta2);
            let denominator = (&*second / correction2).sqrt() + EPSILON;
            let update = &*first / correction1 / denominator;
            let mut flat = flat.detach();
            flat.g_mul_scalar_inplace(1.0 - learning_rate * self.weight_decay);
            flat -= update * learning_rate;
        });
    }

    /// Forgets the history of every loss.
    pub fn reset(&mut self) {
        self.moments.clear();
    }

    /// State for a checkpoint.
    #[must_use]
    pub fn moments(&self) -> &MomentsByLoss {
        &self.moments
    }
}

trait ScaleInPlace {
    fn g_mul_scalar_inplace(&mut self, factor: f64);
}

impl ScaleInPlace for Tensor {
    fn g_mul_scalar_inplace(&mut self, factor: f64) {
        *self *= factor;
    }
}

/// Global L2 norm of a gradient, and the gradient scaled down to at most `norm_max`.
pub fn clip(gradient: &Tensor, norm_max: f64) -> (f64, Tensor) {
    let norm = gradient.norm().to_kind(Kind::Double).double_value(&[]);
    let scale = if norm > norm_max { norm_max / norm } else { 1.0 };
    (norm, gradient * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_scalar_reference() {
        let (beta1, beta2, decay, rate) = (0.9, 0.95, 0.1, 1e-2);
        let flat = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let mut optimizer = AdamW::new(beta1, beta2, decay, MomentsByLoss::new());
        let mut reference = [0.5f64, -1.0, 2.0];
        let (mut first, mut second) = ([0.0f64; 3], [0.0f64; 3]);
        for step in 1..=20 {
            let gradient: Vec<f32> =
                (0..3).map(|i| ((step * 7 + i * 3) % 5) as f32 - 2.0).collect();
            optimizer.step(Loss::CrossEntropy, &flat, &Tensor::from_slice(&gradient), rate);
            for i in 0..3 {
                let g = f64::from(gradient[i]);
                first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
                let m = first[i] / (1.0 - beta1.powi(step));
                let v = second[i] / (1.0 - beta2.powi(step));
                reference[i] -= rate * decay * reference[i];
                reference[i] -= rate * m / (v.sqrt() + EPSILON);
            }
        }
        let values = Vec::<f32>::try_from(&flat).unwrap();
        for (value, expected) in values.iter().zip(reference) {
            assert!((f64::from(*value) - expected).abs() < 1e-5, "{values:?} {reference:?}");
        }
    }

    #[test]
    fn a_loss_does_not_feel_the_history_of_another() {
        let step = |optimizer: &mut AdamW, loss, gradient: f32| {
            let flat = Tensor::from_slice(&[0.0f32]);
            optimizer.step(loss, &flat, &Tensor::from_slice(&[gradient]), 0.1);
            flat.double_value(&[0])
        };
        let mut optimizer = AdamW::new(0.9, 0.95, 0.0, MomentsByLoss::new());
        for _ in 0..10 {
            let _moved = step(&mut optimizer, Loss::PolicyGradient, -100.0);
        }
        // The first step of Adam is the learning rate, whatever the size of the gradient.
        let moved = step(&mut optimizer, Loss::CrossEntropy, 0.01);
        assert!((moved + 0.1).abs() < 1e-5, "{moved}");
        let steps =
            [Loss::PolicyGradient, Loss::CrossEntropy].map(|loss| optimizer.moments()[&loss].steps);
        assert_eq!(steps, [10, 1]);
        optimizer.reset();
        assert!(optimizer.moments().is_empty());
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let gradient = Tensor::from_slice(&[3.0f32, 4.0]);
        let (norm, clipped) = clip(&gradient, 1.0);
        assert!((norm - 5.0).abs() < 1e-6);
        assert!((clipped.norm().double_value(&[]) - 1.0).abs() < 1e-6);
        let (_, untouched) = clip(&gradient, 10.0);
        assert!(untouched.equal(&gradient));
    }
}
