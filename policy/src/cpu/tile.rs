//! The innermost loop of every matrix product: some rows times one panel of 32 columns, with all the
//! sums in registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

use super::isa::Isa;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Half a panel: one register of sums for each row.
pub(crate) const HALF_PANEL: usize = PANEL / 2;
/// Most rows of a tile: two registers of sums for each leave room for the rest.
pub(crate) const TILE_ROWS: usize = 12;

/// Where the sums of a tile are: a table of rows, `row` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    pub(crate) start: *mut f32,
    pub(crate) row: usize,
}

impl Sums {
    /// A table of its own.
    ///
    /// # Panics
    /// There are fewer than `rows` rows of `columns` in it: a bug.
    pub(crate) fn of(table: &mut [f32], row: usize, rows: usize, columns: usize) -> Self {
        assert!(row >= columns && (rows - 1) * row + columns <= table.len(), "sums are missing");
        Self { start: table.as_mut_ptr(), row }
    }
}

/// A table of numbers: where it starts, and how far apart rows and steps are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a> {
    pub(crate) numbers: &'a [f32],
    /// From one row to the next.
    pub(crate) row: usize,
    /// From one step of the sum to the next.
    pub(crate) step: usize,
}

/// How much a tile has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// At most [`TILE_ROWS`].
    pub(crate) rows: usize,
    /// Steps of the sums.
    pub(crate) depth: usize,
    /// [`PANEL`] or [`HALF_PANEL`].
    pub(crate) columns: usize,
}

/// Adds to `sums[m, n]` the sum over all steps k of `x[m, k] * panel[k, n]`. The panel's columns lie
/// side by side; its `row` is not used.
///
/// # Safety
/// As many rows and columns of `sums` can be read and written, and nobody else does so now.
///
/// # Panics
/// A table that is too short, or a size that no tile has: a bug.
pub(crate) unsafe fn add_tile(
    isa: Isa,
    size: Size,
    x: Strided<'_>,
    panel: Strided<'_>,
    sums: Sums,
) {
    let Size { rows, depth, columns } = size;
    assert!((1..=TILE_ROWS).contains(&rows), "{rows} rows");
    assert!(columns == PANEL || columns == HALF_PANEL, "{columns} columns");
    let Some(last) = depth.checked_sub(1) else { return };
    assert!((rows - 1) * x.row + last * x.step < x.numbers.len(), "rows are missing");
    assert!(last * panel.step + columns <= panel.numbers.len(), "the panel is cut off");
    match isa {
        // SAFETY: the tables are as long as the kernels read, as checked, the sums are the caller's,
        // and the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(size, x, panel, sums) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(size, x, panel, sums) },
        // SAFETY: the same; these instructions every processor has.
        Isa::Baseline => unsafe { narrow::<[f32; 8]>(size, x, panel, sums) },
    }
}

/// As many numbers as the processor multiplies at once.
trait Register: Copy {
    const LANES: usize;
    fn splat(number: f32) -> Self;
    /// # Safety
    /// As many numbers can be read there.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// As many numbers can be written there.
    unsafe fn store(self, to: *mut f32);
    fn add(self, other: Self) -> Self;
    fn add_product(self, one: Self, other: Self) -> Self;
}

impl Register for [f32; 8] {
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(number: f32) -> Self {
        [number; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    fn add_product(self, one: Self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + one[lane] * other[lane])
    }
}

/// The instructions of one kind of register. `target_feature` functions are safe to call only where
/// the features are known; a `Register` is used only within kernels compiled for them.
#[cfg(target_arch = "x86_64")]
macro_rules! register {
    ($register:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident) => {
        impl Register for $register {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn splat(number: f32) -> Self {
                // SAFETY: see the macro.
                unsafe { $splat(number) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: see the macro; the memory is the caller's.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: see the macro; the memory is the caller's.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: see the macro.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            fn add_product(self, one: Self, other: Self) -> Self {
                // SAFETY: see the macro.
                unsafe { $fma(one, other, self) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
register!(
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
register!(
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);

/// `C` registers of columns, `M` rows, all steps. An addition waits for the one before it, so where
/// there are few sums, `U` steps are summed apart.
///
/// # Safety
/// `M` rows of `x` and `C` registers at each step of `panel` can be read, and `sums` written.
#[inline(always)]
unsafe fn registers<R: Register, const M: usize, const C: usize, const U: usize>(
    depth: usize,
    (x, row, step): (*const f32, usize, usize),
    (panel, panel_step): (*const f32, usize),
    sums: Sums,
) {
    let mut kept = [[[R::splat(0.0); C]; M]; U];
    for (m, kept) in kept[0].iter_mut().enumerate() {
        for (c, kept) in kept.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *kept = unsafe { R::load(sums.start.add(m * sums.row + c * R::LANES)) };
        }
    }
    // SAFETY: the caller's.
    let add = |at: usize, kept: &mut [[R; C]; M]| unsafe {
        let columns = panel.add(at * panel_step);
        let columns: [R; C] = std::array::from_fn(|c| R::load(columns.add(c * R::LANES)));
        for (m, kept) in kept.iter_mut().enumerate() {
            let number = R::splat(*x.add(m * row + at * step));
            for (kept, columns) in kept.iter_mut().zip(columns) {
                *kept = kept.add_product(number, columns);
            }
        }
    };
    for at in 0..depth / U {
        for (u, kept) in kept.iter_mut().enumerate() {
            add(at * U + u, kept);
        }
    }
    for at in depth / U * U..depth {
        add(at, &mut kept[0]);
    }
    let (total, apart) = kept.split_first_mut().expect("U is at least one");
    for apart in apart {
        let sums = total.as_flattened_mut().iter_mut().zip(apart.as_flattened());
        sums.for_each(|(total, apart)| *total = total.add(*apart));
    }
    for (m, total) in total.iter().enumerate() {
        for (c, total) in total.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { total.store(sums.start.add(m * sums.row + c * R::LANES)) };
        }
    }
}

/// Steps that are summed apart, for so many registers of sums.
const fn steps_apart(sums: usize) -> usize {
    match sums {
        0..3 => 4,
        3..8 => 2,
        _ => 1,
    }
}

/// Evaluates `body` with the number of rows, known only now, as the constant `M`.
macro_rules! by_rows {
    ($rows:expr, [$($number:literal)+], $M:ident => $body:expr) => {
        match $rows {
            $($number => {
                const $M: usize = $number;
                $body
            })+
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// Registers of eight: half a panel and half a tile at once.
///
/// # Safety
/// As [`registers`], for a whole panel.
#[inline(always)]
unsafe fn narrow<R: Register>(size: Size, x: Strided<'_>, panel: Strided<'_>, sums: Sums) {
    let Size { rows, depth, columns } = size;
    for from in (0..rows).step_by(TILE_ROWS / 2) {
        for column in (0..columns).step_by(2 * R::LANES) {
            // SAFETY: these are parts of what the caller answers for.
            unsafe {
                let x = (x.numbers.as_ptr().add(from * x.row), x.row, x.step);
                let panel = (panel.numbers.as_ptr().add(column), panel.step);
                let start = sums.start.add(from * sums.row + column);
                let sums = Sums { start, ..sums };
                by_rows!((rows - from).min(TILE_ROWS / 2), [1 2 3 4 5 6], M => {
                    registers::<R, M, 2, { steps_apart(2 * M) }>(depth, x, panel, sums);
                });
            }
        }
    }
}

/// # Safety
/// As [`registers`]; and the processor has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(size: Size, x: Strided<'_>, panel: Strided<'_>, sums: Sums) {
    // SAFETY: the caller's.
    unsafe { narrow::<__m256>(size, x, panel, sums) }
}

/// # Safety
/// As [`registers`]; and the processor has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(size: Size, x: Strided<'_>, panel: Strided<'_>, sums: Sums) {
    let Size { rows, depth, columns } = size;
    let x = (x.numbers.as_ptr(), x.row, x.step);
    let panel = (panel.numbers.as_ptr(), panel.step);
    // SAFETY: the caller's.
    unsafe {
        if columns == PANEL {
            by_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12], M => {
                registers::<__m512, M, 2, { steps_apart(2 * M) }>(depth, x, panel, sums);
            });
        } else {
            by_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12], M => {
                registers::<__m512, M, 1, { steps_apart(M) }>(depth, x, panel, sums);
            });
        }
    }
}

/// [`add_tile`] of bf16 numbers. Two steps of the sum lie side by side in both tables, as the
/// instruction wants them: rows of `x` are `row` numbers apart, and a pair of steps of the panel is
/// 64 numbers, the two of each column next to each other.
///
/// # Safety
/// As [`add_tile`]; and the processor has [`Isa::has_bf16`].
///
/// # Panics
/// A table that is too short, or more rows than a tile has: a bug.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn add_tile_bf16(
    (rows, pairs): (usize, usize),
    (x, row): (&[u16], usize),
    panel: &[u16],
    sums: Sums,
) {
    assert!((1..=TILE_ROWS).contains(&rows), "{rows} rows");
    assert!((rows - 1) * row + 2 * pairs <= x.len(), "rows are missing");
    assert!(2 * PANEL * pairs <= panel.len(), "the panel is cut off");
    // SAFETY: the tables are as long as the kernel reads, as checked; the rest is the caller's.
    unsafe { avx512_bf16(rows, pairs, (x.as_ptr(), row), panel.as_ptr(), sums) }
}

/// # Safety
/// The tables are long enough, and the processor has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16(
    rows: usize,
    pairs: usize,
    x: (*const u16, usize),
    panel: *const u16,
    sums: Sums,
) {
    // SAFETY: the caller's.
    unsafe {
        by_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12], M => {
            bf16_registers::<M>(pairs, x, panel, sums);
        });
    }
}

/// # Safety
/// As [`avx512_bf16`], for `M` rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_registers<const M: usize>(
    pairs: usize,
    (x, row): (*const u16, usize),
    panel: *const u16,
    sums: Sums,
) {
    let bits = |register: __m512i| -> __m512bh {
        // SAFETY: both are 512 bits, and any bits are numbers.
        unsafe { std::mem::transmute(register) }
    };
    // SAFETY: the caller's.
    let mut kept: [[__m512; 2]; M] = std::array::from_fn(|m| unsafe {
        let from = sums.start.add(m * sums.row);
        [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(PANEL / 2))]
    });
    for at in 0..pairs {
        // SAFETY: the caller's.
        unsafe {
            let columns = panel.add(at * 2 * PANEL);
            let left = bits(_mm512_loadu_si512(columns.cast()));
            let right = bits(_mm512_loadu_si512(columns.add(PANEL).cast()));
            for (m, kept) in kept.iter_mut().enumerate() {
                let pair = x.add(m * row + 2 * at).cast::<i32>().read_unaligned();
                let pair = bits(_mm512_set1_epi32(pair));
                kept[0] = _mm512_dpbf16_ps(kept[0], pair, left);
                kept[1] = _mm512_dpbf16_ps(kept[1], pair, right);
            }
        }
    }
    for (m, kept) in kept.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let to = sums.start.add(m * sums.row);
            _mm512_storeu_ps(to, kept[0]);
            _mm512_storeu_ps(to.add(PANEL / 2), kept[1]);
        }
    }
}
