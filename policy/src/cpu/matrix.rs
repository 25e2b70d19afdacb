//! Weight matrices laid out for products with few rows.
//!
//! A matrix [outputs, inputs] is cut into panels of 32 outputs. Within a panel the numbers come in the
//! order in which a product reads them, so a decode step streams every weight once, from front to
//! back, and a thread streams the panels that are its own.

use std::ops::Range;

use tch::Tensor;

#[cfg(target_arch = "x86_64")]
use super::tile::add_tile_bf16;
use super::{
    element::{Bf16, Element, elements},
    isa::{Isa, Kernel, vectorised},
    pages::Pages,
    team::Team,
    tile::{PANEL, Size, Strided, Sums, TILE_ROWS, add_tile},
};
use crate::Dtype;

/// Rows multiplied with one panel before the next one is read: what they hold stays in the second
/// cache.
const BLOCK_ROWS: usize = 16 * TILE_ROWS;

/// A weight matrix.
#[derive(Debug)]
pub(crate) struct Matrix {
    outputs: usize,
    inputs: usize,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    /// Per panel and input: 32 outputs.
    F32(Pages<f32>),
    /// Per panel and pair of inputs: the two numbers of each of 32 outputs.
    Bf16(Pages<Bf16>),
}

/// Rows that are multiplied, in the numbers that the matrix has.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// bf16 matrices only: [N, inputs], an odd width filled up with a zero.
    narrowed: Vec<Bf16>,
}

/// A table that threads write to, each to columns of its own.
struct Shared(*mut f32);

// SAFETY: `Matrix::multiply` says which thread writes where.
unsafe impl Sync for Shared {}

impl Matrix {
    /// Lays out `weight` [outputs, inputs], of the kind that `dtype` computes with.
    pub(crate) fn new(weight: &Tensor, dtype: Dtype) -> Self {
        let sizes = weight.size();
        let (outputs, inputs) = (sizes[0] as usize, sizes[1] as usize);
        let panels = outputs.div_ceil(PANEL);
        let numbers = match dtype {
            Dtype::F32 => {
                let mut numbers = Pages::zeroed(panels * inputs * PANEL);
                let weight = elements::<f32>(weight);
                for (output, weights) in weight.chunks_exact(inputs.max(1)).enumerate() {
                    let (panel, column) = (output / PANEL, output % PANEL);
                    for (input, weight) in weights.iter().enumerate() {
                        numbers[(panel * inputs + input) * PANEL + column] = *weight;
                    }
                }
                Numbers::F32(numbers)
            }
            Dtype::Bf16 => {
                let pairs = inputs.div_ceil(2);
                let mut numbers = Pages::zeroed(panels * pairs * 2 * PANEL);
                let weight = elements::<Bf16>(weight);
                for (output, weights) in weight.chunks_exact(inputs.max(1)).enumerate() {
                    let (panel, column) = (output / PANEL, output % PANEL);
                    for (input, weight) in weights.iter().enumerate() {
                        let pair = (panel * pairs + input / 2) * PANEL + column;
                        numbers[pair * 2 + input % 2] = *weight;
                    }
                }
                Numbers::Bf16(numbers)
            }
        };
        Self { outputs, inputs, numbers }
    }

    /// Columns of a product.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// One row of the matrix: `out` `[inputs]`.
    pub(crate) fn row(&self, output: usize, out: &mut [f32]) {
        let (panel, column) = (output / PANEL, output % PANEL);
        match &self.numbers {
            Numbers::F32(numbers) => {
                let numbers = &numbers[panel * self.inputs * PANEL..];
                for (input, number) in out.iter_mut().enumerate() {
                    *number = numbers[input * PANEL + column];
                }
            }
            Numbers::Bf16(numbers) => {
                let numbers = &numbers[panel * self.inputs.div_ceil(2) * 2 * PANEL..];
                for (input, number) in out.iter_mut().enumerate() {
                    *number = numbers[(input / 2 * PANEL + column) * 2 + input % 2].widen();
                }
            }
        }
    }

    /// `out` [N, outputs] += `x` [N, inputs] times the matrix's transpose. `rows` is memory to work
    /// in, kept from one product to the next.
    pub(crate) fn add_product(&self, team: &Team, x: &[f32], rows: &mut Rows, out: &mut [f32]) {
        let count = x.len() / self.inputs.max(1);
        assert_eq!(out.len(), count * self.outputs, "one row of outputs for each row of inputs");
        if let Numbers::Bf16(_) = self.numbers {
            rows.narrow(team, x, self.inputs);
        }
        let out = Shared(out.as_mut_ptr());
        let panels = self.outputs.div_ceil(PANEL);
        team.share(panels, &|panels| self.add_panels(panels, x, &rows.narrowed, count, &out));
    }

    /// The columns of some panels. No two threads have the same panel, and the calls of one thread
    /// come one after the other.
    fn add_panels(
        &self,
        panels: Range<usize>,
        x: &[f32],
        narrowed: &[Bf16],
        count: usize,
        out: &Shared,
    ) {
        let isa = Isa::detect();
        for block in blocks(0..count, BLOCK_ROWS) {
            for panel in panels.clone() {
                let column = panel * PANEL;
                let columns = PANEL.min(self.outputs - column);
                for tile in blocks(block.clone(), TILE_ROWS) {
                    // SAFETY: `add_product` checked that the table has these rows; the columns of a
                    // panel lie within them.
                    let start = unsafe { out.0.add(tile.start * self.outputs + column) };
                    let sums = Sums { start, row: self.outputs };
                    if columns == PANEL {
                        // SAFETY: these columns are this thread's alone.
                        unsafe { self.add_tile(isa, panel, tile, (x, narrowed), sums) };
                        continue;
                    }
                    let mut whole = [0.0; TILE_ROWS * PANEL];
                    let rows = tile.len();
                    // SAFETY: this table is as large as any tile.
                    unsafe {
                        let sums = Sums::of(&mut whole, PANEL, rows, PANEL);
                        self.add_tile(isa, panel, tile, (x, narrowed), sums);
                    }
                    for (row, whole) in whole.chunks_exact(PANEL).take(rows).enumerate() {
                        // SAFETY: these columns are this thread's alone.
                        let out = unsafe {
                            std::slice::from_raw_parts_mut(start.add(row * self.outputs), columns)
                        };
                        out.iter_mut().zip(whole).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    }

    /// One tile of the product.
    ///
    /// # Safety
    /// As many rows of `sums` can be read and written, and nobody else does so now.
    unsafe fn add_tile(
        &self,
        isa: Isa,
        panel: usize,
        rows: Range<usize>,
        (x, narrowed): (&[f32], &[Bf16]),
        sums: Sums,
    ) {
        match &self.numbers {
            Numbers::F32(numbers) => {
                let length = self.inputs * PANEL;
                let size = Size { rows: rows.len(), depth: self.inputs, columns: PANEL };
                let x = &x[rows.start * self.inputs..];
                let x = Strided { numbers: x, row: self.inputs, step: 1 };
                let numbers = &numbers[panel * length..][..length];
                let panel = Strided { numbers, row: 0, step: PANEL };
                // SAFETY: the caller's.
                unsafe { add_tile(isa, size, x, panel, sums) }
            }
            #[cfg(target_arch = "x86_64")]
            Numbers::Bf16(numbers) => {
                let pairs = self.inputs.div_ceil(2);
                let length = pairs * 2 * PANEL;
                let panel = bits(&numbers[panel * length..][..length]);
                let x = (bits(&narrowed[rows.start * 2 * pairs..]), 2 * pairs);
                // SAFETY: the caller's; and the network is not laid out in bf16 where the processor
                // lacks the instructions.
                unsafe { add_tile_bf16((rows.len(), pairs), x, panel, sums) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            Numbers::Bf16(_) => unreachable!("{narrowed:?}: bf16 is for x86-64 only"),
        }
    }
}

impl Rows {
    /// Rounds `x` [N, width].
    fn narrow(&mut self, team: &Team, x: &[f32], width: usize) {
        let padded = width.next_multiple_of(2);
        self.narrowed.resize(x.len() / width.max(1) * padded, Bf16::default());
        let work = |first: usize, narrowed: &mut [Bf16]| {
            let x = &x[first * width..];
            for (narrowed, x) in narrowed.chunks_exact_mut(padded).zip(x.chunks_exact(width)) {
                vectorised(Narrow { x, narrowed });
            }
        };
        team.share_rows(&mut self.narrowed, padded, &work);
    }
}

/// Rounds a row; what is beyond its end becomes zero.
struct Narrow<'a> {
    x: &'a [f32],
    narrowed: &'a mut [Bf16],
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let (narrowed, rest) = self.narrowed.split_at_mut(self.x.len());
        narrowed.iter_mut().zip(self.x).for_each(|(narrowed, x)| *narrowed = Bf16::narrow(*x));
        rest.fill(Bf16::default());
    }
}

/// `range` in pieces of nearly equal length, none longer than `most`.
fn blocks(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, length) = (range.start, range.len());
    let count = length.div_ceil(most);
    (0..count).map(move |at| start + at * length / count..start + (at + 1) * length / count)
}

#[cfg(target_arch = "x86_64")]
fn bits(numbers: &[Bf16]) -> &[u16] {
    // SAFETY: a `Bf16` is a transparent u16.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::cpu::tile::HALF_PANEL;

    fn check(dtype: Dtype, rows: i64, inputs: i64, outputs: i64, threads: usize) {
        tch::manual_seed(rows * 1000 + inputs + outputs);
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let weight = random([outputs, inputs]).to_kind(dtype.kind());
        let x = random([rows, inputs]).to_kind(dtype.kind()).to_kind(Kind::Float);
        let before = random([rows, outputs]);
        let expected = &before + x.matmul(&weight.to_kind(Kind::Float).tr());
        let matrix = Matrix::new(&weight, dtype);
        let mut out = elements::<f32>(&before).to_vec();
        let team = Team::new(threads);
        let x = elements(&x);
        matrix.add_product(&team, x, &mut Rows::default(), &mut out);
        let difference = (Tensor::from_slice(&out).view([rows, outputs]) - expected).abs().max();
        let tolerance = 1e-6 * (inputs as f64 + 10.0);
        let difference = difference.double_value(&[]);
        assert!(difference < tolerance, "{dtype:?} {rows} {inputs} {outputs}: {difference}");
        let mut row = vec![0.0; inputs as usize];
        matrix.row(outputs as usize - 1, &mut row);
        assert_eq!(row, elements::<f32>(&weight.get(outputs - 1).to_kind(Kind::Float)));
    }

    #[test]
    fn a_product_is_that_of_libtorch() {
        for threads in [1, 2] {
            for (inputs, outputs) in [(64, 64), (33, 70), (7, 5), (130, 1)] {
                for rows in (1..=13).chain([25, 400]) {
                    check(Dtype::F32, rows, inputs, outputs, threads);
                    if Isa::has_bf16() {
                        check(Dtype::Bf16, rows, inputs, outputs, threads);
                    }
                }
            }
        }
    }

    #[test]
    fn all_registers_give_the_same() {
        let numbers: Vec<f32> = (0..4000).map(|at| (at as f32 * 0.37).sin()).collect();
        let (x, panel) = (
            Strided { numbers: &numbers, row: 3, step: 41 },
            Strided { numbers: &numbers[7..], row: 0, step: 40 },
        );
        for (rows, columns) in (1..=TILE_ROWS).flat_map(|rows| [(rows, PANEL), (rows, HALF_PANEL)])
        {
            let product = |isa| {
                let mut sums = [1.0; TILE_ROWS * PANEL];
                let table = Sums::of(&mut sums, PANEL, rows, columns);
                // SAFETY: the table has this many rows.
                unsafe { add_tile(isa, Size { rows, depth: 51, columns }, x, panel, table) };
                sums
            };
            let expected = product(Isa::Baseline);
            let mut others = vec![Isa::detect()];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                others.push(Isa::Avx2);
            }
            for isa in others {
                for (ours, expected) in product(isa).iter().zip(&expected) {
                    assert!((ours - expected).abs() < 1e-5, "{isa:?}, {rows} rows, {columns}");
                }
            }
        }
    }
}
