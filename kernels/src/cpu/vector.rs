//! Sums and products of single rows. Every sum runs over 16 lanes that are added pairwise at the end, so its value does not
//! depend on the width of the instruction set.

use super::isa::{madd, per_isa};

/// Lanes of a sum.
const LANES: usize = 16;

#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ a·b, for use inside other functions that are compiled per instruction set.
#[inline(always)]
pub(crate) fn dot_inline<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for at in 0..LANES {
            lanes[at] = madd::<FMA>(a[at], b[at], lanes[at]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = madd::<FMA>(*a, *b, *lane);
    }
    add_lanes(lanes)
}

/// lanes += a·b.
#[inline(always)]
fn accumulate<const FMA: bool>(lanes: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    for at in 0..LANES {
        lanes[at] = madd::<FMA>(a[at], b[at], lanes[at]);
    }
}

/// Four dot products with the same b, each equal bit for bit to [`dot_inline`]'s.
#[inline(always)]
pub(crate) fn four_dots_inline<const FMA: bool>(a: [&[f32]; 4], b: &[f32]) -> [f32; 4] {
    // Four arrays and not one of arrays: the compiler keeps these in vector registers.
    let (mut l0, mut l1, mut l2, mut l3) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let [a0, a1, a2, a3] = a.map(|row| row.as_chunks::<LANES>());
    for ((((b, a0), a1), a2), a3) in b_chunks.iter().zip(a0.0).zip(a1.0).zip(a2.0).zip(a3.0) {
        accumulate::<FMA>(&mut l0, a0, b);
        accumulate::<FMA>(&mut l1, a1, b);
        accumulate::<FMA>(&mut l2, a2, b);
        accumulate::<FMA>(&mut l3, a3, b);
    }
    let mut lanes = [l0, l1, l2, l3];
    for (row, a) in [a0.1, a1.1, a2.1, a3.1].into_iter().enumerate() {
        for ((lane, a), b) in lanes[row].iter_mut().zip(a).zip(b_rest) {
            *lane = madd::<FMA>(*a, *b, *lane);
        }
    }
    lanes.map(add_lanes)
}

/// Row `row` of a matrix of `width` columns.
#[inline(always)]
pub(crate) fn line(matrix: &[f32], row: u32, width: usize) -> &[f32] {
    &matrix[row as usize * width..][..width]
}

/// Asks for numbers that are read soon to come as far as the second cache level.
#[inline(always)]
pub(crate) fn prefetch(numbers: &[f32]) {
    const CACHE_LINE: usize = 16;
    for line in numbers.chunks(CACHE_LINE) {
        // SAFETY: a prefetch reads and writes nothing.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T1);
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    }
}

per_isa! {
    /// Σ a·b.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_inline::<FMA>(a, b)
    }
}

/// out += Σ_k scale_k · row_k, added in the order of k, for use inside other functions that are compiled
/// per instruction set.
#[inline(always)]
pub(crate) fn add_scaled_inline<const FMA: bool, const K: usize>(
    out: &mut [f32],
    scales: [f32; K],
    rows: [&[f32]; K],
) {
    let length = out.len();
    let rows = rows.map(|row| &row[..length]);
    for at in 0..length {
        let mut sum = out[at];
        for k in 0..K {
            sum = madd::<FMA>(scales[k], rows[k][at], sum);
        }
        out[at] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 1.7).sin()).collect()
    }

    #[test]
    fn dot_products_agree_with_float64_on_every_instruction_set() {
        for length in [0, 1, 15, 16, 17, 64, 577] {
            let (a, b) = (numbers(length, 0.3), numbers(length, 2.1));
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            for isa in Isa::available() {
                let got = f64::from(dot(isa, &a, &b));
                assert!((got - exact).abs() < 1e-5, "{} {length}: {got} {exact}", isa.name());
            }
        }
    }

    #[test]
    fn four_dot_products_at_once_equal_single_ones_bit_for_bit() {
        for length in [1, 31, 576] {
            let b = numbers(length, 9.0);
            let rows: Vec<Vec<f32>> = (0..4).map(|row| numbers(length, row as f32)).collect();
            let at_once = four_dots_inline::<false>([&rows[0], &rows[1], &rows[2], &rows[3]], &b);
            for row in 0..4 {
                assert_eq!(at_once[row], dot_inline::<false>(&rows[row], &b));
            }
        }
    }
}
