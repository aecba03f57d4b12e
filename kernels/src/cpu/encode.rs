//! `encode`: z = X·W_enc + b_enc where it is above a cutoff, 0 for ReLU; X [B,d], W_enc stored as [F,d].
//!
//! The product stays in registers: bias, comparison and compaction happen before anything is written, so a sparse batch never
//! makes a B×F array. One task computes a block of rows × a panel of features. It packs its panel (feature-interleaved, for
//! the tile) once for all its rows, into a buffer that fits the second cache level. (With screening, it reads weights that
//! were rounded and packed once for all tasks.) Cost: 2·B·F·d operations, and one reading of W_enc per block of rows.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::isa::{Isa, Level};
pub use super::operands::{Cutoff, Encode};
use super::pairs::{ActivePairs, Block, Pair, ROW_GROUP, RowPairs};
use super::screen::{self, Candidates, Moments, RecheckMemory, Screened};

pub use super::screen::Grid;
use super::tile::{self, Lanes, Plain};
use super::transpose::transpose_columns;

/// Rows of a block, a multiple of [`ROW_GROUP`].
const ROW_BLOCK: usize = 16 * ROW_GROUP;

/// Numbers in a panel, about: 512 KiB, half of a usual second cache level.
const PANEL_NUMBERS: usize = 128 * 1024;

/// Panels are a multiple of this many features, which every tile's width divides.
const FEATURE_GROUP: usize = 96;

/// Memory that encodes of one size share.
#[derive(Debug, Default)]
pub struct EncodeBuffers {
    blocks: Vec<Vec<Block>>,
    screened: Screened,
}

/// How the active pairs are found. The set is the same either way, values agree within rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// By the float32 product of all pairs.
    Plain,
    /// By [screening](super::screen) where the instruction set has a tile for it and few enough pairs pass, on the
    /// grid that promises the shortest time.
    Screened,
    /// By screening on this grid, however many pairs pass; by the plain product where there is no tile for it.
    ScreenedOn(Grid),
}

/// What an encode that found few enough pairs reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Pairs that screening could not rule out and that were recomputed in float32.
    pub rechecked: usize,
    /// Whether there was a screening; without one, z are the plain product's bit for bit.
    pub screened: bool,
}

/// Beyond this width the screening's sums could leave their 32 bits.
const LARGEST_SCREENED_WIDTH: usize = 1 << 16;

/// Rows on which screening is tried, to see whether it pays; a multiple of [`ROW_GROUP`].
const TRIAL_ROWS: usize = ROW_GROUP;

impl EncodeBuffers {
    /// Has the next search read what another one has formed of the same rows.
    pub(crate) fn set_moments(&mut self, moments: Option<Arc<Moments>>) {
        self.screened.moments = moments;
    }

    /// What the last search formed of its rows.
    pub(crate) fn take_moments(&mut self) -> Option<Arc<Moments>> {
        self.screened.moments.take()
    }

    /// By how much at most each row's z, as the search that reports `found` left them, differ from the plain product's: [B].
    pub(crate) fn margins(&self, input: &Encode<'_>, found: Found, margins: &mut Vec<f32>) {
        margins.clear();
        if found.screened {
            self.screened.margins(input, margins);
        } else {
            margins.resize(input.rows(), 0.0);
        }
    }
}

impl Encode<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.x.len() / self.width
    }

    pub(crate) fn features(&self) -> usize {
        self.bias.len()
    }

    /// The given rows of X one after another.
    pub(crate) fn gather(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|row| &self.x[row * self.width..][..self.width]).copied().collect()
    }

    /// Features per panel: fixed by the sizes and the instruction set, so that results do not depend on the threads.
    fn panel(&self, isa: Isa) -> usize {
        // With matrix units the second cache level is larger, and what is read outside it counts more.
        let numbers = if isa.matrix_units().is_some() { 2 * PANEL_NUMBERS } else { PANEL_NUMBERS };
        let group = FEATURE_GROUP * self.width;
        ((numbers + group / 2) / group).clamp(1, 4) * FEATURE_GROUP
    }

    /// The panel's weights for the tile: for each group of `tile_width` features, for each k, their
    /// weights side by side; zeros (and a bias of 0) fill the last group, which leaves z = 0 there.
    fn pack(&self, isa: Isa, features: std::ops::Range<usize>, tile_width: usize, packed: &mut Packed) {
        let groups = features.len().div_ceil(tile_width);
        let Packed { weights, bias } = packed;
        weights.resize(groups * tile_width * self.width, 0.0);
        bias.resize(groups * tile_width, 0.0);
        bias[..features.len()].copy_from_slice(&self.bias[features.clone()]);
        bias[features.len()..].fill(0.0);
        let size = tile_width * self.width;
        let rows = &self.weights[features.start * self.width..features.end * self.width];
        for (group, rows) in weights.chunks_exact_mut(size).zip(rows.chunks(size)) {
            if rows.len() == size {
                transpose_columns(isa, rows, self.width, 0, tile_width, group);
                continue;
            }
            let count = rows.len() / self.width;
            for (k, together) in group.chunks_exact_mut(tile_width).enumerate() {
                for (at, to) in together.iter_mut().enumerate() {
                    *to = if at < count { rows[at * self.width + k] } else { 0.0 };
                }
            }
        }
    }
}

thread_local! {
    /// Each worker's packed panel: kept, because a fresh one costs more in page faults than in packing.
    static PACKED: RefCell<Packed> = RefCell::default();
}

#[derive(Default)]
struct Packed {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// Puts the pairs of the batch that are above 0 into `pairs`. If there are more than `limit`, returns None, and
/// `pairs` holds nothing of use.
pub fn encode_sparse(
    isa: Isa,
    input: Encode<'_>,
    search: Search,
    limit: usize,
    buffers: &mut EncodeBuffers,
    pairs: &mut ActivePairs,
) -> Option<Found> {
    let found = find(isa, input, Cutoff::Zero, search, limit, buffers)?;
    pairs.sort(&buffers.blocks, input.rows(), input.features(), ROW_BLOCK, input.panel(isa));
    Some(found)
}

/// Puts the pairs of the batch whose z is above its cutoff into `pairs`. If there are more than `limit`, returns None, and
/// `pairs` holds nothing of use.
pub fn encode_above(
    isa: Isa,
    input: Encode<'_>,
    above: Cutoff<'_>,
    search: Search,
    limit: usize,
    buffers: &mut EncodeBuffers,
    pairs: &mut RowPairs,
) -> Option<Found> {
    let found = find(isa, input, above, search, limit, buffers)?;
    pairs.sort(&buffers.blocks, input.rows(), ROW_BLOCK);
    Some(found)
}

/// As [`encode_above`] without a limit, of any rows with the weights of the search that reported `first`: where it screened, they
/// are rounded already.
pub(crate) fn encode_more(
    isa: Isa,
    input: Encode<'_>,
    above: Cutoff<'_>,
    first: Found,
    buffers: &mut EncodeBuffers,
    pairs: &mut RowPairs,
) -> Found {
    let EncodeBuffers { blocks, screened } = buffers;
    let screened = first.screened.then(|| {
        screen::round_rows(isa, screened, &input, above);
        &*screened
    });
    let found = find_in_blocks(isa, input, above, screened, usize::MAX, blocks).expect("there is no limit");
    pairs.sort(blocks, input.rows(), ROW_BLOCK);
    found
}

/// Finds pairs.
fn find(
    isa: Isa,
    input: Encode<'_>,
    above: Cutoff<'_>,
    search: Search,
    limit: usize,
    buffers: &mut EncodeBuffers,
) -> Option<Found> {
    let EncodeBuffers { blocks, screened } = buffers;
    let possible = input.width <= LARGEST_SCREENED_WIDTH;
    let screened = match search {
        Search::Screened if possible => choose_grid(isa, &input, above, screened),
        Search::ScreenedOn(grid) if possible && screen::available(isa, grid) => {
            screened.choose_columns(isa, &input);
            screen::round(isa, screened, &input, above, grid, input.rows(), input.features());
            Some(&*screened)
        }
        _ => None,
    };
    find_in_blocks(isa, input, above, screened, limit, blocks)
}

/// Finds pairs block by block.
fn find_in_blocks(
    isa: Isa,
    input: Encode<'_>,
    above: Cutoff<'_>,
    screened: Option<&Screened>,
    limit: usize,
    blocks: &mut Vec<Vec<Block>>,
) -> Option<Found> {
    let (rows, features, panel) = (input.rows(), input.features(), input.panel(isa));
    let row_blocks = rows.div_ceil(ROW_BLOCK);
    blocks.resize_with(features.div_ceil(panel), Vec::new);
    // The count only grows, so whether it passes the limit does not depend on the threads' order.
    let found = AtomicUsize::new(0);
    blocks.par_iter_mut().enumerate().for_each(|(p, panel_blocks)| {
        panel_blocks.resize_with(row_blocks, Block::default);
        let columns = p * panel..((p + 1) * panel).min(features);
        panel_blocks.par_iter_mut().enumerate().for_each(|(r, block)| {
            block.clear();
            if found.load(Ordering::Relaxed) <= limit {
                let lines = r * ROW_BLOCK..((r + 1) * ROW_BLOCK).min(rows);
                find_pairs(isa, &input, above, screened, lines, columns.clone(), block);
                found.fetch_add(block.pairs.len(), Ordering::Relaxed);
            }
        });
    });
    if found.into_inner() > limit {
        blocks.clear();
        return None;
    }
    let rechecked = blocks.iter().flatten().map(|block| block.rechecked).sum();
    Some(Found { rechecked, screened: screened.is_some() })
}

/// Fills `out` [B,F] with max(z, 0).
pub fn encode_dense(isa: Isa, input: Encode<'_>, out: &mut [f32]) {
    write_dense(isa, input, Factors::Float32, true, out);
}

/// Fills `out` [B,F] with z.
pub fn preactivations(isa: Isa, input: Encode<'_>, out: &mut [f32]) {
    write_dense(isa, input, Factors::Float32, false, out);
}

/// As [`encode_dense`], of rows and weights that are bfloat16 numbers: only their upper halves count.
///
/// Where the CPU has AVX512_BF16 its products take half the time, and z is within rounding of the other function's: the
/// same products are added up in float32 in another order, and subnormal numbers count as 0. Elsewhere it is the same.
pub fn encode_dense_bf16(isa: Isa, input: Encode<'_>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::bf16::available(isa) {
        let pairs = |numbers| super::bf16::pairs(numbers, input.width);
        let (x, weights) = (pairs(input.x), pairs(input.weights));
        let width = input.width.div_ceil(2);
        let input = Encode { x: &x, weights: &weights, bias: input.bias, width };
        return write_dense(isa, input, Factors::PairsOfBf16, true, out);
    }
    encode_dense(isa, input, out);
}

/// What a float's place in an encode's rows and weights holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factors {
    Float32,
    /// Two columns in bfloat16. Only where the CPU has instructions for them.
    #[cfg(target_arch = "x86_64")]
    PairsOfBf16,
}

/// Fills `out` [B,F] with z, or with max(z, 0) if only what is `positive` is asked for.
fn write_dense(isa: Isa, input: Encode<'_>, factors: Factors, positive: bool, out: &mut [f32]) {
    let (rows, features, panel) = (input.rows(), input.features(), input.panel(isa));
    assert_eq!(out.len(), rows * features, "the output is [B,F]");
    let panels = features.div_ceil(panel);
    let out = Output(out.as_mut_ptr());
    (0..panels * rows.div_ceil(ROW_BLOCK)).into_par_iter().for_each(|task| {
        let (r, p) = (task / panels, task % panels);
        let lines = r * ROW_BLOCK..((r + 1) * ROW_BLOCK).min(rows);
        let columns = p * panel..((p + 1) * panel).min(features);
        let mut write = Write { out: &out, stride: features, positive };
        product_of_block(isa, factors, &input, lines, columns, &mut write);
    });
}

/// The dense output, of which each task writes its own rows and columns.
struct Output(*mut f32);

// SAFETY: tasks write disjoint elements, and the borrow of the slice outlives them.
unsafe impl Sync for Output {}

/// What to do with the finished tiles.
trait Epilogue {
    /// Before a panel of features, in tiles of `tile_width`.
    fn begin_panel(&mut self, features: &std::ops::Range<usize>, tile_width: usize) {
        let _ = (features, tile_width);
    }
    /// Before a strip of rows.
    fn begin_strip(&mut self, first_row: usize);
    /// Takes MR×NV vectors that begin at (row, feature) and at `column` of the panel; only `rows` rows and `features`
    /// features count.
    ///
    /// # Safety
    /// The CPU must have V's instruction set.
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        at: (usize, usize),
        column: usize,
        rows: usize,
        features: usize,
    );
}

struct Collect<'a> {
    above: Cutoff<'a>,
    /// The features' factors of the cutoff, padded to whole tiles.
    cutoffs: Vec<f32>,
    block: &'a mut Block,
}

impl Epilogue for Collect<'_> {
    fn begin_panel(&mut self, features: &std::ops::Range<usize>, tile_width: usize) {
        self.cutoffs.clear();
        self.cutoffs.extend(features.clone().map(|feature| self.above.of_feature(feature)));
        // What only fills the tile is never found.
        self.cutoffs.resize(features.len().next_multiple_of(tile_width), f32::NAN);
    }

    #[inline(always)]
    fn begin_strip(&mut self, first_row: usize) {
        // Blocks begin at multiples of a group.
        if first_row.is_multiple_of(ROW_GROUP) {
            self.block.begin_group();
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        (row, feature): (usize, usize),
        column: usize,
        rows: usize,
        _features: usize,
    ) {
        let mut values = [0.0; 16];
        for m in 0..rows.min(MR) {
            let of_row = self.above.of_row(row + m);
            for v in 0..NV {
                // SAFETY: the caller's promise; sixteen numbers hold any vector, and a panel has cutoffs for whole tiles.
                let mut mask = unsafe {
                    let cutoff = V::load(self.cutoffs.as_ptr().add(column + v * V::COUNT));
                    sums[m][v].above(cutoff.times(V::splat(of_row)))
                };
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
    /// Whether max(z, 0) is written, not z.
    positive: bool,
}

impl Epilogue for Write<'_> {
    #[inline(always)]
    fn begin_strip(&mut self, _first_row: usize) {}

    #[inline(always)]
    unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
        &mut self,
        sums: &[[V; NV]; MR],
        (row, feature): (usize, usize),
        _column: usize,
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
                    let vector = if self.positive { sums[m][v].relu() } else { sums[m][v] };
                    if count == V::COUNT {
                        vector.store(to);
                    } else {
                        vector.store(values.as_mut_ptr());
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
    above: Cutoff<'_>,
    screened: Option<&Screened>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    block: &mut Block,
) {
    if let Some(screened) = screened {
        screen_block(isa, input, above, screened, rows, features, block);
    } else {
        let mut collect = Collect { above, cutoffs: Vec::new(), block };
        product_of_block(isa, Factors::Float32, input, rows, features, &mut collect);
    }
    block.begin_group();
}

thread_local! {
    /// Each worker's memory for screening.
    static SCREENING: RefCell<Screening> = RefCell::default();
}

#[derive(Default)]
struct Screening {
    candidates: Candidates,
    recheck: RecheckMemory,
}

/// Rounds the batch and the weights to the grid that promises the shortest encode; None if the plain product is faster.
///
/// The shares of pairs that the grids leave are tried on the first rows and the first panel: a function of the inputs
/// alone, as all results are.
fn choose_grid<'a>(
    isa: Isa,
    input: &Encode<'_>,
    above: Cutoff<'_>,
    screened: &'a mut Screened,
) -> Option<&'a Screened> {
    let costs = screen::costs(isa)?;
    screened.choose_columns(isa, input);
    let (mut best, mut least) = (None, 1.0);
    for (grid, product) in costs.grids {
        // No grid leaves fewer than none.
        if *product > least {
            break;
        }
        let cost = product + costs.recheck * candidate_share(isa, input, above, *grid, screened);
        if cost <= least {
            (best, least) = (Some(*grid), cost);
        }
    }
    screen::round(isa, screened, input, above, best?, input.rows(), input.features());
    Some(screened)
}

/// The share of the pairs that screening leaves, of the first rows and the first panel.
fn candidate_share(
    isa: Isa,
    input: &Encode<'_>,
    above: Cutoff<'_>,
    grid: Grid,
    screened: &mut Screened,
) -> f64 {
    let (rows, features) = (input.rows().min(TRIAL_ROWS), input.features().min(input.panel(isa)));
    screen::round(isa, screened, input, above, grid, rows, features);
    let mut candidates = Candidates::default();
    let mut left = 0;
    for row in (0..rows).step_by(ROW_GROUP) {
        let group = row..(row + ROW_GROUP).min(rows);
        screen::find_candidates(isa, input, screened, group, 0..features, &mut candidates);
        left += candidates.count();
    }
    left as f64 / (rows * features) as f64
}

/// Finds a block's pairs among those that screening leaves.
fn screen_block(
    isa: Isa,
    input: &Encode<'_>,
    above: Cutoff<'_>,
    screened: &Screened,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    block: &mut Block,
) {
    let mut memory = SCREENING.take();
    let Screening { candidates, recheck } = &mut memory;
    for row in rows.clone().step_by(ROW_GROUP) {
        block.begin_group();
        let group = row..(row + ROW_GROUP).min(rows.end);
        screen::find_candidates(isa, input, screened, group.clone(), features.clone(), candidates);
        block.rechecked += candidates.count();
        screen::recheck(
            isa,
            input,
            above,
            screened,
            group,
            features.clone(),
            candidates,
            recheck,
            &mut block.pairs,
        );
    }
    SCREENING.set(memory);
}

/// Runs the tiles of a block of rows × a panel of features and hands each to the epilogue.
fn product_of_block<E: Epilogue>(
    isa: Isa,
    factors: Factors,
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    epilogue: &mut E,
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<E: Epilogue>(
        isa: Isa,
        input: &Encode<'_>,
        rows: std::ops::Range<usize>,
        features: std::ops::Range<usize>,
        epilogue: &mut E,
    ) {
        // 6×2 sums, 2 weights and 1 broadcast fill 15 of the 16 registers.
        // SAFETY: this function's own features.
        unsafe { tiles::<std::arch::x86_64::__m256, E, 6, 2>(isa, input, rows, features, epilogue) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn avx512<E: Epilogue>(
        isa: Isa,
        input: &Encode<'_>,
        rows: std::ops::Range<usize>,
        features: std::ops::Range<usize>,
        epilogue: &mut E,
    ) {
        // 8×3 sums, 3 weights and 1 broadcast fill 28 of the 32 registers.
        // SAFETY: this function's own features.
        unsafe { tiles::<std::arch::x86_64::__m512, E, 8, 3>(isa, input, rows, features, epilogue) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn avx512_bf16<E: Epilogue>(
        isa: Isa,
        input: &Encode<'_>,
        rows: std::ops::Range<usize>,
        features: std::ops::Range<usize>,
        epilogue: &mut E,
    ) {
        // SAFETY: this function's own features.
        unsafe { tiles::<super::bf16::SumsOfPairs, E, 8, 3>(isa, input, rows, features, epilogue) }
    }

    #[cfg(target_arch = "x86_64")]
    if factors == Factors::PairsOfBf16 {
        // SAFETY: there are such factors only where the CPU has these features.
        return unsafe { avx512_bf16(isa, input, rows, features, epilogue) };
    }
    debug_assert_eq!(factors, Factors::Float32);
    match isa.level() {
        // SAFETY: plain Rust runs everywhere.
        Level::Portable => unsafe { tiles::<Plain, E, 4, 1>(isa, input, rows, features, epilogue) },
        // SAFETY: an Isa of this level is only made where the CPU has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(isa, input, rows, features, epilogue) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(isa, input, rows, features, epilogue) },
        // 6×4 sums, 4 weights and 1 broadcast fill 29 of the 32 registers.
        // SAFETY: every aarch64 CPU has NEON.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe {
            tiles::<std::arch::aarch64::float32x4_t, E, 6, 4>(isa, input, rows, features, epilogue)
        },
    }
}

/// # Safety
/// The CPU must have V's instruction set.
#[inline(always)]
unsafe fn tiles<V: Lanes, E: Epilogue, const MR: usize, const NV: usize>(
    isa: Isa,
    input: &Encode<'_>,
    rows: std::ops::Range<usize>,
    features: std::ops::Range<usize>,
    epilogue: &mut E,
) {
    const { assert!(ROW_GROUP.is_multiple_of(MR) && FEATURE_GROUP.is_multiple_of(NV * V::COUNT)) };
    let (tile_width, depth) = (NV * V::COUNT, input.width);
    let mut packed = PACKED.take();
    input.pack(isa, features.clone(), tile_width, &mut packed);
    epilogue.begin_panel(&features, tile_width);
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
                epilogue.tile(&sums, at, first, height, features.len() - first);
            }
        }
    }
    PACKED.set(packed);
}

#[cfg(test)]
mod tests;
