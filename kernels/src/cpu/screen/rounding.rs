//! Rotates a vector, rounds it to integers times a step, and packs the integers for the tiles.

use crate::cpu::isa::{Isa, madd, per_isa};
use crate::cpu::vector::dot_inline;

/// How finely screening rounds rows and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grid {
    /// 8 bits, products added up in 32 (on AVX2 first in 16, which takes some of the 8 away).
    Bits8,
    /// Bfloat16, 8 bits of each number's own size, products added up in float32.
    Bfloat16,
    /// 16 bits, products added up in 32.
    #[default]
    Bits16,
}

/// In what form a tile reads the numbers of a grid. A word of 32 bits holds the numbers of a group of columns.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// Four bytes a word. Zeros fill the last block of so many columns.
    Bytes { range: ByteRange, block: usize },
    /// Two of 16 bits a word.
    Words,
    /// 16 bits as 256·high + low, both signed bytes, four a word: first the high parts of all columns, then the low ones. Zeros
    /// fill the last block of so many columns of either.
    Halves { block: usize },
    /// Two bfloat16 numbers a word. Zeros fill the last block of so many columns.
    Bfloat16 { block: usize },
}

impl Form {
    /// Words of a vector of `width` numbers, zeros that fill the last block included.
    pub(super) fn words(self, width: usize) -> usize {
        match self {
            Form::Bytes { block, .. } => width.next_multiple_of(block) / 4,
            Form::Words => width.div_ceil(2),
            Form::Halves { block } => 2 * (width.next_multiple_of(block) / 4),
            Form::Bfloat16 { block } => width.next_multiple_of(block) / 2,
        }
    }

    /// Numbers of a vector, zeros that fill the last block included.
    fn numbers(self, width: usize) -> usize {
        match self {
            Form::Bytes { block, .. } | Form::Halves { block } | Form::Bfloat16 { block } => {
                width.next_multiple_of(block)
            }
            Form::Words => width.next_multiple_of(2),
        }
    }
}

/// Columns whose products are added up in 16 bits, on the grid of 8.
pub(super) const BYTE_BLOCK: usize = 16;
/// Largest magnitude of a number on the grid of 8 bits.
const LARGEST_BYTE: f32 = 127.0;

/// What a tile's instructions ask of a row's numbers and of weights on the grid of 8 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteRange {
    /// Largest magnitude of a row's number.
    pub(super) largest_row: f32,
    /// Added to a row's numbers.
    pub(super) row_offset: i32,
    /// Largest sum of magnitudes of the eight weights that a lane of 16 bits adds up, half the columns of a
    /// [`BYTE_BLOCK`].
    pub(super) largest_lane_sum: f32,
}

impl ByteRange {
    /// Both factors signed, sums of 32 bits.
    pub(super) const SIGNED: ByteRange =
        ByteRange { largest_row: LARGEST_BYTE, row_offset: 0, largest_lane_sum: f32::INFINITY };
    /// The first factor unsigned, sums of 32 bits.
    pub(super) const OFFSET: ByteRange = ByteRange { row_offset: 128, ..ByteRange::SIGNED };
}

/// Largest magnitude of a number on the grid of 16 bits.
const LARGEST_WORD: f32 = 32_000.0;
/// Largest norm of the integers of a vector on the grid of 16 bits: by Cauchy–Schwarz no sum of products then leaves 32
/// bits, not even halfway, rounding (half a unit per column, up to 2¹⁷ columns) included.
const LARGEST_WORD_NORM: f32 = 46_000.0;

/// Largest magnitude of a number that is split into two bytes: 127·256. Sums of up to 2¹⁶ products of bytes stay within 32 bits
/// twice.
const LARGEST_OF_HALVES: f32 = 32_512.0;
/// Magnitudes below this, of numbers of which the largest is at least 1, become 0 as bfloat16: instructions may take subnormal
/// products for 0.
const SMALLEST_BFLOAT16: f32 = 1e-12;

/// Adding and subtracting 1.5·2²³ rounds a number of magnitude below 2²² to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;
/// Magnitudes below this count as zeros: their squares underflow.
const TINY: f32 = 1e-18;

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
    /// The norm of the low parts, or a little more, where products of two of them are left out; otherwise 0.
    pub(super) low: f32,
}

impl Rounded {
    /// What there is to say of `values` that were rounded to `step` times `rounded`.
    #[inline(always)]
    fn of<const FMA: bool>(values: &[f32], rounded: &[f32], size: &Size, step: f32) -> Rounded {
        let mut lanes = [[0.0f32; 16]; 2];
        let (chunks, rest) = values.as_chunks::<16>();
        let (rounded_chunks, rounded_rest) = rounded.as_chunks::<16>();
        for (values, rounded) in chunks.iter().zip(rounded_chunks) {
            for at in 0..16 {
                let residual = values[at] - step * rounded[at];
                lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
                lanes[1][at] = madd::<FMA>(rounded[at], rounded[at], lanes[1][at]);
            }
        }
        for (at, (value, rounded)) in rest.iter().zip(rounded_rest).enumerate() {
            let residual = value - step * rounded;
            lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
            lanes[1][at] = madd::<FMA>(*rounded, *rounded, lanes[1][at]);
        }
        let enlarged = |lanes: &[f32; 16]| lanes.iter().sum::<f32>().sqrt() * 1.0001;
        Rounded {
            step,
            norm: size.norm,
            residual: enlarged(&lanes[0]) + size.lost,
            rounded_norm: step * enlarged(&lanes[1]),
            low: 0.0,
        }
    }
}

/// Memory for rounding vectors of one width.
pub(super) struct Rounder {
    form: Form,
    /// As floats; zeros fill the last block.
    integers: Vec<f32>,
    words: Vec<u32>,
}

impl Rounder {
    pub(super) fn new(form: Form, width: usize) -> Rounder {
        Rounder { form, integers: vec![0.0; form.numbers(width)], words: vec![0; form.words(width)] }
    }

    /// The last vector's words.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// What a sum of products of the last weights begins with: takes out again what the rows' offset adds.
    pub(super) fn start(&self) -> i32 {
        match self.form {
            Form::Bytes { range, .. } => -range.row_offset * self.integers.iter().sum::<f32>() as i32,
            _ => 0,
        }
    }

    /// Rounds a row of X.
    pub(super) fn row(&mut self, isa: Isa, values: &[f32]) -> Rounded {
        let size = Size::of(isa, values);
        match self.form {
            Form::Bytes { range: ByteRange { largest_row, row_offset, .. }, .. } => {
                let step = size.largest / largest_row;
                let rounded = round(isa, values, &size, step, largest_row, &mut self.integers);
                pack_bytes(isa, &self.integers, row_offset as u8, &mut self.words);
                rounded
            }
            _ => self.either(isa, values, &size),
        }
    }

    /// Rounds the weights of a feature.
    pub(super) fn weights(&mut self, isa: Isa, values: &[f32]) -> Rounded {
        let size = Size::of(isa, values);
        match self.form {
            Form::Bytes { range, .. } => {
                // Rounding adds half a unit per number at most.
                let lane = match range.largest_lane_sum {
                    f32::INFINITY => 0.0,
                    largest => largest_lane_sum(isa, values) / (largest - 4.0),
                };
                let step = lane.max(size.largest / LARGEST_BYTE);
                let rounded = round(isa, values, &size, step, LARGEST_BYTE, &mut self.integers);
                pack_bytes(isa, &self.integers, 0, &mut self.words);
                rounded
            }
            _ => self.either(isa, values, &size),
        }
    }

    /// Rounds what is rounded alike for rows and weights.
    fn either(&mut self, isa: Isa, values: &[f32], size: &Size) -> Rounded {
        let Rounder { form, integers, words } = self;
        match form {
            Form::Bytes { .. } => unreachable!("rows and weights differ on the grid of 8 bits"),
            Form::Words => {
                let step = (size.largest / LARGEST_WORD).max(size.norm / LARGEST_WORD_NORM);
                let rounded = round(isa, values, size, step, LARGEST_WORD, integers);
                pack_words(isa, integers, words);
                rounded
            }
            Form::Halves { .. } => {
                let step = size.largest / LARGEST_OF_HALVES;
                let rounded = round(isa, values, size, step, LARGEST_OF_HALVES, integers);
                let half = words.len() / 2;
                let (high, low) = words.split_at_mut(half);
                let low_norm = pack_halves(isa, integers, high, low) * rounded.step;
                // Σ x_q·w_q = 256·(256·Σ high·high + Σ (high·low + low·high)) + Σ low·low: the tile forms what is in brackets, and
                // 256 = 16·16.
                Rounded { step: 16.0 * rounded.step, low: low_norm, ..rounded }
            }
            Form::Bfloat16 { .. } => {
                let rounded = round_to_bfloat16(isa, values, size, integers);
                pack_bfloat16(isa, integers, words);
                rounded
            }
        }
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
    // Two levels at a time, for fewer passes over memory. By bits and not by nested loops: compilers would make vectors of the
    // outer loop's turns, by gathering.
    while 4 * half <= block.len() {
        for four in 0..block.len() / 4 {
            let low = four & (half - 1);
            let first = 4 * (four ^ low) + low;
            let places = [first, first + half, first + 2 * half, first + 3 * half];
            let [a, b, c, d] = places.map(|place| block[place]);
            let (mut sums, mut others) = ([a; 2], [c; 2]);
            for at in 0..SIDE_BY_SIDE {
                sums[0][at] = a[at] + b[at];
                sums[1][at] = a[at] - b[at];
                others[0][at] = c[at] + d[at];
                others[1][at] = c[at] - d[at];
            }
            for which in 0..2 {
                for at in 0..SIDE_BY_SIDE {
                    block[places[which]][at] = sums[which][at] + others[which][at];
                }
                for at in 0..SIDE_BY_SIDE {
                    block[places[which + 2]][at] = sums[which][at] - others[which][at];
                }
            }
        }
        half *= 4;
    }
    if half < block.len() {
        let (first, second) = block.split_at_mut(half);
        for (first, second) in first.iter_mut().zip(second) {
            let (a, b) = (*first, *second);
            for at in 0..SIDE_BY_SIDE {
                first[at] = a[at] + b[at];
            }
            for at in 0..SIDE_BY_SIDE {
                second[at] = a[at] - b[at];
            }
        }
    }
    let norm = 1.0 / (block.len() as f32).sqrt();
    block.as_flattened_mut().iter_mut().for_each(|value| *value *= norm);
}

/// Writes line `at` of many into `packed`, where for each `height` lines and each run of `run` words the lines' runs lie
/// side by side: a tile then reads one stream from front to back.
pub(super) fn interleave(line: &[u32], at: usize, height: usize, run: usize, packed: &mut [u32]) {
    let tile = &mut packed[at / height * height * line.len()..][..height * line.len()];
    if run == 1 {
        let places = tile[at % height..].iter_mut().step_by(height);
        places.zip(line).for_each(|(to, word)| *to = *word);
    } else {
        let places = tile.chunks_exact_mut(run).skip(at % height).step_by(height);
        places.zip(line.chunks_exact(run)).for_each(|(to, run)| to.copy_from_slice(run));
    }
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
        Rounded::of::<FMA>(values, &integers[..length], size, step)
    }
}

/// The power of two at or below a positive number that is not subnormal.
fn power_of_two(number: f32) -> f32 {
    f32::from_bits(number.to_bits() & 0x7f80_0000)
}

per_isa! {
    /// Rounds `values` to bfloat16 numbers (as float) times a power of two that makes the largest one between 1 and 2.
    fn round_to_bfloat16(values: &[f32], size: &Size, rounded: &mut [f32]) -> Rounded {
        // What is not finite leaves a residual that is none either.
        let usable = size.largest > TINY && size.largest < 1e30;
        let (step, inverse) = match size.largest {
            _ if usable => (power_of_two(size.largest), 1.0 / power_of_two(size.largest)),
            largest if largest <= TINY => (0.0, 0.0),
            _ => (1.0, 1.0),
        };
        let length = values.len();
        for (rounded, value) in rounded[..length].iter_mut().zip(values) {
            let scaled = *value * inverse;
            let bits = scaled.to_bits();
            let nearest = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
            *rounded = if scaled.abs() < SMALLEST_BFLOAT16 { 0.0 } else { nearest };
        }
        Rounded::of::<FMA>(values, &rounded[..length], size, step)
    }
}

per_isa! {
    /// Bfloat16 numbers (as float), two in a word.
    fn pack_bfloat16(rounded: &[f32], words: &mut [u32]) {
        for (word, [low, high]) in words.iter_mut().zip(rounded.as_chunks::<2>().0) {
            *word = low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
        }
    }
}

per_isa! {
    /// Integers (as float) of 16 bits to high and low bytes, four in a word; returns the norm of the low ones, or a little more.
    fn pack_halves(integers: &[f32], high: &mut [u32], low: &mut [u32]) -> f32 {
        let mut squares = [0.0f32; 4];
        for ((high, low), four) in high.iter_mut().zip(low).zip(integers.as_chunks::<4>().0) {
            let [a, b, c, d] = four.map(|integer| (integer + ROUNDER).to_bits() as i16);
            // Rounded to nearest: the low part is a signed byte.
            let highs = [a, b, c, d].map(|integer| (i32::from(integer) + 128) >> 8);
            let lows = [a, b, c, d].map(|integer| i32::from(integer as i8));
            for at in 0..4 {
                squares[at] += (lows[at] * lows[at]) as f32;
            }
            *high = u32::from_le_bytes(highs.map(|part| part as u8));
            *low = u32::from_le_bytes(lows.map(|part| part as u8));
        }
        squares.iter().sum::<f32>().sqrt() * 1.0001
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
