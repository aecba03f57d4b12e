//! Products of bfloat16 numbers with AVX512_BF16.
//!
//! `vdpbf16ps` multiplies two pairs of bfloat16 numbers per lane and adds both products to a float32 sum, at twice the rate
//! of float32. Each addition rounds to nearest. Subnormal numbers count as 0, in factors and in sums. A lane adds the odd
//! column's product before the even one's. So z differs from the float32 sum of the same products by rounding, no more than
//! two float32 sums in different orders do. For screening, where the result only needs a bound, VNNI's integers are better.
//! Every CPU with AVX512_BF16 has them; they multiply words at the same rate with a tenth of the residual, and bytes at
//! twice the rate.

use super::isa::{Isa, Level};
use super::tile::Lanes;
use std::arch::x86_64::*;

/// Whether the CPU has the instructions.
pub(crate) fn available(isa: Isa) -> bool {
    isa.level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
}

/// The upper halves of each row's numbers, which are all there is of a bfloat16, two columns in one float's place; a
/// last column without a partner has 0 beside it.
pub(crate) fn pairs(numbers: &[f32], width: usize) -> Vec<f32> {
    let half = |number: f32| number.to_bits() >> 16;
    let pair = |pair: &[f32]| {
        let odd = pair.get(1).map_or(0, |odd| half(*odd));
        f32::from_bits(half(pair[0]) | odd << 16)
    };
    let mut paired = Vec::with_capacity(numbers.len() / width * width.div_ceil(2));
    for row in numbers.chunks_exact(width) {
        paired.extend(row.chunks(2).map(pair));
    }
    paired
}

/// Sixteen float32 sums or, as a factor, sixteen pairs of bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct SumsOfPairs(__m512);

// SAFETY: AVX-512F and AVX512_BF16 are the caller's promise; pointers are used for sixteen numbers, unaligned.
unsafe impl Lanes for SumsOfPairs {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { SumsOfPairs(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { SumsOfPairs(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the trait's contract; all three are 64 bytes of plain numbers.
        unsafe {
            let [a, b] = [a, b].map(|pairs| std::mem::transmute::<__m512, __m512bh>(pairs.0));
            SumsOfPairs(_mm512_dpbf16_ps(self.0, a, b))
        }
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { SumsOfPairs(self.0.relu()) }
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        // SAFETY: the trait's contract.
        unsafe { self.0.above(other.0) }
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { SumsOfPairs(self.0.times(other.0)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { self.0.store(to) }
    }
}
