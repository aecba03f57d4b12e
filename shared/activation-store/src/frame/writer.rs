//! Encodes chunks of rows.

use std::io;

use super::blocks::{BLOCK, BLOCK_HEADER, COMPRESSED, RAW, SAME, block_header, header};
use super::code::{self, Code, Counts};
use super::streams::{self, Coder};

/// Bytes of each plane that are looked at first.
const SAMPLE: usize = 8 << 10;
/// Rows that are compared with each other.
const SAMPLE_ROWS: usize = 256;
/// Bytes that the Huffman code of a sample takes to describe, about.
const DESCRIPTION: usize = 80;
/// Blocks of a plane come in eights, which can be decoded side by side, if there are so many bytes for each.
const EIGHTH: usize = 16 << 10;

/// Encodes chunks of rows.
pub(crate) struct FrameWriter {
    compressor: zstd::bulk::Compressor<'static>,
    level: i32,
    /// The four streams of a block.
    streams: [Vec<u8>; 4],
    sample: Vec<u8>,
}

/// How a plane is written.
enum Plane {
    /// As it is.
    Noise,
    /// In this code, where that is shorter.
    Coded(Box<Code>),
    /// As blocks of one byte each, or as it is.
    Plain,
}

impl FrameWriter {
    pub(crate) fn new(level: i32) -> io::Result<FrameWriter> {
        Ok(FrameWriter {
            compressor: zstd::bulk::Compressor::new(level)?,
            level,
            streams: std::array::from_fn(|_| vec![0; streams::room(BLOCK.div_ceil(4))]),
            sample: Vec::new(),
        })
    }

    /// zstd itself.
    pub(crate) fn compressor(&mut self) -> &mut zstd::bulk::Compressor<'static> {
        &mut self.compressor
    }

    /// Appends the frame of a chunk of `size` planes, whose rows have `width` elements. It is the same on every processor.
    pub(crate) fn write(
        &mut self,
        planes: &[u8],
        size: usize,
        width: usize,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let first = out.len();
        if let Some((kinds, header)) = self.kinds(planes, size, width)?.zip(header(planes.len())) {
            out.reserve(planes.len() + (planes.len() / BLOCK + 2 * size) * BLOCK_HEADER + 64);
            out.extend_from_slice(&header);
            let per_plane = planes.len() / size;
            for (number, (plane, kind)) in planes.chunks_exact(per_plane).zip(kinds).enumerate() {
                let last = number + 1 == size;
                match kind {
                    Plane::Noise => write_raw(plane, last, out),
                    Plane::Coded(code) => self.write_coded(&code, plane, last, out),
                    Plane::Plain => write_same_or_raw(plane, last, out),
                }
            }
            return Ok(());
        }
        let bound = zstd::zstd_safe::compress_bound(planes.len());
        out.reserve(bound);
        out.resize(first + bound, 0);
        let written = self.compressor.compress_to_buffer(planes, &mut out[first..])?;
        out.truncate(first + written);
        Ok(())
    }

    /// How to write each plane; `None` if zstd would find more.
    fn kinds(&mut self, planes: &[u8], size: usize, width: usize) -> io::Result<Option<Vec<Plane>>> {
        let per_plane = planes.len() / size;
        // Other levels look for what this does not.
        if self.level != 1 || per_plane < 2 * SAMPLE {
            return Ok(None);
        }
        if rows_repeat(planes, per_plane, width) {
            return Ok(None);
        }
        let (mut ours, mut zstds) = (0, 0);
        let mut kinds = Vec::with_capacity(size);
        for plane in planes.chunks_exact(per_plane) {
            let sample = &plane[per_plane / 2 - SAMPLE / 2..][..SAMPLE];
            let kind = kind(plane);
            ours += match &kind {
                Plane::Noise => SAMPLE,
                Plane::Coded(code) => code.cost(&code::count(sample)) + DESCRIPTION,
                Plane::Plain => DESCRIPTION,
            };
            kinds.push(kind);
            self.sample.resize(zstd::zstd_safe::compress_bound(SAMPLE), 0);
            zstds += self.compressor.compress_to_buffer(sample, &mut self.sample[..])?;
        }
        Ok((zstds >= ours - ours / 64).then_some(kinds))
    }

    /// Appends the only plane of a frame.
    #[cfg(test)]
    pub(crate) fn write_plane(&mut self, plane: &[u8], out: &mut Vec<u8>) {
        match kind(plane) {
            Plane::Noise => write_raw(plane, true, out),
            Plane::Coded(code) => self.write_coded(&code, plane, true, out),
            Plane::Plain => write_same_or_raw(plane, true, out),
        }
    }

    /// Appends a plane in `code`, or in another if some byte has none in it.
    fn write_coded(&mut self, code: &Code, plane: &[u8], last: bool, out: &mut Vec<u8>) {
        let before = out.len();
        if self.write_blocks(code, plane, last, out).is_none() {
            out.truncate(before);
            let code = Code::of(&code::count(plane));
            let written = code.and_then(|code| self.write_blocks(&code, plane, last, out));
            if written.is_none() {
                out.truncate(before);
                write_raw(plane, last, out);
            }
        }
    }

    /// Appends the blocks of a plane; `None` if some byte has no code.
    fn write_blocks(&mut self, code: &Code, plane: &[u8], last: bool, out: &mut Vec<u8>) -> Option<()> {
        let coder = Coder::new(code);
        let mut described = false;
        let mut blocks = plane.chunks(block_size(plane.len())).peekable();
        while let Some(block) = blocks.next() {
            let last = last && blocks.peek().is_none();
            let description: &[u8] = if described { &[] } else { &code.description };
            if self.write_literals(block, &coder, description, last, out)? {
                described = true;
            } else {
                write_raw(block, last, out);
            }
        }
        Some(())
    }

    /// Appends a block of coded bytes, with the code before it if it is not the one of the block before; false, with nothing
    /// appended, if it would not be shorter, and `None` if some byte has no code.
    fn write_literals(
        &mut self,
        block: &[u8],
        coder: &Coder,
        description: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Option<bool> {
        /// Of lengths, then of three streams' sizes.
        const HEADERS: usize = 5 + 6;
        // Too short for four streams.
        if block.len() < 64 {
            return Some(false);
        }
        let mut parts = block.chunks(block.len().div_ceil(4));
        let mut part = || parts.next().unwrap_or_default();
        let parts = [part(), part(), part(), part()];
        let [a, b, c, d] = &mut self.streams;
        let [first, second] = coder.encode_two([parts[0], parts[1]], [a, b])?;
        let [third, fourth] = coder.encode_two([parts[2], parts[3]], [c, d])?;
        let lengths = [first, second, third, fourth];
        let coded = description.len() + 6 + lengths.iter().sum::<usize>();
        let size = coded + HEADERS - 6 + 1;
        if size >= block.len() {
            return Some(false);
        }
        out.extend_from_slice(&block_header(COMPRESSED, size, last));
        // Four streams, with lengths of 18 bits; with a code, or with that of before.
        let kind: u64 = if description.is_empty() { 3 } else { 2 };
        let lengths_of = kind | 3 << 2 | (block.len() as u64) << 4 | (coded as u64) << 22;
        out.extend_from_slice(&lengths_of.to_le_bytes()[..5]);
        out.extend_from_slice(description);
        for length in &lengths[..3] {
            out.extend_from_slice(&(*length as u16).to_le_bytes());
        }
        for (stream, length) in self.streams.iter().zip(lengths) {
            out.extend_from_slice(&stream[..length]);
        }
        // No sequences.
        out.push(0);
        Some(true)
    }
}

/// Bytes of each block but the last of a plane of `length` bytes.
fn block_size(length: usize) -> usize {
    if length < 8 * EIGHTH {
        return BLOCK;
    }
    // Four streams of whole words.
    length.div_ceil(length.div_ceil(BLOCK).next_multiple_of(8)).next_multiple_of(32)
}

/// How to write a plane, by a part of its bytes.
fn kind(plane: &[u8]) -> Plane {
    /// Counted together, and of how many times as many.
    const PIECE: usize = 1 << 10;
    const OF: usize = 16;
    /// Codes for bytes that were not counted: so many take less than a sixtieth of all bits of eleven.
    const FILLED: usize = 32;
    let counts =
        code::count_pieces(plane.chunks(PIECE * OF).map(|pieces| &pieces[..pieces.len().min(PIECE)]));
    if is_noise(&counts) {
        return Plane::Noise;
    }
    // Bytes that were not counted are there as well: larger ones and smaller ones of each sign.
    let filled = fill(&counts);
    let missing = counts.iter().zip(&filled).filter(|(counted, filled)| counted != filled).count();
    let code = match missing <= FILLED {
        true => Code::of(&filled),
        false => None,
    };
    code.or_else(|| Code::of(&code::count(plane))).map_or(Plane::Plain, |code| Plane::Coded(Box::new(code)))
}

/// Whether no byte is much more frequent than others: the mean code would have eight bits, less a fiftieth at most.
fn is_noise(counts: &Counts) -> bool {
    let all: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let squares: u64 = counts.iter().map(|&count| u64::from(count) * u64::from(count)).sum();
    // Of n even draws the sum of the squares is n²/256 + n.
    256 * squares <= all * all + all * all / 64 + 256 * all
}

/// One of each byte that is between counted ones with the same highest bit or a little beyond.
fn fill(counts: &Counts) -> Counts {
    /// The values of an exponent.
    const BEYOND: usize = 4;
    let mut filled = *counts;
    for half in filled.chunks_mut(128) {
        if let Some(most) = half.iter().rposition(|&count| count > 0) {
            half[..(most + BEYOND + 1).min(128)].iter_mut().for_each(|count| *count = (*count).max(1));
        }
    }
    filled
}

/// Whether some rows are equal, as those of a text's first token are: matches find them, however far away.
fn rows_repeat(planes: &[u8], per_plane: usize, width: usize) -> bool {
    let top = planes.len() - per_plane;
    let word = |at: usize| {
        planes.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    };
    if width < 8 {
        return true;
    }
    let rows = (per_plane / width).min(SAMPLE_ROWS);
    let mut keys: Vec<_> = (0..rows).map(|row| (word(row * width), word(top + row * width))).collect();
    keys.sort_unstable();
    let repeated = keys.windows(2).filter(|pair| pair[0] == pair[1]).count();
    64 * repeated > rows
}

fn write_raw(bytes: &[u8], last: bool, out: &mut Vec<u8>) {
    let blocks = bytes.chunks(BLOCK);
    let count = blocks.len();
    for (number, block) in blocks.enumerate() {
        out.extend_from_slice(&block_header(RAW, block.len(), last && number + 1 == count));
        out.extend_from_slice(block);
    }
}

/// A plane that has no code.
fn write_same_or_raw(plane: &[u8], last: bool, out: &mut Vec<u8>) {
    if plane.iter().any(|&byte| byte != plane[0]) {
        return write_raw(plane, last, out);
    }
    let blocks = plane.chunks(BLOCK);
    let count = blocks.len();
    for (number, block) in blocks.enumerate() {
        out.extend_from_slice(&block_header(SAME, block.len(), last && number + 1 == count));
        out.push(block[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{HEADER, HEADER_BYTES};
    use super::*;
    use proptest::prelude::*;

    /// Bytes without matches, of which each bit is set in one of 2^`rarity`.
    fn bytes(count: usize, rarity: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u8
        };
        (0..count).map(|_| (0..rarity).fold(0xff, |byte, _| byte & next())).collect()
    }

    fn comes_back(planes: &[u8], size: usize, width: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        FrameWriter::new(1).unwrap().write(planes, size, width, &mut frame).unwrap();
        let decoded = zstd::bulk::decompress(&frame, planes.len()).unwrap();
        assert!(decoded == planes, "{} bytes in {size} planes", planes.len());
        frame
    }

    #[test]
    fn planes_of_noise_stay_and_others_shrink() {
        for size in [2, 4] {
            for rows in [64, 257, 1024] {
                let width = 600;
                let mut planes = Vec::new();
                for plane in 0..size {
                    planes.extend(bytes(rows * width, 1 + plane, 5 + plane as u64));
                }
                let frame = comes_back(&planes, size, width);
                assert!(frame.starts_with(&HEADER), "{size} {rows}");
                assert!(
                    frame.len() < planes.len() - planes.len() / 50,
                    "{} of {}",
                    frame.len(),
                    planes.len()
                );
                let header = block_header(RAW, BLOCK.min(rows * width), false);
                assert_eq!(frame[HEADER_BYTES..][..BLOCK_HEADER], header);
            }
        }
    }

    #[test]
    fn what_repeats_is_left_to_zstd() {
        let (rows, width) = (512, 600);
        let mut planes = bytes(2 * rows * width, 1, 3);
        assert!(comes_back(&planes, 2, width).starts_with(&HEADER));
        // Every tenth row.
        for plane in 0..2 {
            for row in (10..rows).step_by(10) {
                let first = (plane * rows + row) * width;
                planes.copy_within(plane * rows * width..plane * rows * width + width, first);
            }
        }
        let frame = comes_back(&planes, 2, width);
        assert!(!frame.starts_with(&HEADER));
        assert!(frame.len() < planes.len() * 19 / 20);
        // Runs of zeros.
        let mut planes = bytes(2 * rows * width, 1, 3);
        planes.chunks_mut(40).for_each(|chunk| chunk[20..].fill(0));
        assert!(!comes_back(&planes, 2, width).starts_with(&HEADER));
    }

    #[test]
    fn every_shape_of_code_comes_back() {
        let width = 600;
        for symbols in [1_u64, 2, 3, 5, 17, 100, 128, 129, 130, 200, 256] {
            for skew in [0, 1, 4] {
                let noise = bytes(128 * width, 1, 1);
                let mut plane = bytes(128 * width, 1, 2);
                for (number, byte) in plane.iter_mut().enumerate() {
                    // Rare ones among few frequent ones, up to the last byte.
                    let symbol = (u64::from(*byte) * 7 + number as u64 / 251) % symbols;
                    *byte = (255 - symbol * symbol.pow(skew) % symbols) as u8;
                }
                comes_back(&[&noise[..], &plane].concat(), 2, width);
                let mut writer = FrameWriter::new(1).unwrap();
                let mut frame = HEADER.to_vec();
                frame.extend_from_slice(&(plane.len() as u32).to_le_bytes());
                writer.write_plane(&plane, &mut frame);
                assert!(zstd::bulk::decompress(&frame, plane.len()).unwrap() == plane, "{symbols} {skew}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_plane_comes_back(plane in prop::collection::vec(prop_oneof![3 => 0_u8..9, 1 => any::<u8>()], 1..9000)) {
            let mut writer = FrameWriter::new(1).unwrap();
            let mut frame = HEADER.to_vec();
            frame.extend_from_slice(&(plane.len() as u32).to_le_bytes());
            writer.write_plane(&plane, &mut frame);
            prop_assert_eq!(zstd::bulk::decompress(&frame, plane.len()).unwrap(), plane);
        }
    }
}
