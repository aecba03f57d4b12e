//! The register tile of the encode: a few rows times a few vectors of features, over the whole inner dimension at once, so
//! that the product does not leave the registers before bias and ReLU.
//!
//! Each z_ij is b_j plus the products x_ik w_kj, added one after the other in the order of k, with fused multiply-adds where
//! the CPU has them. The bits are the same for every tile shape and vector width.

use super::isa::{PORTABLE_FMA, madd};

/// A vector of neighbouring features.
///
/// # Safety
/// All functions may only be called on a CPU that has the implementor's instruction set; pointers
/// must be valid for `COUNT` numbers.
pub(crate) unsafe trait Lanes: Copy {
    /// Features in a vector.
    const COUNT: usize;
    /// Reads a vector.
    unsafe fn load(from: *const f32) -> Self;
    /// One number in all lanes.
    unsafe fn splat(value: f32) -> Self;
    /// self + a·b.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// max(self, 0), and 0 for NaN.
    unsafe fn relu(self) -> Self;
    /// The lanes' products.
    unsafe fn times(self, other: Self) -> Self;
    /// Bit l tells whether lane l is above that of `other`; not if one of them is NaN.
    unsafe fn above(self, other: Self) -> u32;
    /// Writes a vector.
    unsafe fn store(self, to: *mut f32);
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 8]);

// SAFETY: plain Rust runs everywhere; pointers are read and written for eight numbers.
unsafe impl Lanes for Plain {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for eight numbers.
        Plain(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Plain([value; 8])
    }
    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for at in 0..8 {
            self.0[at] = madd::<PORTABLE_FMA>(a.0[at], b.0[at], self.0[at]);
        }
        self
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        Plain(self.0.map(|value| value.max(0.0)))
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        Plain(std::array::from_fn(|at| self.0[at] * other.0[at]))
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        (0..8).fold(0, |mask, at| mask | u32::from(self.0[at] > other.0[at]) << at)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for eight numbers.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    // SAFETY: AVX2 and FMA are the caller's promise; pointers are used for eight numbers, unaligned.
    unsafe impl Lanes for __m256 {
        const COUNT: usize = 8;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            // SAFETY: the trait's contract. The operand order makes NaN 0.
            unsafe { _mm256_max_ps(self, _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm256_mul_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn above(self, other: Self) -> u32 {
            // SAFETY: the trait's contract.
            unsafe {
                let above = _mm256_cmp_ps::<_CMP_GT_OQ>(self, other);
                _mm256_movemask_ps(above) as u32
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the trait's contract.
            unsafe { _mm256_storeu_ps(to, self) }
        }
    }

    // SAFETY: AVX-512F is the caller's promise; pointers are used for sixteen numbers, unaligned.
    unsafe impl Lanes for __m512 {
        const COUNT: usize = 16;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            // SAFETY: the trait's contract. The operand order makes NaN 0.
            unsafe { _mm512_max_ps(self, _mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { _mm512_mul_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn above(self, other: Self) -> u32 {
            // SAFETY: the trait's contract.
            unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, other)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the trait's contract.
            unsafe { _mm512_storeu_ps(to, self) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::Lanes;
    use std::arch::aarch64::*;

    // SAFETY: every aarch64 CPU has NEON; pointers are used for four numbers, unaligned.
    unsafe impl Lanes for float32x4_t {
        const COUNT: usize = 4;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe { vdupq_n_f32(value) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { vfmaq_f32(self, a, b) }
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            // SAFETY: the trait's contract. NaN is not above 0, so it becomes 0.
            unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(self), vcgtzq_f32(self))) }
        }
        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { vmulq_f32(self, other) }
        }
        #[inline(always)]
        unsafe fn above(self, other: Self) -> u32 {
            const BITS: [u32; 4] = [1, 2, 4, 8];
            // SAFETY: the trait's contract; an array of four is read.
            unsafe { vaddvq_u32(vandq_u32(vcgtq_f32(self, other), vld1q_u32(BITS.as_ptr()))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the trait's contract.
            unsafe { vst1q_f32(to, self) }
        }
    }
}

/// z for MR rows and NV vectors of features: b + Σ_k x_k w_k.
///
/// # Safety
/// The CPU must have V's instruction set; `rows` must each be valid for `depth` numbers, `packed` for
/// depth·NV·V::COUNT (feature-interleaved: for each k the features' weights side by side), `bias` for
/// NV·V::COUNT.
#[inline(always)]
pub(crate) unsafe fn product<V: Lanes, const MR: usize, const NV: usize>(
    rows: [*const f32; MR],
    depth: usize,
    packed: *const f32,
    bias: *const f32,
) -> [[V; NV]; MR] {
    // SAFETY: offsets stay within the lengths that the caller promises.
    unsafe {
        let mut sums = [[V::splat(0.0); NV]; MR];
        for v in 0..NV {
            let bias = V::load(bias.add(v * V::COUNT));
            for row in &mut sums {
                row[v] = bias;
            }
        }
        let mut weights = packed;
        for k in 0..depth {
            let mut vectors = [V::splat(0.0); NV];
            for v in 0..NV {
                vectors[v] = V::load(weights.add(v * V::COUNT));
            }
            weights = weights.add(NV * V::COUNT);
            for m in 0..MR {
                let x = V::splat(*rows[m].add(k));
                for v in 0..NV {
                    sums[m][v] = sums[m][v].add_product(x, vectors[v]);
                }
            }
        }
        sums
    }
}
