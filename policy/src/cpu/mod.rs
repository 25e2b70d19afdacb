//! The network on a CPU, for sampling: tokens appended to sequences in a KV cache, without libtorch.
//!
//! A decode step of a small network is many small products. libtorch spends more time between them
//! than in them, and lays bf16 weights out anew for every one. Here the weights are laid out once, one
//! team of threads goes through a whole step, and activations are fp32 throughout; where the network
//! computes in bf16, the inputs of matrix products are rounded to it, and keys and values are stored
//! in it.
//!
//! Owns: the arithmetic of a forward pass over the cache on a CPU.
//! Does not know: training, other devices (`transformer` has both), sampling.

mod block_attention;
mod decode_attention;
mod draw;
mod element;
mod exp;
mod isa;
mod layer;
mod matrix;
mod pages;
mod rowwise;
mod team;
mod tile;

use tch::{Device, Tensor};

pub(crate) use self::draw::{Choice, draw_plain};
use self::{
    element::{Bf16, Element, elements_mut},
    isa::Isa,
    layer::{Activations, Layer, Piece, Shape, Table, start_sums, vector},
    matrix::Matrix,
    rowwise::normalise,
    team::Team,
};
use crate::{Dtype, KvCache, ModelConfig, parameters::Parameters, rope::Rope};

/// Tokens of one pass through the layers: bounds the memory of activations.
const CHUNK_TOKENS: usize = 512;

/// Whether a CPU computes in these numbers here; otherwise libtorch does.
pub(crate) fn serves(dtype: Dtype) -> bool {
    match dtype {
        Dtype::F32 => true,
        Dtype::Bf16 => Isa::has_bf16(),
    }
}

/// Weights laid out for sampling.
#[derive(Debug)]
pub(crate) struct Network {
    shape: Shape,
    dtype: Dtype,
    team: Team,
    /// The head too, where the two are tied.
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Option<Matrix>,
    activations: Activations,
}

/// Tokens appended to one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended<'a> {
    pub(crate) slot: usize,
    /// Position of the first one.
    pub(crate) position: usize,
    pub(crate) tokens: &'a [u32],
}

impl Network {
    /// Lays out the weights, for a team of `threads`.
    pub(crate) fn new(
        config: &ModelConfig,
        parameters: &Parameters,
        dtype: Dtype,
        threads: usize,
    ) -> Self {
        let matrix = |weight: &Tensor| Matrix::new(weight, dtype);
        let layers = parameters.layers.iter();
        Self {
            shape: Shape::of(config),
            dtype,
            team: Team::new(threads),
            embedding: matrix(&parameters.embedding),
            layers: layers.map(|layer| Layer::new(layer, dtype)).collect(),
            norm: vector(&parameters.norm),
            head: parameters.head.as_ref().map(matrix),
            activations: Activations::default(),
        }
    }

    /// Takes tokens into the cache, whose slots are distinct and have room, and gives back the stream
    /// [B, E] after the last token of each. The cache's lengths stay as they are.
    pub(crate) fn append(
        &mut self,
        rope: &Rope,
        cache: &mut KvCache,
        appended: &[Appended<'_>],
    ) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.append_to::<f32>(rope, cache, appended),
            Dtype::Bf16 => self.append_to::<Bf16>(rope, cache, appended),
        }
    }

    /// Logits [B, V] in fp32 of the stream [B, E] after some tokens.
    pub(crate) fn logits(&mut self, stream: &[f32]) -> Tensor {
        let Self { shape, team, embedding, norm, head, activations, .. } = self;
        let head = head.as_ref().unwrap_or(embedding);
        let sizes = [stream.len() / shape.hidden.max(1), head.outputs()].map(|size| size as i64);
        // Not zeroed by libtorch: its own threads would look for more work for milliseconds after, on
        // the cores of the team.
        let mut logits = Tensor::empty(sizes, (f32::KIND, Device::Cpu));
        let out = elements_mut(&mut logits);
        start_sums(team, out, None);
        let normed = &mut activations.normed;
        normed.resize(stream.len(), 0.0);
        normalise(team, stream, norm, shape.eps, normed);
        head.add_product(team, normed, &mut activations.rows, out);
        logits
    }

    fn append_to<E: Element>(
        &mut self,
        rope: &Rope,
        cache: &mut KvCache,
        appended: &[Appended<'_>],
    ) -> Vec<f32> {
        let capacity = cache.capacity();
        let tables = cache.keys.iter_mut().zip(&mut cache.values);
        let mut tables: Vec<Table<'_, E>> = tables
            .map(|(keys, values)| Table {
                keys: elements_mut(keys),
                values: elements_mut(values),
                capacity,
            })
            .collect();
        let Self { shape, team, embedding, layers, activations, .. } = self;
        let frequencies = rope.frequencies();
        let mut last = Vec::with_capacity(appended.len() * shape.hidden);
        for chunk in chunks(appended) {
            activations.start(*shape, frequencies, embedding, &chunk);
            for (layer, table) in layers.iter().zip(&mut tables) {
                layer.run(team, *shape, &chunk, table, activations);
            }
            let mut end = 0;
            for piece in &chunk {
                end += piece.tokens.len();
                if piece.is_end {
                    let row = &activations.stream[(end - 1) * shape.hidden..];
                    last.extend_from_slice(&row[..shape.hidden]);
                }
            }
        }
        last
    }
}

/// Cuts what is appended into chunks of at most [`CHUNK_TOKENS`], in order.
fn chunks<'a>(appended: &[Appended<'a>]) -> Vec<Vec<Piece<'a>>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut room) = (Vec::new(), CHUNK_TOKENS);
    for Appended { slot, mut position, mut tokens } in appended.iter().copied() {
        while !tokens.is_empty() {
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            chunk.push(Piece { slot, position, tokens: now, is_end: later.is_empty() });
            (position, tokens, room) = (position + now.len(), later, room - now.len());
            if room == 0 {
                chunks.push(std::mem::take(&mut chunk));
                room = CHUNK_TOKENS;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

#[cfg(test)]
mod tests;
