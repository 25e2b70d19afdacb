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
mod matrix;
mod rowwise;
mod team;
mod tile;

use tch::Tensor;

pub(crate) use self::draw::{Choice, draw_plain};
use self::{
    block_attention::Block,
    decode_attention::{Reading, Row},
    element::{Bf16, Element, elements, elements_mut},
    isa::Isa,
    matrix::Matrix,
    rowwise::{Turn, normalise, swiglu},
    team::Team,
};
use crate::{
    Dtype, KvCache, ModelConfig,
    parameters::{self, Parameters},
    rope::Rope,
};

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

#[derive(Clone, Copy, Debug)]
struct Shape {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    eps: f32,
}

#[derive(Debug)]
struct Layer {
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
struct Activations {
    /// The residual stream [N, E].
    stream: Vec<f32>,
    /// [N, E], normed.
    normed: Vec<f32>,
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
    rows: matrix::Rows,
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

/// Tokens appended to one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended<'a> {
    pub(crate) slot: usize,
    /// Position of the first one.
    pub(crate) position: usize,
    pub(crate) tokens: &'a [u32],
}

/// One layer's keys and values, [slots, K, capacity, D] each.
struct Table<'a, E> {
    keys: &'a mut [E],
    values: &'a mut [E],
    capacity: usize,
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
        let vector = |vector: &Tensor| elements::<f32>(&vector.to_kind(f32::KIND)).to_vec();
        let layer = |layer: &parameters::Layer| Layer {
            input_norm: vector(&layer.input_norm),
            qkv: matrix(&layer.qkv),
            qkv_bias: layer.qkv_bias.as_ref().map(vector),
            qk_norm: layer.qk_norm.as_ref().map(|(query, key)| (vector(query), vector(key))),
            output: matrix(&layer.output),
            output_bias: layer.output_bias.as_ref().map(vector),
            post_attention_norm: vector(&layer.post_attention_norm),
            gate_up: matrix(&layer.gate_up),
            down: matrix(&layer.down),
        };
        let shape = Shape {
            hidden: config.hidden_size as usize,
            intermediate: config.intermediate_size as usize,
            heads: config.heads as usize,
            kv_heads: config.kv_heads as usize,
            dim: config.head_dim as usize,
            eps: config.rms_norm_eps as f32,
        };
        Self {
            shape,
            dtype,
            team: Team::new(threads),
            embedding: matrix(&parameters.embedding),
            layers: parameters.layers.iter().map(layer).collect(),
            norm: vector(&parameters.norm),
            head: parameters.head.as_ref().map(matrix),
            activations: Activations::default(),
        }
    }

    /// Logits [B, V] in fp32 after the last token of each of `appended`, whose slots are distinct and
    /// have room. The cache's lengths stay as they are.
    pub(crate) fn extend(
        &mut self,
        rope: &Rope,
        cache: &mut KvCache,
        appended: &[Appended<'_>],
    ) -> Tensor {
        let vocabulary = self.head.as_ref().unwrap_or(&self.embedding).outputs() as i64;
        let mut logits =
            Tensor::zeros([appended.len() as i64, vocabulary], (f32::KIND, tch::Device::Cpu));
        let out = elements_mut::<f32>(&mut logits);
        match self.dtype {
            Dtype::F32 => self.extend_tables::<f32>(rope, cache, appended, out),
            Dtype::Bf16 => self.extend_tables::<Bf16>(rope, cache, appended, out),
        }
        logits
    }

    fn extend_tables<E: Element>(
        &mut self,
        rope: &Rope,
        cache: &mut KvCache,
        appended: &[Appended<'_>],
        logits: &mut [f32],
    ) {
        let capacity = cache.capacity();
        let tables = cache.keys.iter_mut().zip(&mut cache.values);
        let mut tables: Vec<Table<'_, E>> = tables
            .map(|(keys, values)| Table {
                keys: elements_mut(keys),
                values: elements_mut(values),
                capacity,
            })
            .collect();
        let Self { shape, team, embedding, layers, norm, head, activations, .. } = self;
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
        let normed = &mut activations.normed;
        normed.resize(last.len(), 0.0);
        normalise(team, &last, norm, shape.eps, normed);
        let head = head.as_ref().unwrap_or(embedding);
        head.add_product(team, normed, &mut activations.rows, logits);
    }
}

/// Some of the tokens appended to a slot.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    slot: usize,
    position: usize,
    tokens: &'a [u32],
    /// The last of them is the last of all.
    is_end: bool,
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

impl Activations {
    /// Embeds the tokens of a chunk and computes the angles of their positions.
    fn start(
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
    /// One layer over the tokens of a chunk.
    fn run<E: Element>(
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

impl Shape {
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

/// Every row of sums begins as the bias, or as zeros.
fn start_sums(team: &Team, sums: &mut [f32], bias: Option<&[f32]>) {
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

#[cfg(test)]
mod tests;
