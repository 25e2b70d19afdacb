//! AdamW (Loshchilov and Hutter 2019, algorithm 2) over one flat fp32 vector.

use tch::{Kind, Tensor};

/// Numerical floor of the denominator.
const EPSILON: f64 = 1e-8;

/// Moments of every parameter and the number of steps taken.
#[derive(Debug)]
pub struct AdamW {
    /// First-moment decay.
    beta1: f64,
    /// Second-moment decay.
    beta2: f64,
    /// Decoupled weight decay, per unit of learning rate.
    weight_decay: f64,
    moments: Moments,
}

/// What a checkpoint keeps of the optimizer.
#[derive(Debug)]
pub struct Moments {
    /// Steps taken.
    pub steps: u64,
    /// First moment, the shape of the parameters.
    pub first: Tensor,
    /// Second moment, the shape of the parameters.
    pub second: Tensor,
}

impl Moments {
    /// No history yet, for parameters like `flat`.
    #[must_use]
    pub fn zero(flat: &Tensor) -> Self {
        Self { steps: 0, first: flat.zeros_like(), second: flat.zeros_like() }
    }
}

impl AdamW {
    /// An optimizer that continues from `moments`.
    #[must_use]
    pub fn new(beta1: f64, beta2: f64, weight_decay: f64, moments: Moments) -> Self {
        Self { beta1, beta2, weight_decay, moments }
    }

    /// One step on `flat` against `gradient`, both `[P]`.
    pub fn step(&mut self, flat: &Tensor, gradient: &Tensor, learning_rate: f64) {
        tch::no_grad(|| {
            let Moments { steps, first, second } = &mut self.moments;
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

    /// State for a checkpoint.
    #[must_use]
    pub fn moments(&self) -> &Moments {
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
        let mut optimizer = AdamW::new(beta1, beta2, decay, Moments::zero(&flat));
        let mut reference = [0.5f64, -1.0, 2.0];
        let (mut first, mut second) = ([0.0f64; 3], [0.0f64; 3]);
        for step in 1..=20 {
            let gradient: Vec<f32> =
                (0..3).map(|i| ((step * 7 + i * 3) % 5) as f32 - 2.0).collect();
            optimizer.step(&flat, &Tensor::from_slice(&gradient), rate);
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
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let gradient = Tensor::from_slice(&[3.0f32, 4.0]);
        let (norm, clipped) = clip(&gradient, 1.0);
        assert!((norm - 5.0).abs() < 1e-6);
        assert!((clipped.norm().double_value(&[]) - 1.0).abs() < 1e-6);
        let (_, untouched) = clip(&gradient, 10.0);
        assert!(untouched.equal(&gradient));
    }
}
