//! Rotary position embedding (Su et al. 2021), in the half-rotation layout of Hugging Face models.

use tch::{Device, Kind, Tensor};

use crate::ModelConfig;

/// The rotation of every position. Angles are computed as they are needed: a table would take more
/// memory than the weights of a small network with a long context.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[D / 2]` radians per position.
    half: Vec<f32>,
    /// `[D]` radians per position, fp32; the second half repeats the first.
    frequencies: Tensor,
    /// `[D]` factor of the sines: negative in the first half.
    signs: Tensor,
    /// Factor of the cosines.
    scale: f64,
    /// Kind of the heads that are rotated.
    kind: Kind,
}

/// Cosines and signed sines of some positions, each [N, 1, D]: one row per token, for every head.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let dim = config.head_dim;
        let options = (Kind::Float, Device::Cpu);
        // The power is libtorch's, as in transformers: an error of one part in a million here would
        // be a hundredth of a radian at position 10,000.
        let exponent = Tensor::arange_start_step(0, dim, 2, options) / dim as f64;
        let wavelengths = Tensor::pow_scalar(config.rope_theta, &exponent);
        let wavelengths: Vec<f32> =
            Vec::try_from(wavelengths).expect("a vector of floats on the CPU is one of f32");
        let half = config.rope_scaling.frequencies(&wavelengths, config.rope_theta);
        let scale = config.rope_scaling.attention_factor();
        let mut signs = vec![-scale as f32; half.len()];
        signs.resize(2 * half.len(), scale as f32);
        Self {
            frequencies: Tensor::from_slice(&half).repeat([2]).to(device),
            half,
            signs: Tensor::from_slice(&signs).to(device),
            scale,
            kind,
        }
    }

    /// `[D / 2]` radians per position, and the factor of all sines and cosines.
    pub(crate) fn frequencies(&self) -> (&[f32], f32) {
        (&self.half, self.scale as f32)
    }

    /// The rotation of the positions `[N]`.
    pub(crate) fn at(&self, positions: &Tensor) -> Rotation {
        let angle = positions.to_kind(Kind::Float).view([-1, 1, 1]) * &self.frequencies;
        let cos = if self.scale == 1.0 { angle.cos() } else { angle.cos() * self.scale };
        let sin = angle.sin() * &self.signs;
        Rotation { cos: cos.to_kind(self.kind), sin: sin.to_kind(self.kind) }
    }
}

impl Rotation {
    /// Rotates heads [N, heads, D].
    pub(crate) fn apply(&self, heads: &Tensor) -> Tensor {
        let half = self.cos.size()[2] / 2;
        (heads * &self.cos).addcmul(&heads.roll([half], [2]), &self.sin)
    }
}
