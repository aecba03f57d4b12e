//! The screening tiles on matrix units (AMX), with AVX-512 for the bounds.
//!
//! One instruction multiplies 16 rows of 64 bytes by 16 features of as many, and adds the products up: bytes in 32 bits, pairs
//! of bfloat16 in float32. Bytes are multiplied at twice the rate. Two tiles of rows times two of features are four tiles of
//! sums, and each operand that is read is used twice.

use std::arch::asm;
use std::arch::x86_64::*;

use super::operands::{BOUND_LANES, FeatureBounds, Geometry};
use super::rounding::{ByteRange, Form, Grid};
use super::strip::{Masks, Strip, Tile};

/// Rows of a tile: two of the unit's.
const HEIGHT: usize = 32;
/// Features of a tile: two of the unit's.
const WIDTH: usize = 32;
/// Words of a row of the unit's tile.
const RUN: usize = 16;
/// A tile.
pub(super) const GEOMETRY: Geometry = Geometry::new(HEIGHT, WIDTH).in_runs_of(RUN);

/// In what form a grid's numbers are read: whole tiles.
pub(super) const fn form(grid: Grid) -> Form {
    match grid {
        Grid::Bits8 => Form::Bytes { range: ByteRange::SIGNED, block: 4 * RUN },
        Grid::Bfloat16 => Form::Bfloat16 { block: 2 * RUN },
        Grid::Bits16 => Form::Halves { block: 4 * RUN },
    }
}

/// As [`super::possible`].
///
/// # Safety
/// The CPU must have AVX-512F and AMX with bytes and bfloat16, the thread tiles, and the operands must be in [`form`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn possible(strip: &Strip<'_>, masks: &mut [u32]) {
    let (runs, weights) = (strip.groups / RUN, strip.weights.as_ptr());
    let none = Factors { rows: weights, weights, runs: 0 };
    match strip.grid {
        Grid::Bits8 => strip.each_tile(masks, |tile| {
            let mut sums = Sums([0; HEIGHT * WIDTH]);
            let factors = Factors { rows: tile.rows.as_ptr(), weights, runs };
            // SAFETY: the tile's rows and weights are `runs` runs long; the caller's promise.
            unsafe { products_of_bytes(factors, none, &mut sums) };
            above_zero(tile, |at| _mm512_cvtepi32_ps(sums.vector(at)))
        }),
        Grid::Bfloat16 => strip.each_tile(masks, |tile| {
            let mut sums = Sums([0; HEIGHT * WIDTH]);
            let factors = Factors { rows: tile.rows.as_ptr(), weights, runs };
            // SAFETY: as above.
            unsafe { products_of_bfloat16(factors, none, &mut sums) };
            above_zero(tile, |at| _mm512_castsi512_ps(sums.vector(at)))
        }),
        Grid::Bits16 => strip.each_tile(masks, |tile| {
            let (mut high, mut mixed) = (Sums([0; HEIGHT * WIDTH]), Sums([0; HEIGHT * WIDTH]));
            let (half, rows) = (runs / 2, tile.rows.as_ptr());
            let (low_rows, low_weights) =
                (rows.wrapping_add(half * RUN * HEIGHT), weights.wrapping_add(half * RUN * WIDTH));
            // SAFETY: as above; the high parts' runs come before as many of the low parts.
            unsafe {
                products_of_bytes(Factors { rows, weights, runs: half }, none, &mut high);
                products_of_bytes(
                    Factors { rows, weights: low_weights, runs: half },
                    Factors { rows: low_rows, weights, runs: half },
                    &mut mixed,
                );
            }
            let scale = _mm512_set1_ps(256.0);
            above_zero(tile, |at| {
                let [high, mixed] = [&high, &mixed].map(|sums| _mm512_cvtepi32_ps(sums.vector(at)));
                _mm512_fmadd_ps(scale, high, mixed)
            })
        }),
    }
}

/// The sums of a tile: those of each row side by side.
#[repr(align(64))]
struct Sums([u32; HEIGHT * WIDTH]);

impl Sums {
    /// Vector `at` of the tile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn vector(&self, at: usize) -> __m512i {
        // SAFETY: the slice holds sixteen numbers.
        unsafe { _mm512_load_si512(self.0[at * BOUND_LANES..][..BOUND_LANES].as_ptr().cast()) }
    }
}

/// What is multiplied: for each of `runs` runs, `HEIGHT` rows' words and `WIDTH` features' words of each group.
#[derive(Clone, Copy)]
struct Factors {
    rows: *const u32,
    weights: *const u32,
    runs: usize,
}

/// Defines a function that multiplies two pairs of factors and writes the sums of both together.
macro_rules! products {
    ($(#[$meta:meta])* $name:ident, $instruction:literal) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The CPU must have the instruction, the thread tiles; the factors' pointers are valid for what their runs hold.
        #[inline]
        unsafe fn $name(first: Factors, second: Factors, sums: &mut Sums) {
            // SAFETY: each turn reads 2 KiB of the rows and 2 KiB of the weights, a run's; 4 KiB of sums are written.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "test {runs}, {runs}",
                    "jz 3f",
                    "4:",
                    "tileloadd tmm4, [{rows} + {run}*1]",
                    "tileloadd tmm6, [{weights} + {line}*1]",
                    "tileloadd tmm7, [{weights} + {line}*1 + 64]",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{rows} + {run}*1 + 1024]",
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "add {rows}, 2048",
                    "add {weights}, 2048",
                    "dec {runs}",
                    "jnz 4b",
                    "3:",
                    // The second factors follow the first ones; after them there are none.
                    "mov {rows}, {more_rows}",
                    "mov {weights}, {more_weights}",
                    "mov {runs}, {more_runs}",
                    "xor {more_runs:e}, {more_runs:e}",
                    "test {runs}, {runs}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 64], tmm1",
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    "tilestored [{sums} + {line}*1 + 2112], tmm3",
                    rows = inout(reg) first.rows => _,
                    weights = inout(reg) first.weights => _,
                    runs = inout(reg) first.runs => _,
                    more_rows = in(reg) second.rows,
                    more_weights = in(reg) second.weights,
                    more_runs = inout(reg) second.runs => _,
                    run = in(reg) 64usize,
                    line = in(reg) 128usize,
                    sums = in(reg) sums,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

products! {
    /// Σ x_q·w_q in 32 bits, of signed bytes.
    products_of_bytes, "tdpbssd"
}
products! {
    /// Σ x_q·w_q in float32, of bfloat16 numbers.
    products_of_bfloat16, "tdpbf16ps"
}

/// For each row a bit for each feature: whether its bound is not at or below its cutoff. `sum` gives the tile's vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn above_zero(tile: &Tile<'_, HEIGHT>, sum: impl Fn(usize) -> __m512) -> Masks<HEIGHT> {
    // SAFETY: sixteen numbers are a vector.
    let vector = |of: &[f32; BOUND_LANES]| unsafe { _mm512_loadu_ps(of.as_ptr()) };
    let [first, second] = [0, 1].map(|half| {
        let FeatureBounds { step, norm, residual, base, cutoff, .. } = &tile.bounds[half];
        [step, norm, residual, base, cutoff].map(vector)
    });
    let mut masks = [0; HEIGHT];
    for m in 0..HEIGHT {
        let row = tile.row_bounds[m];
        let of_row = [row.step, row.residual, row.norm, row.cutoff].map(|share| _mm512_set1_ps(share));
        let [first, second] = [(&first, 2 * m), (&second, 2 * m + 1)].map(|(bounds, at)| {
            let [step, norm, residual, base, cutoff] = *bounds;
            let mut upper = _mm512_fmadd_ps(of_row[0], _mm512_mul_ps(sum(at), step), base);
            upper = _mm512_fmadd_ps(of_row[1], norm, upper);
            upper = _mm512_fmadd_ps(of_row[2], residual, upper);
            upper = _mm512_fnmadd_ps(of_row[3], cutoff, upper);
            // "Not at most 0" and not "above 0": NaN rules nothing out.
            u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(upper, _mm512_setzero_ps()))
        });
        masks[m] = first | second << BOUND_LANES;
    }
    masks
}
