//! The dot products of a query with eight keys, with the sums over lanes folded together: left to
//! itself, the compiler spends more on them than on the products.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_permute2f128_ps,
    _mm256_setzero_ps,
};

use super::{LANES, rest_of_dot};

/// [`super::tile_of_dots`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn tile_of_dots(query: &[f32], keys: &[f32]) -> [f32; LANES] {
    let dim = query.len();
    let whole = dim - dim % LANES;
    let mut sums = [_mm256_setzero_ps(); LANES];
    for at in (0..whole).step_by(LANES) {
        let query = load(&query[at..at + LANES]);
        for (sum, key) in sums.iter_mut().zip(keys.chunks_exact(dim)) {
            *sum = _mm256_fmadd_ps(query, load(&key[at..at + LANES]), *sum);
        }
    }
    let mut dots = fold(sums);
    if whole < dim {
        for (dot, key) in dots.iter_mut().zip(keys.chunks_exact(dim)) {
            *dot += rest_of_dot(&query[whole..], &key[whole..]);
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(numbers: &[f32]) -> __m256 {
    let numbers: [f32; LANES] = std::array::from_fn(|lane| numbers[lane]);
    // SAFETY: both are eight fp32 numbers in order, and any bits are valid ones.
    unsafe { std::mem::transmute(numbers) }
}

/// The sum over the lanes of each of eight registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fold([a, b, c, d, e, f, g, h]: [__m256; LANES]) -> [f32; LANES] {
    // Each half of these holds sums over the same half of the lanes.
    let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
    let low = _mm256_permute2f128_ps::<0x20>(first, second);
    let high = _mm256_permute2f128_ps::<0x31>(first, second);
    // SAFETY: both are eight fp32 numbers in order, and any bits are valid ones.
    unsafe { std::mem::transmute(_mm256_add_ps(low, high)) }
}
