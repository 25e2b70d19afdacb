//! What happens to each row of activations between two matrix products.

use super::{
    element::Element,
    exp::exp,
    isa::{Kernel, add_product, vectorised},
    team::Team,
};

/// Partial sums of a row.
const LANES: usize = 16;

/// RMSNorm (Zhang and Sennrich 2019) of rows `x` [N, width] to `out`.
pub(crate) fn normalise(team: &Team, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    team.share_rows(out, width, &|first, out| {
        let x = &x[first * width..][..out.len()];
        vectorised(Normalise { x, weight, eps, out });
    });
}

struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = inverse_rms::<FUSED>(x, self.eps);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * scale * weight;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms<const FUSED: bool>(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] = add_product::<FUSED>(sums[lane], chunk[lane], chunk[lane]);
        }
    }
    let mean = (sums.iter().sum::<f32>() + rest) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// Heads of a row after the projection: normed where the family does, and rotated (RoPE).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    /// Width of a head (D).
    pub(crate) dim: usize,
    /// `[D]`, and the epsilon of the norm.
    pub(crate) norm: Option<(&'a [f32], f32)>,
    /// `[D / 2]` each: cosines and sines of the row's position.
    pub(crate) angles: (&'a [f32], &'a [f32]),
}

impl Turn<'_> {
    /// Heads `x` [heads, D] to `out`, in the numbers that it holds.
    pub(crate) fn apply<E: Element>(self, x: &[f32], out: &mut [E]) {
        vectorised(TurnHeads { turn: self, x, out });
    }
}

struct TurnHeads<'a, E> {
    turn: Turn<'a>,
    x: &'a [f32],
    out: &'a mut [E],
}

impl<E: Element> Kernel for TurnHeads<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Turn { dim, norm, angles: (cos, sin) } = self.turn;
        let half = dim / 2;
        for (x, out) in self.x.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            match norm {
                None => turn(half, |at| x[at], cos, sin, out),
                Some((weight, eps)) => {
                    let scale = inverse_rms::<FUSED>(x, eps);
                    turn(half, |at| x[at] * scale * weight[at], cos, sin, out);
                }
            }
        }
    }
}

/// Rotates one head: number `at` of the first half goes with number `half + at`.
#[inline(always)]
fn turn<E: Element>(
    half: usize,
    number: impl Fn(usize) -> f32,
    cos: &[f32],
    sin: &[f32],
    out: &mut [E],
) {
    let (out_low, out_high) = out.split_at_mut(half);
    let angles = cos.iter().zip(sin);
    for (at, ((low, high), (cos, sin))) in out_low.iter_mut().zip(out_high).zip(angles).enumerate()
    {
        let (x, y) = (number(at), number(half + at));
        *low = E::narrow(x * cos - y * sin);
        *high = E::narrow(y * cos + x * sin);
    }
}

/// SwiGLU (Shazeer 2020): rows `x` [N, 2 * width] of gates and values to `out` [N, width].
pub(crate) fn swiglu(team: &Team, x: &[f32], width: usize, out: &mut [f32]) {
    team.share_rows(out, width, &|first, out| {
        let x = &x[first * 2 * width..][..2 * out.len()];
        vectorised(SwiGlu { x, width, out });
    });
}

struct SwiGlu<'a> {
    x: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let rows = self.x.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width));
        for (x, out) in rows {
            let (gates, values) = x.split_at(self.width);
            for ((out, gate), value) in out.iter_mut().zip(gates).zip(values) {
                *out = gate / (1.0 + exp(-gate)) * value;
            }
        }
    }
}
