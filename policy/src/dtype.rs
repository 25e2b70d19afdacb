//! The kind of number a network computes in.

use std::{str::FromStr, time::Instant};

use tch::{Device, Kind, Tensor};

use crate::DeviceError;

/// Rows, inputs and outputs of the matrix product that [`Dtype::fastest`] times: a decode step of a
/// small model.
const PROBE_SHAPE: [i64; 3] = [32, 512, 1024];

/// Products timed for each kind, after one that warms up; the fastest of them counts.
const PROBE_ROUNDS: usize = 5;

/// bf16 must be this much faster than fp32 to be worth its rounding.
const PROBE_GAIN_MIN: f64 = 1.3;

/// What weights, activations and the KV cache are held in. Sums within norms, attention and matrix
/// products are fp32 either way, and so are logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Single precision: training, and sampling that must match it to 1e-4.
    #[default]
    F32,
    /// bfloat16: half the memory, 8 bits of mantissa. For sampling only.
    Bf16,
}

impl Dtype {
    /// libtorch's name of it.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// The dtype that matrix products are clearly faster in on this device, from a few products of
    /// each. Takes milliseconds; not all CPUs have bf16 arithmetic.
    #[must_use]
    pub fn fastest(device: Device) -> Self {
        let seconds = |dtype: Self| tch::no_grad(|| dtype.probe(device));
        let worth_it = seconds(Self::Bf16) * PROBE_GAIN_MIN < seconds(Self::F32);
        if worth_it { Self::Bf16 } else { Self::F32 }
    }

    /// Seconds of one product.
    fn probe(self, device: Device) -> f64 {
        let [rows, inputs, outputs] = PROBE_SHAPE;
        let of = |shape: [i64; 2]| Tensor::ones(shape, (self.kind(), device));
        let (input, weight) = (of([rows, inputs]), of([outputs, inputs]));
        let round = || {
            let started = Instant::now();
            // Reading one number back waits for the device.
            let _sum = input.matmul(&weight.tr()).get(0).get(0).double_value(&[]);
            started.elapsed().as_secs_f64()
        };
        round();
        (0..PROBE_ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
    }
}

impl FromStr for Dtype {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "float32" | "fp32" => Ok(Self::F32),
            "bfloat16" | "bf16" => Ok(Self::Bf16),
            other => Err(DeviceError::Dtype(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face_or_short() {
        assert_eq!("bfloat16".parse::<Dtype>().unwrap(), Dtype::Bf16);
        assert_eq!("fp32".parse::<Dtype>().unwrap(), Dtype::F32);
        let error = "float16".parse::<Dtype>().unwrap_err().to_string();
        assert!(error.contains("float16") && error.contains("\"bf16\""), "{error}");
    }
}
