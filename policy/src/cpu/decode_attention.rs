//! Attention of one new token for each sequence over the KV cache, on a CPU.
//!
//! A decode step reads every key and value once and does little with it: memory decides how long it
//! takes. libtorch's attention reads all rows as far as the longest one, rows that are idle among
//! them, and sets up a matrix product for every head of every row. Here each row reads what it holds,
//! once for all query heads that share it.
//!
//! Sums are fp32 whatever the cache holds.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::ops::Range;

use super::{
    element::Element,
    exp::exp,
    isa::{Isa, Kernel, vectorised},
    team::Team,
    tile::{HALF_PANEL, PANEL, Size, Strided, Sums, TILE_ROWS, add_tile},
};

/// Keys or values of one tile: 16 KiB of fp32, half of the nearest cache of any processor at hand.
const TILE_NUMBERS: usize = 4096;
/// Partial sums of a dot product; also the unit in which the compiler fills wide registers.
const LANES: usize = 8;

/// One row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its slot in the cache.
    pub(crate) slot: usize,
    /// Tokens it attends to, the new one among them.
    pub(crate) keys: usize,
}

/// One layer of the KV cache and the queries that read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a, E> {
    /// Key/value heads (K).
    pub(crate) kv_heads: usize,
    /// Query heads that share one of them (G).
    pub(crate) group: usize,
    /// Width of a head (D).
    pub(crate) dim: usize,
    /// Tokens that a slot has room for.
    pub(crate) capacity: usize,
    /// [slots, K, capacity, D]
    pub(crate) keys: &'a [E],
    /// [slots, K, capacity, D]
    pub(crate) values: &'a [E],
    /// [N, K * G, D]
    pub(crate) queries: &'a [f32],
}

impl<'a, E> Reading<'a, E> {
    /// Where the first `tokens` tokens of a slot lie in a table, for one head.
    pub(crate) fn held(&self, slot: usize, kv_head: usize, tokens: usize) -> Range<usize> {
        let start = (slot * self.kv_heads + kv_head) * self.capacity * self.dim;
        start..start + tokens * self.dim
    }
}

/// Attended heads `out` [N, K * G, D], one token for each row.
pub(crate) fn attend<E: Element>(
    team: &Team,
    reading: Reading<'_, E>,
    rows: &[Row],
    out: &mut [f32],
) {
    let width = reading.group * reading.dim;
    team.share_rows(out, width, &|first, out| {
        vectorised(HeadsOfRows { reading, rows, first, out });
    });
}

/// Some of the N * K heads of all rows, from `first` on.
struct HeadsOfRows<'a, E> {
    reading: Reading<'a, E>,
    rows: &'a [Row],
    first: usize,
    /// [heads, G, D]
    out: &'a mut [f32],
}

impl<E: Element> Kernel for HeadsOfRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Reading { kv_heads, group, dim, keys, values, queries, .. } = self.reading;
        let width = group * dim;
        let (mut scores, mut tile) = (Vec::new(), Vec::new());
        for (index, out) in (self.first..).zip(self.out.chunks_exact_mut(width)) {
            let row = self.rows[index / kv_heads];
            let held = self.reading.held(row.slot, index % kv_heads, row.keys);
            scores.resize(group * row.keys, 0.0);
            let query = &queries[index * width..][..width];
            let mut heads = Heads { dim, keys: row.keys, query, scores: &mut scores, out };
            heads.score::<E, FUSED>(&keys[held.clone()], &mut tile);
            heads.softmax();
            heads.sum(&values[held], &mut tile);
        }
    }
}

/// The query heads that share a key/value head, G of them. What they read is cut into tiles that stay
/// in the nearest cache until each of them has had its turn.
struct Heads<'a> {
    dim: usize,
    /// Tokens attended to (S).
    keys: usize,
    /// [G, D]
    query: &'a [f32],
    /// [G, S]: scores, then weights.
    scores: &'a mut [f32],
    /// [G, D]
    out: &'a mut [f32],
}

impl Heads<'_> {
    /// Tokens of one tile, a multiple of the lanes.
    #[inline(always)]
    fn tile(&self) -> usize {
        (TILE_NUMBERS / self.dim / LANES).max(1) * LANES
    }

    /// Scores of `keys` [S, D], scaled.
    #[inline(always)]
    fn score<E: Element, const FUSED: bool>(&mut self, keys: &[E], wide: &mut Vec<f32>) {
        let (dim, tile) = (self.dim, self.tile());
        for (index, keys) in keys.chunks(tile * dim).enumerate() {
            let (from, to) = (index * tile, index * tile + keys.len() / dim);
            let keys = E::widened(keys, wide);
            let rows = self.query.chunks_exact(dim).zip(self.scores.chunks_exact_mut(self.keys));
            for (query, scores) in rows {
                score::<FUSED>(query, keys, &mut scores[from..to]);
            }
        }
    }

    /// Scores to weights.
    #[inline(always)]
    fn softmax(&mut self) {
        for scores in self.scores.chunks_exact_mut(self.keys) {
            let total = softmax_numerators(scores);
            scores.iter_mut().for_each(|score| *score /= total);
        }
    }

    /// The weighted sums of `values` [S, D].
    #[inline(always)]
    fn sum<E: Element>(&mut self, values: &[E], wide: &mut Vec<f32>) {
        let (dim, tile, isa) = (self.dim, self.tile(), Isa::detect());
        let whole = dim - dim % HALF_PANEL;
        self.out.fill(0.0);
        for (index, values) in values.chunks(tile * dim).enumerate() {
            let (from, to) = (index * tile, index * tile + values.len() / dim);
            let values = E::widened(values, wide);
            let heads = self.out.chunks_mut(TILE_ROWS * dim);
            for (out, weights) in heads.zip(self.scores.chunks(TILE_ROWS * self.keys)) {
                let rows = out.len() / dim;
                let x = Strided { numbers: &weights[from..], row: self.keys, step: 1 };
                let mut column = 0;
                while column < whole {
                    let columns = if whole - column >= PANEL { PANEL } else { HALF_PANEL };
                    let panel = Strided { numbers: &values[column..], row: 0, step: dim };
                    let sums = Sums::of(&mut out[column..], dim, rows, columns);
                    // SAFETY: the table was checked and is borrowed here alone.
                    unsafe {
                        add_tile(isa, Size { rows, depth: to - from, columns }, x, panel, sums)
                    };
                    column += columns;
                }
                for (out, weights) in out.chunks_exact_mut(dim).zip(weights.chunks_exact(self.keys))
                {
                    for (weight, value) in weights[from..to].iter().zip(values.chunks_exact(dim)) {
                        let rest = out[whole..].iter_mut().zip(&value[whole..]);
                        rest.for_each(|(out, value)| *out += weight * value);
                    }
                }
            }
        }
    }
}

/// `scores` `[S]` = `keys` [S, D] times `query` `[D]`, scaled.
#[inline(always)]
fn score<const FUSED: bool>(query: &[f32], keys: &[f32], scores: &mut [f32]) {
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let mut tiles = keys.chunks_exact(LANES * dim);
    let mut chunks = scores.chunks_exact_mut(LANES);
    for (keys, scores) in (&mut tiles).zip(&mut chunks) {
        scores.copy_from_slice(&tile_of_dots::<FUSED>(query, keys).map(|dot| dot * scale));
    }
    for (key, score) in tiles.remainder().chunks_exact(dim).zip(chunks.into_remainder()) {
        *score = dot(query, key) * scale;
    }
}

/// The dot products of a query `[D]` with eight keys [8, D].
#[inline(always)]
fn tile_of_dots<const FUSED: bool>(query: &[f32], keys: &[f32]) -> [f32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if FUSED {
        // SAFETY: on x86-64, fused kernels run on processors with AVX2 and FMA alone.
        return unsafe { avx2::tile_of_dots(query, keys) };
    }
    let mut keys = keys.chunks_exact(query.len());
    std::array::from_fn(|_| keys.next().map_or(0.0, |key| dot(query, key)))
}

#[inline(always)]
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (ones, others) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest = rest_of_dot(ones.remainder(), others.remainder());
    for (one, other) in ones.zip(others) {
        for lane in 0..LANES {
            sums[lane] += one[lane] * other[lane];
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    (((a + b) + (c + d)) + ((e + f) + (g + h))) + rest
}

/// What is left of a head whose width is no multiple of the lanes.
#[inline(always)]
fn rest_of_dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// Replaces scores by exp(score - largest) and returns their sum.
#[inline(always)]
fn softmax_numerators(scores: &mut [f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let mut chunks = scores.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            tops[lane] = if chunk[lane] > tops[lane] { chunk[lane] } else { tops[lane] };
        }
    }
    let top = tops.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    let mut chunks = scores.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - top);
            sums[lane] += chunk[lane];
        }
    }
    let mut total: f32 = sums.iter().sum();
    for score in chunks.into_remainder() {
        *score = exp(*score - top);
        total += *score;
    }
    total
}

#[cfg(test)]
mod tests;
