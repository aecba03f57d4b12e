//! `encode`: a = ReLU(X·W_enc + b_enc), X [B,d], W_enc held as [F,d].
//!
//! The product stays in registers: bias, ReLU and compaction happen before anything is written, so
//! that a sparse batch never makes a B×F array. One task computes a block of rows × a panel of
//! features; it packs its panel (feature-interleaved, for the tile) into a buffer that fits the second
//! cache level, once for all its rows. Cost: 2·B·F·d operations, one reading of W_enc per block of rows.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::isa::{Isa, Level};
use super::pairs::{ActivePairs, Block, Pair, ROW_GROUP};
use super::tile::{self, Lanes, Plain};

/// Rows of a block, a multiple of [`ROW_GROUP`].
const ROW_BLOCK: usize = 32 * ROW_GROUP;

/// Numbers in a packed panel: 256 KiB, half of a usual second cache level or less.
const PANEL_NUMBERS: usize = 64 * 1024;

/// Panels are a multiple of this many features, which every tile's width divides.
const FEATURE_GROUP: usize = 48;

/// The inputs of an encode.
#[derive(Debug, Clone, Copy)]
pub struct Encode<'a> {
    /// X, or X − b_dec with the pre-bias: [B,d].
    pub x: &'a [f32],
    /// W_enc transposed: [F,d].
    pub weights: &'a [f32],
    /// b_enc, [F].
    pub bias: &'a [f32],
    /// d.
    pub width: usize,
}

/// Memory that encodes of one size share.
#[derive(Debug, Default)]
pub struct EncodeBuffers {
    blocks: Vec<Vec<Block>>,
}

impl Encode<'_> {
    fn rows(&self) -> usize {
        self.x.len() / self.width
    }

    fn features(&self) -> usize {
        self.bias.len()
    }

    /// Features per panel: fixed by the sizes alone, so that results do not depend on the threads.
    fn panel(&self) -> usize {
        (PANEL_NUMBERS / self.width / FEATURE_GROUP).clamp(1, 8) * FEATURE_GROUP
    }

    /// The panel's weights for the tile: for each group of `tile_width` features, for each k, their
    /// weights side by side; zeros (and a bias of 0) fill the last group, which leaves z = 0 there.
    fn pack(&self, features: std::ops::Range<usize>, tile_width: usize) -> Packed {
        let groups = features.len().div_ceil(tile_width);
        let mut weights = vec![0.0; groups * tile_width * self.width];
        let mut bias = vec![0.0; groups * tile_width];
        bias[..features.len()].copy_from_slice(&self.bias[features.clone()]);
        for (at, row) in self.weights[features.start * self.width..features.end * self.width]
            .chunks_exact(self.width)
            .enumerate()
        {
            let group = &mut weights[at / tile_width * tile_width * self.width..];
            for (to, weight) in group[at % tile_width..].iter_mut().step_by(tile_width).zip(row) {
                *to = *weight;
            }
        }
        Packed { weights, bias }
    }
}

struct Packed {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// The active pairs of the batch into `pairs`, unless there are more than `limit`: then false, and
/// `pairs` holds nothing of use.
pub fn encode_sparse(
    isa: Isa,
    input: Encode<'_>,
    limit: usize,
    buffers: &mut EncodeBuffers,
    pairs: &mut ActivePairs,
) -> bool {
    let (rows, features, panel) = (input.rows(), input.features(), input.panel());
    let row_blocks = rows.div_ceil(ROW_BLOCK);
    buffers.blocks.resize_with(features.div_ceil(panel), Vec::new);
    // The count only grows, so whether it passes the limit does not depend on the threads' order.
    let found = AtomicUsize::new(0);
    buffers.blocks.par_iter_mut().enumerate().for_each(|(p, panel_blocks)| {
        panel_blocks.resize_with(row_blocks, Block::default);
        let columns = p * panel..((p + 1) * panel).min(features);
        panel_blocks.par_iter_mut().enumerate().for_each(|(r, block)| {
            block.pairs.clear();
            if found.load(Ordering::Relaxed) <= limit {
                let lines = r * ROW_BLOCK..((r + 1) * ROW_BLOCK).min(rows);
                find_pairs(isa, &input, lines, columns.clone(), block);
                found.fetch_add(block.pairs.len(), Ordering::Relaxed);
            }
        });
    });
    if found.into_inner() > limit {
        buffers.blocks.clear();
        return false;
    }
    pairs.sort(&buffers.blocks, rows, features, ROW_BLOCK, panel);
    true
}

/// The activations into `activations` [B,F], zeros included.
pub fn encode_dense(isa: Isa, input: Encode<'_>, activations: &mut [f32]) {
    let (rows, features, panel) = (input.rows(), input.features(), input.panel());
    assert_eq!(activations.len(), rows * features, "activations are [B,F]");
    let panels = features.div_ceil(panel);
    let out = Output(activations.as_mut_ptr());
    (0..panels * rows.div_ceil(ROW_BLOCK)).into_par_iter().for_each(|task| {
        let (r, p) = (task / panels, task % panels);
        let lines = r * ROW_BLOCK..((r + 1) * ROW_BLOCK).min(rows);
        let columns = p * panel..((p + 1) * panel).min(features);
        write_block(isa, &input, lines, columns, &out);
    });
}

/// The dense output, of which each task writes its own rows and columns.
struct Output(*mut f32);

// SAFETY: tasks write disjoint elements, and the borrow of the slice outlives them.
unsafe impl Sync for Output {}

/// What to do with the finished tiles.
trait Epilogue {
    /// Before a strip of rows.
    fn begin_strip(&mut self, first_row: usize);
    /// Takes MR×NV vectors that begin at (row, feature); only `rows` rows and `features` features count.
    ///
    /// # Safety
    /// The CPU must have V's instruction set.
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        at: (usize, usize),
        rows: usize,
        features: usize,
    );
}

struct Collect<'a> {
    block: &'a mut Block,
    first_row: usize,
}

impl Epilogue for Collect<'_> {
    #[inline(always)]
    fn begin_strip(&mut self, first_row: usize) {
        if (first_row - self.first_row).is_multiple_of(ROW_GROUP) {
            self.block.group_starts.push(self.block.pairs.len());
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        (row, feature): (usize, usize),
        rows: usize,
        _features: usize,
    ) {
        let mut values = [0.0; 16];
        for m in 0..rows.min(MR) {
            for v in 0..NV {
                // SAFETY: the caller's promise; sixteen numbers hold any vector.
                let mut mask = unsafe { sums[m][v].positive() };
                if mask != 0 {
                    // SAFETY: as above.
                    unsafe { sums[m][v].store(values.as_mut_ptr()) };
                    while mask != 0 {
                        let lane = mask.trailing_zeros();
                        mask &= mask - 1;
                        self.block.pairs.push(Pair {
                            row: (row + m) as u32,
                            feature: (feature + v * V::COUNT) as u32 + lane,
                            value: values[lane as usize],
                        });
                    }
                }
            }
        }
    }
}

struct Write<'a> {
    out: &'a Output,
    stride: usize,
}

impl Epilogue for Write<'_> {
    #[inline(always)]
    fn begin_strip(&mut self, _first_row: usize) {}

    #[inline(always)]
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        (row, feature): (usize, usize),
        rows: usize,
        features: usize,
    ) {
        for m in 0..rows.min(MR) {
            for v in 0..NV {
                let first = v * V::COUNT;
                let count = features.saturating_sub(first).min(V::COUNT);
                let mut values = [0.0; 16];
                // SAFETY: sixteen numbers hold any vector; (row + m, feature + first ..+ count) lies in
                // the task's own part of the output.
                unsafe {
                    let to = self.out.0.add((row + m) * self.stride + feature + first);
                    if count == V::COUNT {
                        sums[m][v].relu().store(to);
                    } else {
                        sums[m][v].relu().store(values.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
                    }
                }
            }
        }
    }
}

fn find_pairs(
    isa: Isa,
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    block: &mut Block,
) {
    block.group_starts.clear();
    let mut collect = Collect { first_row: rows.start, block };
    product_of_block(isa, input, rows, features, &mut collect);
    block.group_starts.push(block.pairs.len());
}

fn write_block(
    isa: Isa,
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    out: &Output,
) {
    let mut write = Write { out, stride: input.features() };
    product_of_block(isa, input, rows, features, &mut write);
}

/// Runs the tiles of a block of rows × a panel of features and hands each to the epilogue.
fn product_of_block<E: Epilogue>(
    isa: Isa,
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    epilogue: &mut E,
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<E: Epilogue>(
        input: &Encode<'_>,
        rows: std::ops::Range<usize>,
        features: std::ops::Range<usize>,
        epilogue: &mut E,
    ) {
        // 6×2 sums, 2 weights and 1 broadcast fill 15 of the 16 registers.
        // SAFETY: this function's own features.
        unsafe { tiles::<std::arch::x86_64::__m256, E, 6, 2>(input, rows, features, epilogue) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn avx512<E: Epilogue>(
        input: &Encode<'_>,
        rows: std::ops::Range<usize>,
        features: std::ops::Range<usize>,
        epilogue: &mut E,
    ) {
        // 8×3 sums, 3 weights and 1 broadcast fill 28 of the 32 registers.
        // SAFETY: this function's own features.
        unsafe { tiles::<std::arch::x86_64::__m512, E, 8, 3>(input, rows, features, epilogue) }
    }

    match isa.level() {
        // SAFETY: plain Rust runs everywhere.
        Level::Portable => unsafe { tiles::<Plain, E, 4, 1>(input, rows, features, epilogue) },
        // SAFETY: an Isa of this level is only made where the CPU has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(input, rows, features, epilogue) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(input, rows, features, epilogue) },
    }
}

/// # Safety
/// The CPU must have V's instruction set.
#[inline(always)]
unsafe fn tiles<V: Lanes, E: Epilogue, const MR: usize, const NV: usize>(
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    epilogue: &mut E,
) {
    const { assert!(ROW_GROUP.is_multiple_of(MR) && FEATURE_GROUP.is_multiple_of(NV * V::COUNT)) };
    let (tile_width, depth) = (NV * V::COUNT, input.width);
    let packed = input.pack(features.clone(), tile_width);
    for row in rows.clone().step_by(MR) {
        epilogue.begin_strip(row);
        // A short last strip computes its last row several times and drops the copies.
        let height = MR.min(rows.end - row);
        let pointers: [*const f32; MR] =
            std::array::from_fn(|m| input.x[(row + m.min(height - 1)) * depth..].as_ptr());
        for first in (0..features.len()).step_by(tile_width) {
            // SAFETY: each row holds `depth` numbers; a group's packed weights begin at first·depth and its
            // bias at first; the instruction set is the caller's promise.
            unsafe {
                let sums = tile::product::<V, MR, NV>(
                    pointers,
                    depth,
                    packed.weights.as_ptr().add(first * depth),
                    packed.bias.as_ptr().add(first),
                );
                let at = (row, features.start + first);
                epilogue.tile(&sums, at, height, features.len() - first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in (-1, 1) without a pattern that a wrong index could keep.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// z by the definition: the bias, then one product after the other, in float32.
    fn definition(input: &Encode<'_>, fused: bool) -> Vec<f32> {
        let mut z = Vec::new();
        for x in input.x.chunks_exact(input.width) {
            for (weights, bias) in input.weights.chunks_exact(input.width).zip(input.bias) {
                z.push(
                    x.iter().zip(weights).fold(
                        *bias,
                        |sum, (x, w)| {
                            if fused { x.mul_add(*w, sum) } else { x * w + sum }
                        },
                    ),
                );
            }
        }
        z
    }

    const SIZES: [(usize, usize, usize); 7] =
        [(1, 1, 1), (5, 3, 17), (48, 8, 48), (49, 7, 50), (131, 33, 97), (1537, 2, 33), (10, 1500, 101)];

    #[test]
    fn dense_activations_equal_the_definition_bit_for_bit_on_every_instruction_set() {
        for (rows, width, features) in SIZES {
            let (x, weights) = (numbers(rows * width, 1), numbers(features * width, 2));
            let bias = numbers(features, 3);
            let input = Encode { x: &x, weights: &weights, bias: &bias, width };
            for isa in Isa::available() {
                let fused = isa.level() != Level::Portable || super::super::isa::PORTABLE_FMA;
                let expected: Vec<f32> = definition(&input, fused).iter().map(|z| z.max(0.0)).collect();
                let mut got = vec![f32::NAN; rows * features];
                encode_dense(isa, input, &mut got);
                assert_eq!(got, expected, "{} {rows} {width} {features}", isa.name());
            }
        }
    }

    #[test]
    fn sparse_lists_hold_exactly_the_dense_activations_in_both_orders() {
        for (rows, width, features) in SIZES {
            let (x, weights) = (numbers(rows * width, 4), numbers(features * width, 5));
            let bias: Vec<f32> = numbers(features, 6).iter().map(|b| b - 0.5).collect();
            let input = Encode { x: &x, weights: &weights, bias: &bias, width };
            for isa in Isa::available() {
                let mut dense = vec![0.0; rows * features];
                encode_dense(isa, input, &mut dense);
                let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
                // The second call reuses the first one's memory.
                for _ in 0..2 {
                    assert!(encode_sparse(isa, input, rows * features, &mut buffers, &mut pairs));
                }
                for row in 0..rows {
                    let line = &dense[row * features..][..features];
                    let (indices, values) = pairs.of_row(row);
                    let expected: Vec<(u32, f32)> =
                        (0..features).filter(|j| line[*j] > 0.0).map(|j| (j as u32, line[j])).collect();
                    let got: Vec<(u32, f32)> = indices.iter().copied().zip(values.iter().copied()).collect();
                    assert_eq!(got, expected, "{} row {row}", isa.name());
                }
                for feature in 0..features {
                    let (indices, values) = pairs.of_feature(feature);
                    let expected: Vec<(u32, f32)> = (0..rows)
                        .map(|i| (i as u32, dense[i * features + feature]))
                        .filter(|(_, a)| *a > 0.0)
                        .collect();
                    let got: Vec<(u32, f32)> = indices.iter().copied().zip(values.iter().copied()).collect();
                    assert_eq!(got, expected, "{} feature {feature}", isa.name());
                }
            }
        }
    }

    #[test]
    fn more_pairs_than_the_limit_are_refused_and_just_as_many_are_not() {
        let (rows, width, features) = (100, 4, 130);
        let (x, weights, bias) =
            (numbers(rows * width, 7), numbers(features * width, 8), numbers(features, 9));
        let input = Encode { x: &x, weights: &weights, bias: &bias, width };
        let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
        let isa = Isa::detect();
        assert!(encode_sparse(isa, input, rows * features, &mut buffers, &mut pairs));
        let count = pairs.len();
        assert!(count > 1000);
        assert!(!encode_sparse(isa, input, count - 1, &mut buffers, &mut pairs));
        assert!(encode_sparse(isa, input, count, &mut buffers, &mut pairs));
        assert_eq!(pairs.len(), count);
    }

    #[test]
    fn nan_and_negative_zero_are_not_active() {
        let (x, weights) = ([1.0, f32::NAN], [0.0]);
        let bias = [-0.0];
        let input = Encode { x: &x, weights: &weights, bias: &bias, width: 1 };
        let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
        for isa in Isa::available() {
            assert!(encode_sparse(isa, input, 2, &mut buffers, &mut pairs));
            assert!(pairs.is_empty());
        }
    }
}
