//! Rotary position embedding (Su et al. 2021), in the half-rotation layout of Hugging Face models.

use tch::{Device, Kind, Tensor};

use crate::ModelConfig;

/// Tables of cosines and sines, [positions, D].
#[derive(Debug)]
pub(crate) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Self {
        let dim = config.head_dim;
        let options = (Kind::Float, device);
        let exponent = Tensor::arange_start_step(0, dim, 2, options) / dim as f64;
        let frequency = (exponent * -config.rope_theta.ln()).exp();
        let position = Tensor::arange(config.positions_max, options);
        let angle = position.unsqueeze(1) * frequency.unsqueeze(0);
        let angle = Tensor::cat(&[&angle, &angle], -1);
        Self { cos: angle.cos(), sin: angle.sin() }
    }

    /// Cosines and sines of the positions `[N]`, each [N, 1, D]: one row per token, for every head.
    pub(crate) fn at(&self, positions: &Tensor) -> (Tensor, Tensor) {
        let pick = |table: &Tensor| table.index_select(0, positions).unsqueeze(1);
        (pick(&self.cos), pick(&self.sin))
    }

    /// Rotates heads [N, heads, D].
    pub(crate) fn rotate(heads: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
        let halves = heads.chunk(2, -1);
        let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        heads * cos + turned * sin
    }
}
