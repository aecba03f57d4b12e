//! Rotates a vector, rounds it to integers times a step, and packs the integers for the tiles.

use crate::cpu::isa::{Isa, Level, madd, per_isa};
use crate::cpu::vector::dot_inline;

/// How finely screening rounds rows and weights.
///
/// A word of 32 bits holds the numbers of a group of columns: four of 8 bits or two of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grid {
    /// 8 bits, products added up in 32 (on AVX2 first in 16, which takes some of the 8 away).
    Bits8,
    /// 16 bits, products added up in 32.
    #[default]
    Bits16,
}

/// Columns whose products are added up in 16 bits, on the grid of 8.
pub(super) const BYTE_BLOCK: usize = 16;
/// Largest magnitude of a number on the grid of 8 bits.
const LARGEST_BYTE: f32 = 127.0;

/// What a tile's instructions ask of a row's numbers and of weights on the grid of 8 bits.
#[derive(Debug, Clone, Copy)]
struct ByteRange {
    /// Largest magnitude of a row's number.
    largest_row: f32,
    /// Added to a row's numbers.
    row_offset: i32,
    /// Largest sum of magnitudes of the eight weights that a lane of 16 bits adds up, half the columns of a
    /// [`BYTE_BLOCK`].
    largest_lane_sum: f32,
}

impl ByteRange {
    fn of(isa: Isa) -> ByteRange {
        match isa.level() {
            // VNNI wants its first factor unsigned and adds up in 32 bits.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if isa.has_vnni() => {
                ByteRange { largest_row: LARGEST_BYTE, row_offset: 128, largest_lane_sum: f32::INFINITY }
            }
            // Both factors signed, sums of 32 bits.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                ByteRange { largest_row: LARGEST_BYTE, row_offset: 0, largest_lane_sum: f32::INFINITY }
            }
            // `maddubs` wants its first factor unsigned, and 229·(71 + 72) fits 16 bits. With these limits rows and
            // weights lose about as much: larger numbers of rows leave less room for the weights.
            _ => ByteRange { largest_row: 71.0, row_offset: 72, largest_lane_sum: 229.0 },
        }
    }
}

/// Largest magnitude of a number on the grid of 16 bits.
const LARGEST_WORD: f32 = 32_000.0;
/// Largest norm of the integers of a vector on the grid of 16 bits: by Cauchy–Schwarz no sum of products then leaves 32
/// bits, not even halfway, rounding (half a unit per column, up to 2¹⁷ columns) included.
const LARGEST_WORD_NORM: f32 = 46_000.0;

/// Adding and subtracting 1.5·2²³ rounds a number of magnitude below 2²² to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;
/// Magnitudes below this count as zeros: their squares underflow.
const TINY: f32 = 1e-18;

impl Grid {
    /// Words of a vector of `width` numbers, zeros that fill the last block included.
    pub(crate) fn column_groups(self, width: usize) -> usize {
        match self {
            Grid::Bits8 => width.next_multiple_of(BYTE_BLOCK) / 4,
            Grid::Bits16 => width.div_ceil(2),
        }
    }
}

/// What rounding one vector gives.
pub(super) struct Rounded {
    /// One step.
    pub(super) step: f32,
    /// The vector's norm, or a little more.
    pub(super) norm: f32,
    /// The norm of the rounding residual, or a little more.
    pub(super) residual: f32,
    /// The rounded vector's norm, or a little more.
    pub(super) rounded_norm: f32,
}

/// Memory for rounding vectors of one width.
pub(super) struct Rounder {
    grid: Grid,
    bytes: ByteRange,
    /// As floats; zeros fill the last block.
    integers: Vec<f32>,
    words: Vec<u32>,
}

impl Rounder {
    pub(super) fn new(isa: Isa, grid: Grid, width: usize) -> Rounder {
        let groups = grid.column_groups(width);
        let per_group = if grid == Grid::Bits8 { 4 } else { 2 };
        Rounder {
            grid,
            bytes: ByteRange::of(isa),
            integers: vec![0.0; groups * per_group],
            words: vec![0; groups],
        }
    }

    /// The last vector's words.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// What a sum of products of the last weights begins with: takes out again what the rows' offset adds.
    pub(super) fn start(&self) -> i32 {
        match self.grid {
            Grid::Bits8 => -self.bytes.row_offset * self.integers.iter().sum::<f32>() as i32,
            Grid::Bits16 => 0,
        }
    }

    /// Rounds a row of X.
    pub(super) fn row(&mut self, isa: Isa, values: &[f32]) -> Rounded {
        let size = Size::of(isa, values);
        match self.grid {
            Grid::Bits16 => self.words_of(isa, values, &size),
            Grid::Bits8 => {
                let ByteRange { largest_row, row_offset, .. } = self.bytes;
                let step = size.largest / largest_row;
                let rounded = round(isa, values, &size, step, largest_row, &mut self.integers);
                pack_bytes(isa, &self.integers, row_offset as u8, &mut self.words);
                rounded
            }
        }
    }

    /// Rounds the weights of a feature.
    pub(super) fn weights(&mut self, isa: Isa, values: &[f32]) -> Rounded {
        let size = Size::of(isa, values);
        match self.grid {
            Grid::Bits16 => self.words_of(isa, values, &size),
            Grid::Bits8 => {
                // Rounding adds half a unit per number at most.
                let lane = largest_lane_sum(isa, values) / (self.bytes.largest_lane_sum - 4.0);
                let step = lane.max(size.largest / LARGEST_BYTE);
                let rounded = round(isa, values, &size, step, LARGEST_BYTE, &mut self.integers);
                pack_bytes(isa, &self.integers, 0, &mut self.words);
                rounded
            }
        }
    }

    /// Rounds to the grid of 16 bits.
    fn words_of(&mut self, isa: Isa, values: &[f32], size: &Size) -> Rounded {
        let step = (size.largest / LARGEST_WORD).max(size.norm / LARGEST_WORD_NORM);
        let rounded = round(isa, values, size, step, LARGEST_WORD, &mut self.integers);
        pack_words(isa, &self.integers, &mut self.words);
        rounded
    }
}

/// Numbers that [`spread`] rotates side by side.
const SIDE_BY_SIDE: usize = 16;
/// Most numbers that [`spread`] mixes.
const MIXED: usize = 32;

/// Rotates the vector by an orthogonal matrix that makes its numbers similar in size: Hadamard's, which mixes up to
/// [`MIXED`] numbers that lie [`SIDE_BY_SIDE`] apart; the last numbers of a vector, fewer than that, stay as they are.
///
/// Large numbers would coarsen the step of all others.
#[inline(always)]
pub(crate) fn spread(values: &mut [f32]) {
    let (mut rest, _) = values.as_chunks_mut::<SIDE_BY_SIDE>();
    while !rest.is_empty() {
        let count = (1 << rest.len().ilog2()).min(MIXED);
        let (block, after) = rest.split_at_mut(count);
        hadamard(block);
        rest = after;
    }
}

/// Multiplies by Hadamard's matrix of a power of two rows, the [`SIDE_BY_SIDE`] columns each on its own, divided by
/// the square root of the rows.
#[inline(always)]
fn hadamard(block: &mut [[f32; SIDE_BY_SIDE]]) {
    let mut half = 1;
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (first, second) in first.iter_mut().zip(second) {
                for at in 0..SIDE_BY_SIDE {
                    (first[at], second[at]) = (first[at] + second[at], first[at] - second[at]);
                }
            }
        }
        half *= 2;
    }
    let norm = 1.0 / (block.len() as f32).sqrt();
    block.iter_mut().flatten().for_each(|value| *value *= norm);
}

/// Writes line `at` of many into `packed`, where for each `height` lines and each group of columns the lines' words lie
/// side by side: a tile then reads one stream from front to back.
pub(super) fn interleave(line: &[u32], at: usize, height: usize, packed: &mut [u32]) {
    let tile = &mut packed[at / height * height * line.len()..];
    let places = tile[at % height..].iter_mut().step_by(height);
    places.zip(line).for_each(|(to, word)| *to = *word);
}

/// A vector's largest magnitude and its norm.
struct Size {
    largest: f32,
    /// Or a little more.
    norm: f32,
    /// What squares too small for float32 leave out of a norm.
    lost: f32,
}

impl Size {
    fn of(isa: Isa, values: &[f32]) -> Size {
        let (largest, square) = largest_and_square(isa, values);
        let lost = TINY * (values.len() as f32).sqrt();
        Size { largest, norm: square.sqrt() * 1.0001 + lost, lost }
    }
}

per_isa! {
    /// max |v|, Σ v².
    fn largest_and_square(values: &[f32]) -> (f32, f32) {
        let mut largest = [0.0f32; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for at in 0..16 {
                largest[at] = largest[at].max(chunk[at].abs());
            }
        }
        let largest = largest.iter().chain(rest).fold(0.0f32, |most, v| most.max(v.abs()));
        (largest, dot_inline::<FMA>(values, values))
    }
}

per_isa! {
    /// The largest sum of magnitudes that a lane of 16 bits adds up: of columns 0, 1, 4, 5, 8, 9, 12 and 13 of a block,
    /// or of the other ones.
    fn largest_lane_sum(values: &[f32]) -> f32 {
        let (blocks, rest) = values.as_chunks::<BYTE_BLOCK>();
        let mut last = [0.0; BYTE_BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        let mut largest = [0.0f32; 4];
        for block in blocks.iter().chain([&last]) {
            let mut sums = [0.0f32; 4];
            for four in block.as_chunks::<4>().0 {
                for at in 0..4 {
                    sums[at] += four[at].abs();
                }
            }
            // Each lane's sum twice.
            let lanes = [sums[0] + sums[1], sums[1] + sums[0], sums[2] + sums[3], sums[3] + sums[2]];
            for at in 0..4 {
                largest[at] = largest[at].max(lanes[at]);
            }
        }
        let largest = largest[0].max(largest[2]);
        // A little more for the sums' own rounding.
        largest * 1.000_01
    }
}

per_isa! {
    /// Rounds `values` to integers (as float) of at most `limit` times `step`.
    fn round(values: &[f32], size: &Size, step: f32, limit: f32, integers: &mut [f32]) -> Rounded {
        let (step, inverse) = if size.largest > TINY { (step, 1.0 / step) } else { (0.0, 0.0) };
        let length = values.len();
        for (integer, value) in integers[..length].iter_mut().zip(values) {
            let scaled = (*value * inverse).max(-limit).min(limit);
            *integer = (scaled + ROUNDER) - ROUNDER;
        }
        let mut lanes = [[0.0f32; 16]; 2];
        let (chunks, rest) = values.as_chunks::<16>();
        let (integer_chunks, integer_rest) = integers[..length].as_chunks::<16>();
        for (values, integers) in chunks.iter().zip(integer_chunks) {
            for at in 0..16 {
                let residual = values[at] - step * integers[at];
                lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
                lanes[1][at] = madd::<FMA>(integers[at], integers[at], lanes[1][at]);
            }
        }
        for (at, (value, integer)) in rest.iter().zip(integer_rest).enumerate() {
            let residual = value - step * integer;
            lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
            lanes[1][at] = madd::<FMA>(*integer, *integer, lanes[1][at]);
        }
        let enlarged = |lanes: &[f32; 16]| lanes.iter().sum::<f32>().sqrt() * 1.0001;
        Rounded {
            step,
            norm: size.norm,
            residual: enlarged(&lanes[0]) + size.lost,
            rounded_norm: step * enlarged(&lanes[1]),
        }
    }
}

per_isa! {
    /// Integers (as float) to 16 bits, two in a word.
    fn pack_words(integers: &[f32], words: &mut [u32]) {
        for (word, pair) in words.iter_mut().zip(integers.as_chunks::<2>().0) {
            // The sum's lower half is the integer in two's complement.
            let [low, high] = pair.map(|integer| (integer + ROUNDER).to_bits() & 0xffff);
            *word = low | high << 16;
        }
    }
}

per_isa! {
    /// Integers (as float) to 8 bits, four in a word, each with `offset` added.
    fn pack_bytes(integers: &[f32], offset: u8, words: &mut [u32]) {
        for (word, four) in words.iter_mut().zip(integers.as_chunks::<4>().0) {
            let [a, b, c, d] = four.map(|integer| u32::from(((integer + ROUNDER).to_bits() as u8).wrapping_add(offset)));
            *word = a | b << 8 | c << 16 | d << 24;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreading_keeps_norms_and_undoes_itself() {
        for width in [0, 5, 16, 100, 576, 768, 1500] {
            let mut values: Vec<f32> = (0..width).map(|at| (at as f32 * 1.7).sin()).collect();
            if let Some(value) = values.get_mut(3) {
                *value = 100.0;
            }
            let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
            let mut spread_out = values.clone();
            spread(&mut spread_out);
            assert!((norm(&spread_out) - norm(&values)).abs() <= 1e-5 * norm(&values), "{width}");
            if width >= MIXED * SIDE_BY_SIDE {
                assert!(spread_out.iter().all(|value| value.abs() < 25.0), "{width}");
            }
            spread(&mut spread_out);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4;
            assert!(spread_out.iter().zip(&values).all(near), "{width}");
        }
    }
}
