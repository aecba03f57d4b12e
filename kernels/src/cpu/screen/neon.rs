//! The screening tiles on NEON with the dot products of Armv8.2.
//!
//! In one instruction, `sdot` multiplies four bytes per lane and adds the products to a 32-bit sum, at four times the rate
//! of float32. Before SVE there is no such instruction for words: `smlal` multiplies as many of them as `fmla` does floats,
//! so the tile for words exists for its results, not for its speed.

use super::operands::{BOUND_LANES, FeatureBounds, Geometry};
use super::rounding::{BYTE_BLOCK, ByteRange, Form, Grid};
use super::strip::{Masks, Strip, Tile};
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows of a tile, whose words are read as one vector of four and one of two.
const HEIGHT: usize = 6;
/// Vectors of four features in a tile.
const VECTORS: usize = BOUND_LANES / 4;
/// A tile.
pub(super) const GEOMETRY: Geometry = Geometry::new(HEIGHT, BOUND_LANES);

/// In what form a grid's numbers are read.
pub(super) const fn form(grid: Grid) -> Option<Form> {
    match grid {
        Grid::Bits8 => Some(Form::Bytes { range: ByteRange::SIGNED, block: BYTE_BLOCK }),
        Grid::Bits16 => Some(Form::Words),
        Grid::Bfloat16 => None,
    }
}

/// As [`super::possible`].
///
/// # Safety
/// The CPU must have `dotprod`.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn possible(strip: &Strip<'_>, masks: &mut [u32]) {
    let (groups, weights) = (strip.groups, strip.weights.as_ptr());
    match strip.grid {
        Grid::Bits8 => strip.each_tile(masks, |tile| {
            // SAFETY: the tile's rows and weights have the lengths that the product reads.
            let sums =
                unsafe { product_of_bytes(tile.rows.as_ptr(), groups, weights, &tile.bounds[0].start) };
            above_zero(&sums, tile)
        }),
        Grid::Bits16 => strip.each_tile(masks, |tile| {
            // SAFETY: as above.
            let sums = unsafe { product_of_words(tile.rows.as_ptr(), groups, weights) };
            above_zero(&sums, tile)
        }),
        Grid::Bfloat16 => unreachable!("there is no form for it"),
    }
}

/// The sums of a tile, four features a vector.
type Sums = [[int32x4_t; VECTORS]; HEIGHT];

/// `start` + Σ_k x_q·w_q in 32 bits, of numbers of 8 bits.
///
/// # Safety
/// `dotprod`; `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn product_of_bytes(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: &[i32; BOUND_LANES],
) -> Sums {
    // 6×4 sums, 4 weights and the rows' words in 2 fill 30 of the 32 registers.
    // SAFETY: sixteen numbers are four vectors.
    let start: [int32x4_t; VECTORS] =
        std::array::from_fn(|v| unsafe { vld1q_s32(start.as_ptr().add(4 * v)) });
    let mut sums = [start; HEIGHT];
    for group in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        let (four, two, w): (_, _, [uint32x4_t; VECTORS]) = unsafe {
            let rows = rows.add(HEIGHT * group);
            let weights = weights.add(BOUND_LANES * group);
            (vld1q_u32(rows), vld1_u32(rows.add(4)), std::array::from_fn(|v| vld1q_u32(weights.add(4 * v))))
        };
        let two = vcombine_u32(two, vcreate_u32(0));
        for v in 0..VECTORS {
            sums[0][v] = add_dot_product::<0>(sums[0][v], w[v], four);
            sums[1][v] = add_dot_product::<1>(sums[1][v], w[v], four);
            sums[2][v] = add_dot_product::<2>(sums[2][v], w[v], four);
            sums[3][v] = add_dot_product::<3>(sums[3][v], w[v], four);
            sums[4][v] = add_dot_product::<0>(sums[4][v], w[v], two);
            sums[5][v] = add_dot_product::<1>(sums[5][v], w[v], two);
        }
    }
    sums
}

/// `sum` + each of four words of bytes · the word `ROW` of `rows`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_dot_product<const ROW: i32>(mut sum: int32x4_t, weights: uint32x4_t, rows: uint32x4_t) -> int32x4_t {
    // The intrinsic, `vdotq_laneq_s32`, is not stable in the oldest compiler that builds this crate.
    // SAFETY: an instruction on three registers; the CPU has it, says the target feature.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {rows:v}.4b[{row}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            rows = in(vreg) rows,
            row = const ROW,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Σ_k x_q·w_q in 32 bits, of numbers of 16 bits.
///
/// # Safety
/// `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn product_of_words(rows: *const u32, groups: usize, weights: *const u32) -> Sums {
    let mut sums = [[vdupq_n_s32(0); VECTORS]; HEIGHT];
    // Both columns of a group have sums of their own until the end, so that 6×4 of them, of eight features, fill the
    // registers with 2 weights and 1 broadcast.
    for half in 0..2 {
        let mut split = [[vdupq_n_s32(0); VECTORS]; HEIGHT];
        for group in 0..groups {
            // SAFETY: each turn reads one word of each row and 8 of the weights.
            unsafe {
                let weights = weights.add(BOUND_LANES * group + 8 * half);
                let w: [int16x8_t; 2] =
                    std::array::from_fn(|v| vreinterpretq_s16_u32(vld1q_u32(weights.add(4 * v))));
                for m in 0..HEIGHT {
                    let x = vreinterpretq_s16_u32(vld1q_dup_u32(rows.add(HEIGHT * group + m)));
                    for v in 0..2 {
                        let sums = &mut split[m][2 * v..][..2];
                        sums[0] = vmlal_s16(sums[0], vget_low_s16(x), vget_low_s16(w[v]));
                        sums[1] = vmlal_high_s16(sums[1], x, w[v]);
                    }
                }
            }
        }
        for m in 0..HEIGHT {
            for v in 0..2 {
                sums[m][2 * half + v] = vpaddq_s32(split[m][2 * v], split[m][2 * v + 1]);
            }
        }
    }
    sums
}

/// For each row a bit for each feature: whether its bound is not at or below its cutoff.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn above_zero(sums: &Sums, tile: &Tile<'_, HEIGHT>) -> Masks<HEIGHT> {
    let FeatureBounds { step, norm, residual, base, cutoff, .. } = &tile.bounds[0];
    let mut masks = [0; HEIGHT];
    for v in 0..VECTORS {
        // SAFETY: a tile has VECTORS vectors of features.
        let vector = |of: &[f32; BOUND_LANES]| unsafe { vld1q_f32(of.as_ptr().add(4 * v)) };
        let (step, norm, residual, base) = (vector(step), vector(norm), vector(residual), vector(base));
        let cutoff = vector(cutoff);
        for m in 0..HEIGHT {
            let row = tile.row_bounds[m];
            let scaled = vmulq_f32(vcvtq_f32_s32(sums[m][v]), step);
            let mut upper = vfmaq_n_f32(base, scaled, row.step);
            upper = vfmaq_n_f32(upper, norm, row.residual);
            upper = vfmaq_n_f32(upper, residual, row.norm);
            upper = vfmsq_n_f32(upper, cutoff, row.cutoff);
            // "Not at most 0" and not "above 0": NaN rules nothing out.
            masks[m] |= (0b1111 & !mask(vclezq_f32(upper))) << (4 * v);
        }
    }
    masks
}

/// A bit for each lane, of lanes that are all ones or all zeros.
#[inline]
#[target_feature(enable = "neon")]
fn mask(lanes: uint32x4_t) -> u32 {
    const BITS: [u32; 4] = [1, 2, 4, 8];
    // SAFETY: an array of four is read.
    vaddvq_u32(vandq_u32(lanes, unsafe { vld1q_u32(BITS.as_ptr()) }))
}
