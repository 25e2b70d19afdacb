//! One layer of the network over the tokens of a chunk.

use tch::Tensor;

use super::{
    block_attention::{self, Block},
    decode_attention::{self, Reading, Row},
    element::{Element, elements},
    matrix::{Matrix, Rows},
    rowwise::{Turn, normalise, swiglu},
    team::Team,
};
use crate::{Dtype, ModelConfig, parameters};

/// Sizes of the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) eps: f32,
}

/// Weights of a layer, laid out.
#[derive(Debug)]
pub(super) struct Layer {
    input_norm: Vec<f32>,
    qkv: Matrix,
    qkv_bias: Option<Vec<f32>>,
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    output: Matrix,
    output_bias: Option<Vec<f32>>,
    post_attention_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// Rows of one pass, kept from one to the next; N tokens.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// The residual stream [N, E].
    pub(super) stream: Vec<f32>,
    /// [N, E], normed.
    pub(super) normed: Vec<f32>,
    /// [N, (H + 2 K) * D]
    projected: Vec<f32>,
    /// [N, H * D]
    queries: Vec<f32>,
    /// [N, H * D]
    attended: Vec<f32>,
    /// [N, 2 * I]
    gate_up: Vec<f32>,
    /// [N, I]
    gated: Vec<f32>,
    angles: Angles,
    /// Inputs of a product, rounded.
    pub(super) rows: Rows,
}

/// Cosines and sines of the tokens' positions.
#[derive(Debug, Default)]
struct Angles {
    /// D / 2
    half: usize,
    /// [N, D / 2]
    cos: Vec<f32>,
    /// [N, D / 2]
    sin: Vec<f32>,
}

/// Some of the tokens appended to a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) slot: usize,
    pub(super) position: usize,
    pub(super) tokens: &'a [u32],
    /// The last of them is the last of all.
    pub(super) is_end: bool,
}

/// One layer's keys and values, [slots, K, capacity, D] each.
pub(super) struct Table<'a, E> {
    pub(super) keys: &'a mut [E],
    pub(super) values: &'a mut [E],
    pub(super) capacity: usize,
}

/// A vector as fp32.
pub(super) fn vector(vector: &Tensor) -> Vec<f32> {
    elements::<f32>(&vector.to_kind(f32::KIND)).to_vec()
}

impl Shape {
    pub(super) fn of(config: &ModelConfig) -> Self {
        Self {
            hidden: config.hidden_size as usize,
            intermediate: config.intermediate_size as usize,
            heads: config.heads as usize,
            kv_heads: config.kv_heads as usize,
            dim: config.head_dim as usize,
            eps: config.rms_norm_eps as f32,
        }
    }

    /// Width of a row of queries, keys and values.
    fn projected(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }
}

impl Angles {
    fn of(&self, row: usize) -> (&[f32], &[f32]) {
        let half = self.half;
        (&self.cos[row * half..][..half], &self.sin[row * half..][..half])
    }
}

impl Activations {
    /// Embeds the tokens of a chunk and computes the angles of their positions.
    pub(super) fn start(
        &mut self,
        shape: Shape,
        (frequencies, scale): (&[f32], f32),
        embedding: &Matrix,
        chunk: &[Piece<'_>],
    ) {
        let count: usize = chunk.iter().map(|piece| piece.tokens.len()).sum();
        let Shape { hidden, intermediate, heads, kv_heads, dim, .. } = shape;
        self.stream.resize(count * hidden, 0.0);
        self.normed.resize(count * hidden, 0.0);
        self.projected.resize(count * (heads + 2 * kv_heads) * dim, 0.0);
        self.queries.resize(count * heads * dim, 0.0);
        self.attended.resize(count * heads * dim, 0.0);
        self.gate_up.resize(count * 2 * intermediate, 0.0);
        self.gated.resize(count * intermediate, 0.0);
        let tokens = chunk.iter().flat_map(|piece| piece.tokens);
        for (token, row) in tokens.zip(self.stream.chunks_exact_mut(hidden)) {
            embedding.row(*token as usize, row);
        }
        let Angles { half, cos, sin } = &mut self.angles;
        *half = frequencies.len();
        cos.clear();
        sin.clear();
        for piece in chunk {
            for position in piece.position..piece.position + piece.tokens.len() {
                for frequency in frequencies {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    cos.push(cosine * scale);
                    sin.push(sine * scale);
                }
            }
        }
    }
}

impl Layer {
    pub(super) fn new(layer: &parameters::Layer, dtype: Dtype) -> Self {
        let matrix = |weight: &Tensor| Matrix::new(weight, dtype);
        Self {
            input_norm: vector(&layer.input_norm),
            qkv: matrix(&layer.qkv),
            qkv_bias: layer.qkv_bias.as_ref().map(vector),
            qk_norm: layer.qk_norm.as_ref().map(|(query, key)| (vector(query), vector(key))),
            output: matrix(&layer.output),
            output_bias: layer.output_bias.as_ref().map(vector),
            post_attention_norm: vector(&layer.post_attention_norm),
            gate_up: matrix(&layer.gate_up),
            down: matrix(&layer.down),
        }
    }

    /// One layer over the tokens of a chunk.
    pub(super) fn run<E: Element>(
        &self,
        team: &Team,
        shape: Shape,
        chunk: &[Piece<'_>],
        table: &mut Table<'_, E>,
        activations: &mut Activations,
    ) {
        let Activations {
            stream,
            normed,
            projected,
            queries,
            attended,
            gate_up,
            gated,
            angles,
            ..
        } = activations;
        normalise(team, stream, &self.input_norm, shape.eps, normed);
        start_sums(team, projected, self.qkv_bias.as_deref());
        self.qkv.add_product(team, normed, &mut activations.rows, projected);
        self.turn_queries(team, shape, projected, angles, queries);
        self.store(shape, chunk, projected, angles, table);
        attend(team, shape, chunk, table, queries, attended);
        if let Some(bias) = &self.output_bias {
            stream.chunks_exact_mut(bias.len()).for_each(|row| {
                row.iter_mut().zip(bias).for_each(|(number, bias)| *number += bias);
            });
        }
        self.output.add_product(team, attended, &mut activations.rows, stream);
        normalise(team, stream, &self.post_attention_norm, shape.eps, normed);
        start_sums(team, gate_up, None);
        self.gate_up.add_product(team, normed, &mut activations.rows, gate_up);
        swiglu(team, gate_up, shape.intermediate, gated);
        self.down.add_product(team, gated, &mut activations.rows, stream);
    }

    /// Queries of all tokens, turned, to `queries` [N, H * D].
    fn turn_queries(
        &self,
        team: &Team,
        shape: Shape,
        projected: &[f32],
        angles: &Angles,
        queries: &mut [f32],
    ) {
        let width = shape.heads * shape.dim;
        let norm = self.qk_norm.as_ref().map(|(query, _)| (query.as_slice(), shape.eps));
        team.share_rows(queries, width, &|first, queries| {
            for (row, queries) in (first..).zip(queries.chunks_exact_mut(width)) {
                let query = &projected[row * shape.projected()..][..width];
                Turn { dim: shape.dim, norm, angles: angles.of(row) }.apply(query, queries);
            }
        });
    }

    /// Stores the keys of all tokens, turned, and their values.
    fn store<E: Element>(
        &self,
        shape: Shape,
        chunk: &[Piece<'_>],
        projected: &[f32],
        angles: &Angles,
        table: &mut Table<'_, E>,
    ) {
        let Shape { heads, kv_heads, dim, eps, .. } = shape;
        let norm = self.qk_norm.as_ref().map(|(_, key)| (key.as_slice(), eps));
        let places = chunk.iter().flat_map(|piece| {
            let positions = piece.position..piece.position + piece.tokens.len();
            positions.map(|position| (piece.slot, position))
        });
        let rows = projected.chunks_exact(shape.projected());
        for (row, (projected, (slot, position))) in rows.zip(places).enumerate() {
            let (keys, values) = projected[heads * dim..].split_at(kv_heads * dim);
            let turn = Turn { dim, norm, angles: angles.of(row) };
            let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for (head, (key, value)) in heads.enumerate() {
                let at = ((slot * kv_heads + head) * table.capacity + position) * dim;
                turn.apply(key, &mut table.keys[at..at + dim]);
                let values = table.values[at..at + dim].iter_mut().zip(value);
                values.for_each(|(stored, value)| *stored = E::narrow(*value));
            }
        }
    }
}

/// Every row of sums begins as the bias, or as zeros.
pub(super) fn start_sums(team: &Team, sums: &mut [f32], bias: Option<&[f32]>) {
    team.share_rows(sums, bias.map_or(1, <[f32]>::len), &|_, rows| match bias {
        Some(bias) => rows.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias)),
        None => rows.fill(0.0),
    });
}

/// Attended heads [N, H * D] of the tokens of a chunk, whose keys and values are in the table.
fn attend<E: Element>(
    team: &Team,
    shape: Shape,
    chunk: &[Piece<'_>],
    table: &Table<'_, E>,
    queries: &[f32],
    out: &mut [f32],
) {
    let Shape { heads, kv_heads, dim, .. } = shape;
    let reading = Reading {
        kv_heads,
        group: heads / kv_heads,
        dim,
        capacity: table.capacity,
        keys: table.keys,
        values: table.values,
        queries,
    };
    if chunk.iter().all(|piece| piece.tokens.len() == 1) {
        let row = |piece: &Piece<'_>| Row { slot: piece.slot, keys: piece.position + 1 };
        let rows: Vec<Row> = chunk.iter().map(row).collect();
        return decode_attention::attend(team, reading, &rows, out);
    }
    let mut blocks = Vec::new();
    let mut first = 0;
    for piece in chunk {
        let count = piece.tokens.len();
        for from in (0..count).step_by(block_attention::tokens_max(reading.group)) {
            let to = count.min(from + block_attention::tokens_max(reading.group));
            let (slot, position) = (piece.slot, piece.position + from);
            blocks.push(Block { slot, position, tokens: first + from..first + to });
        }
        first += count;
    }
    block_attention::attend(team, &reading, &blocks, out);
}
