//! Recomputes candidates in float32.
//!
//! The float32 sum in the plain tile's order decides whether z is above its cutoff. The sum here is formed in a faster order;
//! where it is too near the cutoff to tell, it is formed in the plain order as well.

use std::ops::Range;

use super::candidates::{Candidate, Candidates};
use super::operands::{BOUND_LANES, Screened, rounding_of_sums};
use crate::cpu::isa::{Isa, Level, PORTABLE_FMA, madd, per_isa};
use crate::cpu::operands::{Cutoff, Encode};
use crate::cpu::pairs::Pair;
use crate::cpu::tile::{Lanes, Plain};

per_isa! {
    /// z in the tile's order: the bias, then one product after the other.
    fn in_order(x: &[f32], w: &[f32], bias: f32) -> f32 {
        x.iter().zip(w).fold(bias, |sum, (x, w)| madd::<FMA>(*x, *w, sum))
    }
}

/// Lanes of a sum on every instruction set.
const LANES: usize = 16;
/// Sums that are formed at the same time, so that no addition waits for the one before.
const AT_ONCE: usize = 4;
/// How many of those ahead rows of X are asked for: they come from the third cache level.
const FOURS_AHEAD: usize = 4;

/// Asks for the cache line at `place` to come to the first level.
#[inline(always)]
fn soon(place: *const f32) {
    // SAFETY: a prefetch reads and writes nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// N dot products of `width` numbers; the row `next_x` is read soon.
///
/// # Safety
/// The CPU must have V's instruction set; the pointers must be valid for `width` numbers.
#[inline(always)]
unsafe fn dots<V: Lanes, const VECTORS: usize, const FMA: bool, const N: usize>(
    x: [*const f32; N],
    w: [*const f32; N],
    next_x: *const f32,
    width: usize,
) -> [f32; N] {
    const { assert!(VECTORS * V::COUNT == LANES) };
    let whole = width - width % LANES;
    let mut products = [0.0; N];
    // SAFETY: the caller's promise; `lanes` holds LANES numbers.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS]; N];
        for at in (0..whole).step_by(LANES) {
            soon(next_x.wrapping_add(at));
            for n in 0..N {
                for v in 0..VECTORS {
                    let at = at + v * V::COUNT;
                    sums[n][v] = sums[n][v].add_product(V::load(w[n].add(at)), V::load(x[n].add(at)));
                }
            }
        }
        for n in 0..N {
            let mut lanes = [0.0; LANES];
            for v in 0..VECTORS {
                sums[n][v].store(lanes.as_mut_ptr().add(v * V::COUNT));
            }
            for at in whole..width {
                lanes[at - whole] = madd::<FMA>(*w[n].add(at), *x[n].add(at), lanes[at - whole]);
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
    }
    products
}

/// x·w for each candidate into `products`, as many as there are candidates.
///
/// # Safety
/// The CPU must have V's instruction set; `x` and `weights` hold the rows that the candidates name.
#[inline(always)]
unsafe fn products_by<V: Lanes, const VECTORS: usize, const FMA: bool>(
    x: &[f32],
    weights: &[f32],
    width: usize,
    candidates: &[Candidate],
    products: &mut [f32],
) {
    let (fours, rest) = candidates.as_chunks::<AT_ONCE>();
    let (product_fours, product_rest) = products.as_chunks_mut::<AT_ONCE>();
    for (place, (products, candidates)) in product_fours.iter_mut().zip(fours).enumerate() {
        let later = fours.get(place + FOURS_AHEAD).unwrap_or(candidates);
        let next_x = x.as_ptr().wrapping_add(later[0].row as usize * width);
        let (mut x_rows, mut w_rows) = ([x.as_ptr(); AT_ONCE], [weights.as_ptr(); AT_ONCE]);
        // SAFETY: the caller's promise.
        unsafe {
            for at in 0..AT_ONCE {
                x_rows[at] = x_rows[at].add(candidates[at].row as usize * width);
                w_rows[at] = w_rows[at].add(candidates[at].feature as usize * width);
            }
            *products = dots::<V, VECTORS, FMA, AT_ONCE>(x_rows, w_rows, next_x, width);
        }
    }
    for (product, candidate) in product_rest.iter_mut().zip(rest) {
        // SAFETY: as above.
        unsafe {
            let x_row = x.as_ptr().add(candidate.row as usize * width);
            let w_row = weights.as_ptr().add(candidate.feature as usize * width);
            [*product] = dots::<V, VECTORS, FMA, 1>([x_row], [w_row], x_row, width);
        }
    }
}

/// x·w for each candidate into `products`; `x` and `weights` hold the rows of the group and of the panel.
fn products(
    isa: Isa,
    x: &[f32],
    weights: &[f32],
    width: usize,
    candidates: &[Candidate],
    products: &mut Vec<f32>,
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(x: &[f32], weights: &[f32], width: usize, candidates: &[Candidate], products: &mut [f32]) {
        // SAFETY: this function's own features; the candidates are checked below.
        unsafe { products_by::<std::arch::x86_64::__m256, 2, true>(x, weights, width, candidates, products) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn avx512(x: &[f32], weights: &[f32], width: usize, candidates: &[Candidate], products: &mut [f32]) {
        // SAFETY: as above.
        unsafe { products_by::<std::arch::x86_64::__m512, 1, true>(x, weights, width, candidates, products) }
    }

    let (rows, features) = (x.len() / width, weights.len() / width);
    let exists = |at: &Candidate| (at.row as usize) < rows && (at.feature as usize) < features;
    assert!(candidates.iter().all(exists), "candidates lie within the group and the panel");
    products.resize(candidates.len(), 0.0);
    match isa.level() {
        // SAFETY: plain Rust runs everywhere.
        Level::Portable => unsafe {
            products_by::<Plain, 2, PORTABLE_FMA>(x, weights, width, candidates, products)
        },
        // SAFETY: an Isa of this level is only made where the CPU has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(x, weights, width, candidates, products) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(x, weights, width, candidates, products) },
        // SAFETY: every aarch64 CPU has NEON.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe {
            products_by::<std::arch::aarch64::float32x4_t, 4, true>(x, weights, width, candidates, products)
        },
    }
}

/// Memory for [`recheck`].
#[derive(Debug, Default)]
pub(crate) struct Memory {
    candidates: Vec<Candidate>,
    products: Vec<f32>,
}

/// z of one pair as the plain tile forms it.
pub(crate) fn z_in_order(isa: Isa, input: &Encode<'_>, row: usize, feature: usize) -> f32 {
    let width = input.width;
    let (x, w) = (&input.x[row * width..][..width], &input.weights[feature * width..][..width]);
    in_order(isa, x, w, input.bias[feature])
}

/// Appends the pairs of the rows `group` × `features` whose z is above the cutoff among the candidates found for them.
pub(crate) fn recheck(
    isa: Isa,
    input: &Encode<'_>,
    above: Cutoff<'_>,
    screened: &Screened,
    group: Range<usize>,
    features: Range<usize>,
    found: &Candidates,
    memory: &mut Memory,
    pairs: &mut Vec<Pair>,
) {
    let width = input.width;
    let x = &input.x[group.start * width..group.end * width];
    let weights = &input.weights[features.start * width..features.end * width];
    let biases = &input.bias[features.clone()];
    let row_bounds = &screened.rows.bounds[group.clone()];
    let bounds = &screened.weights.bounds[features.start / BOUND_LANES..];
    let Memory { candidates, products: sums } = memory;
    found.list(candidates);
    products(isa, x, weights, width, candidates, sums);
    // Every candidate is written and only the active ones stay: which they are can't be guessed.
    let mut end = pairs.len();
    pairs.resize(end + candidates.len(), Pair { row: 0, feature: 0, value: 0.0 });
    for (candidate, product) in candidates.iter().zip(&*sums) {
        let (row, feature) = (candidate.row as usize, candidate.feature as usize);
        let bias = biases[feature];
        let norm = bounds[feature / BOUND_LANES].norm[feature % BOUND_LANES];
        let uncertain = row_bounds[row].rounding * norm + rounding_of_sums(width) * bias.abs() + 1e-35;
        let cutoff = above.of_row(group.start + row) * above.of_feature(features.start + feature);
        let mut value = product + bias;
        let mut above = value > cutoff;
        let certain = (value - cutoff).abs() > uncertain;
        if !certain {
            let z = in_order(isa, &x[row * width..][..width], &weights[feature * width..][..width], bias);
            above = z > cutoff;
            // Otherwise the value stays, so that it does not depend on cutoffs that were guessed.
            if value <= 0.0 || !value.is_finite() {
                value = z;
            }
        }
        let (row, feature) = (group.start + row, features.start + feature);
        pairs[end] = Pair { row: row as u32, feature: feature as u32, value };
        end += usize::from(above);
    }
    pairs.truncate(end);
}
