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

use std::slice;

use tch::{Device, Kind, Tensor};

/// Keys or values of one tile: 16 KiB of fp32, half of the nearest cache of any processor at hand.
const TILE_NUMBERS: usize = 4096;
/// Partial sums of a dot product; also the unit in which the compiler fills wide registers.
const LANES: usize = 8;
/// Output numbers that are summed at once, in registers.
const WIDTH: usize = 16;

/// One row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its slot in the cache.
    pub(crate) slot: usize,
    /// Tokens it attends to, the new one among them.
    pub(crate) keys: usize,
}

/// A number as the cache holds it.
trait Element: Copy {
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// A bfloat16: the upper half of an fp32.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);

impl Element for Bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// Whether [`attend`] serves this device and kind.
pub(crate) fn serves(device: Device, kind: Kind) -> bool {
    device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
}

/// Attended heads [N, H * D] of queries [N, H, D], in the queries' kind, over one layer's tables
/// [slots, K, capacity, D].
///
/// # Panics
/// A table of another kind than [`serves`] says, or a row that reaches beyond it: a bug.
pub(crate) fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, rows: &[Row]) -> Tensor {
    let [slots, kv_heads, capacity, dim] = sizes(keys);
    let heads = sizes::<3>(query)[1];
    assert_eq!(sizes(values), [slots, kv_heads, capacity, dim], "keys and values differ in shape");
    assert_eq!(sizes(query), [rows.len(), heads, dim], "one query for each row");
    assert!(rows.iter().all(|row| row.slot < slots && row.keys <= capacity), "a row is too long");
    let kind = query.kind();
    let query = query.to_kind(Kind::Float).contiguous();
    let mut out = vec![0.0; rows.len() * heads * dim];
    let mut layer = Layer { kv_heads, capacity, dim, query: elements(&query), out: &mut out };
    match keys.kind() {
        Kind::Float => layer.attend::<f32>(elements(keys), elements(values), rows),
        _ => layer.attend::<Bf16>(elements(keys), elements(values), rows),
    }
    Tensor::from_slice(&out).view([rows.len() as i64, (heads * dim) as i64]).to_kind(kind)
}

fn sizes<const N: usize>(tensor: &Tensor) -> [usize; N] {
    let sizes: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
    sizes.try_into().expect("the caller's tensors have this many dimensions")
}

/// The numbers of a tensor.
fn elements<E: Stored>(tensor: &Tensor) -> &[E] {
    assert!(tensor.device() == Device::Cpu && tensor.kind() == E::KIND && tensor.is_contiguous());
    // SAFETY: the tensor is on the CPU, contiguous and of this kind, all checked above, so its
    // memory holds `numel` numbers of this type. It lives as long as the borrow of the tensor, and
    // nothing writes to it in between: one thread decodes, and this module calls nothing of libtorch
    // while it holds the slice.
    unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<E>(), tensor.numel()) }
}

/// A number type and libtorch's name of it.
trait Stored: Element {
    const KIND: Kind;
}

impl Stored for f32 {
    const KIND: Kind = Kind::Float;
}

impl Stored for Bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// Attention of one layer.
struct Layer<'a> {
    kv_heads: usize,
    capacity: usize,
    dim: usize,
    /// [N, H, D]
    query: &'a [f32],
    /// [N, H, D]
    out: &'a mut [f32],
}

impl Layer<'_> {
    fn attend<E: Element>(&mut self, keys: &[E], values: &[E], rows: &[Row]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.attend_avx2(keys, values, rows) };
        }
        self.attend_rows(keys, values, rows, tile_of_dots, |sum, one, other| sum + one * other);
    }

    /// [`Self::attend_rows`] compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn attend_avx2<E: Element>(&mut self, keys: &[E], values: &[E], rows: &[Row]) {
        let dots = |query: &[f32], keys: &[E]| avx2::tile_of_dots(query, keys);
        self.attend_rows(keys, values, rows, dots, |sum, one, other| one.mul_add(other, sum));
    }

    /// `dots` is [`tile_of_dots`], and `add` adds a product to a sum, in the way that suits the
    /// processor.
    #[inline(always)]
    fn attend_rows<E: Element>(
        &mut self,
        keys: &[E],
        values: &[E],
        rows: &[Row],
        dots: impl Fn(&[f32], &[E]) -> [f32; LANES],
        add: impl Fn(f32, f32, f32) -> f32,
    ) {
        let dim = self.dim;
        let group = self.query.len() / (rows.len() * self.kv_heads * dim).max(1);
        let mut scores = Vec::new();
        let heads =
            self.query.chunks_exact(group * dim).zip(self.out.chunks_exact_mut(group * dim));
        for (index, (query, out)) in heads.enumerate() {
            let (row, kv_head) = (rows[index / self.kv_heads], index % self.kv_heads);
            let start = (row.slot * self.kv_heads + kv_head) * self.capacity * dim;
            let held = start..start + row.keys * dim;
            scores.resize(group * row.keys, 0.0);
            let mut heads = Heads { dim, keys: row.keys, query, scores: &mut scores, out };
            heads.score(&keys[held.clone()], &dots);
            heads.softmax();
            heads.sum(&values[held], &add);
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
    fn score<E: Element>(&mut self, keys: &[E], dots: impl Fn(&[f32], &[E]) -> [f32; LANES]) {
        let (dim, tile) = (self.dim, self.tile());
        for (index, keys) in keys.chunks(tile * dim).enumerate() {
            let (from, to) = (index * tile, index * tile + keys.len() / dim);
            let rows = self.query.chunks_exact(dim).zip(self.scores.chunks_exact_mut(self.keys));
            for (query, scores) in rows {
                score(query, keys, &mut scores[from..to], &dots);
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
    fn sum<E: Element>(&mut self, values: &[E], add: impl Fn(f32, f32, f32) -> f32) {
        let (dim, tile) = (self.dim, self.tile());
        self.out.fill(0.0);
        for (index, values) in values.chunks(tile * dim).enumerate() {
            let (from, to) = (index * tile, index * tile + values.len() / dim);
            let rows = self.out.chunks_exact_mut(dim).zip(self.scores.chunks_exact(self.keys));
            for (out, weights) in rows {
                add_weighted(&weights[from..to], values, out, &add);
            }
        }
    }
}

/// `scores` `[S]` = `keys` [S, D] times `query` `[D]`, scaled.
#[inline(always)]
fn score<E: Element>(
    query: &[f32],
    keys: &[E],
    scores: &mut [f32],
    dots: impl Fn(&[f32], &[E]) -> [f32; LANES],
) {
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let mut tiles = keys.chunks_exact(LANES * dim);
    let mut chunks = scores.chunks_exact_mut(LANES);
    for (keys, scores) in (&mut tiles).zip(&mut chunks) {
        scores.copy_from_slice(&dots(query, keys).map(|dot| dot * scale));
    }
    for (key, score) in tiles.remainder().chunks_exact(dim).zip(chunks.into_remainder()) {
        *score = dot(query, key) * scale;
    }
}

/// The dot products of a query `[D]` with eight keys [8, D].
#[inline(always)]
fn tile_of_dots<E: Element>(query: &[f32], keys: &[E]) -> [f32; LANES] {
    let mut keys = keys.chunks_exact(query.len());
    std::array::from_fn(|_| keys.next().map_or(0.0, |key| dot(query, key)))
}

#[inline(always)]
fn dot<E: Element>(one: &[f32], other: &[E]) -> f32 {
    let mut sums = [0.0; LANES];
    let (ones, others) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest = rest_of_dot(ones.remainder(), others.remainder());
    for (one, other) in ones.zip(others) {
        for lane in 0..LANES {
            sums[lane] += one[lane] * other[lane].widen();
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    (((a + b) + (c + d)) + ((e + f) + (g + h))) + rest
}

/// What is left of a head whose width is no multiple of the lanes.
#[inline(always)]
fn rest_of_dot<E: Element>(one: &[f32], other: &[E]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other.widen()).sum()
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

/// e^x for x <= 0, to 3e-7 of its value; without a branch or a call, so that it fills lanes. A NaN
/// stays one.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// Below, the result is no normal number; softmax does not miss it.
    const LEAST: f32 = -87.0;
    /// ln 2 in two parts: a small integer times the first is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < LEAST { LEAST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let exponent = rounded - ROUND;
    // In [-0.35, 0.35]: e^x = 2^exponent * e^f.
    let f = x - exponent * LN_2_HIGH - exponent * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = series * f + 1.0 / 120.0;
    let series = series * f + 1.0 / 24.0;
    let series = series * f + 1.0 / 6.0;
    let series = series * f + 0.5;
    let series = series * f + 1.0;
    let series = series * f + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    series * power
}

/// `out` `[D]` += `weights` `[S]` times `values` [S, D].
#[inline(always)]
fn add_weighted<E: Element>(
    weights: &[f32],
    values: &[E],
    out: &mut [f32],
    add: impl Fn(f32, f32, f32) -> f32,
) {
    let dim = out.len();
    let mut blocks = out.chunks_exact_mut(WIDTH);
    let mut at = 0;
    for block in &mut blocks {
        let columns = at..at + WIDTH;
        // Two sums, so that an addition need not wait for the one before it.
        let (mut even, mut odd) = ([0.0; WIDTH], [0.0; WIDTH]);
        let mut weight_pairs = weights.chunks_exact(2);
        let mut value_pairs = values.chunks_exact(2 * dim);
        for (weights, pair) in (&mut weight_pairs).zip(&mut value_pairs) {
            let (one, other) = pair.split_at(dim);
            add_scaled(&mut even, weights[0], &one[columns.clone()], &add);
            add_scaled(&mut odd, weights[1], &other[columns.clone()], &add);
        }
        if let [weight] = weight_pairs.remainder() {
            add_scaled(&mut even, *weight, &value_pairs.remainder()[columns], &add);
        }
        for ((number, even), odd) in block.iter_mut().zip(even).zip(odd) {
            *number += even + odd;
        }
        at += WIDTH;
    }
    for (offset, number) in blocks.into_remainder().iter_mut().enumerate() {
        let column = values.iter().skip(at + offset).step_by(dim);
        *number +=
            weights.iter().zip(column).map(|(weight, value)| weight * value.widen()).sum::<f32>();
    }
}

#[inline(always)]
fn add_scaled<E: Element>(
    sums: &mut [f32; WIDTH],
    weight: f32,
    values: &[E],
    add: impl Fn(f32, f32, f32) -> f32,
) {
    let values: [f32; WIDTH] = std::array::from_fn(|lane| values[lane].widen());
    for lane in 0..WIDTH {
        sums[lane] = add(sums[lane], weight, values[lane]);
    }
}

#[cfg(test)]
mod tests;
