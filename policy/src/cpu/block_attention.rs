//! Attention of several new tokens of one sequence over the KV cache: prompts and tool results.
//!
//! 32 queries at once, each in a lane of its own: scores are a product of keys with a panel of
//! queries, and what is attended to is a product of their weights with panels of values. Keys come in
//! tiles that stay in the nearest cache, and sums are rescaled when a tile has a larger score than
//! those before it (Milakov and Gimelshein 2018).

use std::ops::Range;

use super::{
    decode_attention::Reading,
    element::Element,
    exp::exp,
    isa::{Isa, Kernel, vectorised},
    team::Team,
    tile::{PANEL, Size, Strided, Sums, TILE_ROWS, add_tile},
};

/// Keys of a tile: with D = 64, 24 KiB of keys and as much of values.
const TILE_KEYS: usize = 8 * TILE_ROWS;

/// Consecutive new tokens of one slot, not more than [`tokens_max`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) slot: usize,
    /// Position of the first one in its sequence.
    pub(crate) position: usize,
    /// Their places among the tokens of the pass.
    pub(crate) tokens: Range<usize>,
}

/// Most tokens of a block, where `group` query heads share a key/value head.
pub(crate) fn tokens_max(group: usize) -> usize {
    (PANEL / group).max(1)
}

/// Memory to work in.
#[derive(Debug, Default)]
struct Scratch {
    /// [D, 32]: queries, scaled.
    queries: Vec<f32>,
    /// [keys, 32]: scores, then weights.
    scores: Vec<f32>,
    /// [keys, D]
    keys: Vec<f32>,
    /// [keys, D], D filled up to whole panels.
    values: Vec<f32>,
    /// [32, D], D filled up to whole panels.
    attended: Vec<f32>,
}

/// The softmax over the keys so far, lane by lane.
struct Softmax {
    largest: [f32; PANEL],
    /// Sum of e^(score - largest).
    total: [f32; PANEL],
}

/// Attended heads `out` [N, K * G, D] of all tokens, which the blocks cover in order.
pub(crate) fn attend<E: Element>(
    team: &Team,
    reading: &Reading<'_, E>,
    blocks: &[Block],
    out: &mut [f32],
) {
    let width = reading.kv_heads * reading.group * reading.dim;
    let length = |block: &Block| block.tokens.len() * width;
    team.share_parts(blocks, length, out, &|blocks, mut out| {
        let mut scratch = Scratch::default();
        for block in blocks {
            let (now, later) = out.split_at_mut(length(block));
            attend_block(reading, block, &mut scratch, now);
            out = later;
        }
    });
}

/// One block: `out` [tokens, K * G, D].
fn attend_block<E: Element>(
    reading: &Reading<'_, E>,
    block: &Block,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    // More query heads than lanes come in parts.
    for kv_head in 0..reading.kv_heads {
        for heads in (0..reading.group).step_by(PANEL) {
            let heads = heads..reading.group.min(heads + PANEL);
            Lanes { reading, block, kv_head, heads }.attend(scratch, out);
        }
    }
}

/// The queries of one product: all tokens of the block, some heads of one group.
struct Lanes<'a, E> {
    reading: &'a Reading<'a, E>,
    block: &'a Block,
    kv_head: usize,
    heads: Range<usize>,
}

impl<E: Element> Lanes<'_, E> {
    fn attend(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let isa = Isa::detect();
        let dim = self.reading.dim;
        let padded = dim.next_multiple_of(PANEL);
        self.load_queries(&mut scratch.queries);
        scratch.attended.clear();
        scratch.attended.resize(PANEL * padded, 0.0);
        let mut softmax = Softmax { largest: [f32::NEG_INFINITY; PANEL], total: [0.0; PANEL] };
        let keys = self.block.position + self.block.tokens.len();
        for tile in (0..keys).step_by(TILE_KEYS) {
            let tile = tile..keys.min(tile + TILE_KEYS);
            let held = self.reading.held(self.block.slot, self.kv_head, keys);
            let part = held.start + tile.start * dim..held.start + tile.end * dim;
            widen(&self.reading.keys[part.clone()], dim, dim, &mut scratch.keys);
            widen(&self.reading.values[part], dim, padded, &mut scratch.values);
            self.score(isa, &tile, scratch);
            self.forbid(&tile, &mut scratch.scores);
            let scores = &mut scratch.scores;
            let attended = &mut scratch.attended;
            vectorised(Reweigh { softmax: &mut softmax, scores, attended, width: padded });
            self.sum(isa, tile.len(), padded, scratch);
        }
        for (lane, attended) in scratch.attended.chunks_exact(padded).take(self.count()).enumerate()
        {
            let out = &mut out[self.place(lane)..][..dim];
            out.iter_mut().zip(attended).for_each(|(out, sum)| *out = sum / softmax.total[lane]);
        }
    }

    /// Lanes in use.
    fn count(&self) -> usize {
        self.block.tokens.len() * self.heads.len()
    }

    /// Token of a lane, within the block.
    fn token(&self, lane: usize) -> usize {
        lane / self.heads.len()
    }

    /// Where the head of a lane begins among the heads of the block's tokens.
    fn place(&self, lane: usize) -> usize {
        let Reading { kv_heads, group, dim, .. } = *self.reading;
        let head = self.kv_head * group + self.heads.start + lane % self.heads.len();
        (self.token(lane) * kv_heads * group + head) * dim
    }

    fn load_queries(&self, queries: &mut Vec<f32>) {
        let Reading { kv_heads, group, dim, .. } = *self.reading;
        let scale = 1.0 / (dim as f32).sqrt();
        let of_block = &self.reading.queries[self.block.tokens.start * kv_heads * group * dim..];
        queries.clear();
        queries.resize(dim * PANEL, 0.0);
        for lane in 0..self.count() {
            let query = &of_block[self.place(lane)..][..dim];
            for (at, number) in query.iter().enumerate() {
                queries[at * PANEL + lane] = number * scale;
            }
        }
    }

    fn score(&self, isa: Isa, tile: &Range<usize>, scratch: &mut Scratch) {
        let dim = self.reading.dim;
        scratch.scores.clear();
        scratch.scores.resize(tile.len() * PANEL, 0.0);
        let panel = Strided { numbers: &scratch.queries, row: 0, step: PANEL };
        for (index, scores) in scratch.scores.chunks_mut(TILE_ROWS * PANEL).enumerate() {
            let first = index * TILE_ROWS * dim;
            let x = Strided { numbers: &scratch.keys[first..], row: dim, step: 1 };
            let rows = scores.len() / PANEL;
            let sums = Sums::of(scores, PANEL, rows, PANEL);
            // SAFETY: the table was checked and is borrowed here alone.
            unsafe { add_tile(isa, Size { rows, depth: dim, columns: PANEL }, x, panel, sums) };
        }
    }

    /// No token sees those after it.
    fn forbid(&self, tile: &Range<usize>, scores: &mut [f32]) {
        for (key, scores) in tile.clone().zip(scores.chunks_exact_mut(PANEL)) {
            if key > self.block.position {
                let hidden = (key - self.block.position) * self.heads.len();
                scores[..hidden.min(PANEL)].fill(f32::NEG_INFINITY);
            }
        }
    }

    fn sum(&self, isa: Isa, keys: usize, padded: usize, scratch: &mut Scratch) {
        let lanes = self.count();
        for first in (0..lanes).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(lanes - first);
            let x = Strided { numbers: &scratch.scores[first..], row: 1, step: PANEL };
            for column in (0..padded).step_by(PANEL) {
                let panel = Strided { numbers: &scratch.values[column..], row: 0, step: padded };
                let attended = &mut scratch.attended[first * padded + column..];
                let sums = Sums::of(attended, padded, rows, PANEL);
                // SAFETY: the table was checked and is borrowed here alone.
                unsafe {
                    add_tile(isa, Size { rows, depth: keys, columns: PANEL }, x, panel, sums)
                };
            }
        }
    }
}

/// Rows of `dim` numbers as fp32, `stride` apart; zeros between them.
fn widen<E: Element>(numbers: &[E], dim: usize, stride: usize, out: &mut Vec<f32>) {
    out.clear();
    out.resize(numbers.len() / dim * stride, 0.0);
    vectorised(Widen { numbers, dim, stride, out });
}

struct Widen<'a, E> {
    numbers: &'a [E],
    dim: usize,
    stride: usize,
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let rows = self.numbers.chunks_exact(self.dim).zip(self.out.chunks_exact_mut(self.stride));
        for (numbers, out) in rows {
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = number.widen());
        }
    }
}

/// Scores of a tile to weights; what was attended to before is rescaled.
struct Reweigh<'a> {
    softmax: &'a mut Softmax,
    /// [keys, 32]
    scores: &'a mut [f32],
    /// [32, width]
    attended: &'a mut [f32],
    width: usize,
}

impl Kernel for Reweigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let before = self.softmax.largest;
        let mut largest = before;
        for scores in self.scores.chunks_exact(PANEL) {
            for lane in 0..PANEL {
                let score = scores[lane];
                largest[lane] = if score > largest[lane] { score } else { largest[lane] };
            }
        }
        let mut total = [0.0; PANEL];
        for scores in self.scores.chunks_exact_mut(PANEL) {
            for lane in 0..PANEL {
                scores[lane] = exp(scores[lane] - largest[lane]);
                total[lane] += scores[lane];
            }
        }
        for lane in 0..PANEL {
            let factor = exp(before[lane] - largest[lane]);
            self.softmax.total[lane] = self.softmax.total[lane] * factor + total[lane];
            if largest[lane] > before[lane] {
                let attended = &mut self.attended[lane * self.width..][..self.width];
                attended.iter_mut().for_each(|number| *number *= factor);
            }
        }
        self.softmax.largest = largest;
    }
}
