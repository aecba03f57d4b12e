//! Computing candidates again in float32.
//!
//! The float32 sum in the plain tile's order decides whether a pair is active: where the sum formed here, in an order
//! that takes less time, is too near 0 to tell, it is formed in that order as well.

use std::ops::Range;

use super::{Candidates, Screened, TILE_WIDTH, rounding};
use crate::cpu::encode::Encode;
use crate::cpu::isa::{Isa, Level, PORTABLE_FMA, madd, per_isa};
use crate::cpu::pairs::Pair;
use crate::cpu::tile::{Lanes, Plain};

per_isa! {
    /// z in the tile's order: the bias, then one product after the other.
    fn in_order(x: &[f32], w: &[f32], bias: f32) -> f32 {
        x.iter().zip(w).fold(bias, |sum, (x, w)| madd::<FMA>(*x, *w, sum))
    }
}

/// Lanes of a sum on every instruction set: enough that no addition waits for the one before.
const LANES: usize = 32;

/// N dot products with the same x, of `width` numbers.
///
/// # Safety
/// The CPU must have V's instruction set; the pointers must be valid for `width` numbers.
#[inline(always)]
unsafe fn dots<V: Lanes, const VECTORS: usize, const FMA: bool, const N: usize>(
    w: [*const f32; N],
    x: *const f32,
    width: usize,
) -> [f32; N] {
    const { assert!(VECTORS * V::COUNT == LANES) };
    let whole = width - width % LANES;
    // SAFETY: the caller's promise; `lanes` holds LANES numbers.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS]; N];
        for at in (0..whole).step_by(LANES) {
            for v in 0..VECTORS {
                let x = V::load(x.add(at + v * V::COUNT));
                for n in 0..N {
                    sums[n][v] = sums[n][v].add_product(V::load(w[n].add(at + v * V::COUNT)), x);
                }
            }
        }
        let mut products = [0.0; N];
        for n in 0..N {
            let mut lanes = [0.0; LANES];
            for v in 0..VECTORS {
                sums[n][v].store(lanes.as_mut_ptr().add(v * V::COUNT));
            }
            for at in whole..width {
                lanes[at - whole] = madd::<FMA>(*w[n].add(at), *x.add(at), lanes[at - whole]);
            }
            let mut half = LANES / 2;
            while half > 0 {
                for at in 0..half {
                    lanes[at] += lanes[at + half];
                }
                half /= 2;
            }
            products[n] = lanes[0];
        }
        products
    }
}

/// x·w for each candidate into `products`.
///
/// # Safety
/// The CPU must have V's instruction set; `weights` holds a row of x's length for each number among the candidates.
#[inline(always)]
unsafe fn products_by<V: Lanes, const VECTORS: usize, const FMA: bool>(
    x: &[f32],
    weights: &[f32],
    candidates: &[u32],
    products: &mut Vec<f32>,
) {
    let width = x.len();
    products.clear();
    products.resize(candidates.len(), 0.0);
    let (twos, rest) = candidates.as_chunks::<2>();
    let (two_products, rest_products) = products.as_chunks_mut::<2>();
    for (products, [a, b]) in two_products.iter_mut().zip(twos) {
        // SAFETY: the caller's promise.
        *products = unsafe {
            let w = [weights.as_ptr().add(*a as usize * width), weights.as_ptr().add(*b as usize * width)];
            dots::<V, VECTORS, FMA, 2>(w, x.as_ptr(), width)
        };
    }
    for (product, last) in rest_products.iter_mut().zip(rest) {
        // SAFETY: as above.
        [*product] = unsafe {
            dots::<V, VECTORS, FMA, 1>([weights.as_ptr().add(*last as usize * width)], x.as_ptr(), width)
        };
    }
}

/// x·w for each candidate into `products`.
fn products(isa: Isa, x: &[f32], weights: &[f32], candidates: &[u32], products: &mut Vec<f32>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(x: &[f32], weights: &[f32], candidates: &[u32], products: &mut Vec<f32>) {
        // SAFETY: this function's own features; the caller below checks the candidates.
        unsafe { products_by::<std::arch::x86_64::__m256, 4, true>(x, weights, candidates, products) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn avx512(x: &[f32], weights: &[f32], candidates: &[u32], products: &mut Vec<f32>) {
        // SAFETY: as above.
        unsafe { products_by::<std::arch::x86_64::__m512, 2, true>(x, weights, candidates, products) }
    }

    if let Some(last) = candidates.last() {
        assert!((*last as usize + 1) * x.len() <= weights.len(), "candidates are ascending features");
    }
    match isa.level() {
        // SAFETY: plain Rust runs everywhere.
        Level::Portable => unsafe { products_by::<Plain, 4, PORTABLE_FMA>(x, weights, candidates, products) },
        // SAFETY: an Isa of this level is only made where the CPU has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(x, weights, candidates, products) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(x, weights, candidates, products) },
        // SAFETY: every aarch64 CPU has NEON.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe {
            products_by::<std::arch::aarch64::float32x4_t, 8, true>(x, weights, candidates, products)
        },
    }
}

/// Memory for [`recheck`].
#[derive(Debug, Default)]
pub(crate) struct Memory {
    candidates: Vec<u32>,
    products: Vec<f32>,
}

/// Appends the pairs of the rows `group` × `features` that are active among the candidates found for them.
pub(crate) fn recheck(
    isa: Isa,
    input: &Encode<'_>,
    screened: &Screened,
    group: Range<usize>,
    features: Range<usize>,
    found: &Candidates,
    memory: &mut Memory,
    pairs: &mut Vec<Pair>,
) {
    let width = input.width;
    let weights = &input.weights[features.start * width..features.end * width];
    let biases = &input.bias[features.clone()];
    let bounds = &screened.weights.bounds[features.start / TILE_WIDTH..];
    let Memory { candidates, products: sums } = memory;
    for (at, row) in group.enumerate() {
        let x = &input.x[row * width..][..width];
        candidates.clear();
        found.list(at, candidates);
        products(isa, x, weights, candidates, sums);
        let row_rounding = screened.rows.bounds[row].rounding;
        for (at, product) in candidates.iter().zip(&*sums) {
            let at = *at as usize;
            let norm = bounds[at / TILE_WIDTH].norm[at % TILE_WIDTH];
            let uncertain = row_rounding * norm + rounding(width) * biases[at].abs() + 1e-35;
            let mut value = product + biases[at];
            let certain = value.abs() > uncertain;
            if !certain {
                value = in_order(isa, x, &weights[at * width..][..width], biases[at]);
            }
            if value > 0.0 {
                pairs.push(Pair { row: row as u32, feature: (features.start + at) as u32, value });
            }
        }
    }
}
