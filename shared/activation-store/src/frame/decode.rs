//! Decodes blocks of Huffman-coded bytes, many streams at a time.
//!
//! zstd decodes the four streams of a block with a step of the processor for each byte. The blocks of a plane that
//! [`super::writer::FrameWriter`] wrote have one code, so that thirty-two of their streams can be decoded side by side in vectors, in about
//! half the time. Whatever is not of this form, or not right, is left to zstd, which also tells what is wrong.

use std::ops::Range;

use super::blocks::{BLOCK, BLOCK_HEADER, COMPRESSED, little_endian};
use super::code::LONGEST;
use super::weights;

/// Bytes before the first stream that may be read, as whole words are: a frame's header is longer.
const BEFORE: usize = 8;
/// Streams that are decoded side by side.
const TOGETHER: usize = 32;

/// The bits of some bytes of a plane.
#[derive(Debug, Clone, Default)]
struct Stream {
    /// Where its bytes are in the frame.
    start: usize,
    /// Bits, less the one that marks their end.
    bits: usize,
    /// What it decodes to.
    out: Range<usize>,
}

/// What a reader keeps from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct BlockDecoder {
    /// For the next eleven bits: the byte in the highest eight bits, and in the lowest ones how many bits are its own.
    table: Vec<u64>,
    streams: Vec<Stream>,
}

impl BlockDecoder {
    /// Decodes the blocks of `frame`, which begin at `first`, into all of `out`. False if they are not all of this form or something
    /// is wrong with them; `out` then has any content.
    pub(crate) fn decode(&mut self, frame: &[u8], first: usize, out: &mut [u8]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if crate::isa::has_avx512() && first >= BEFORE {
            return self.streams(frame, first, out.len()).is_some() && {
                // SAFETY: the features were detected; the streams are within `frame` and `out`.
                unsafe { vectors::decode(&self.table, &self.streams, frame, out) }
            };
        }
        let _ = (frame, first, out, TOGETHER, BEFORE);
        false
    }

    /// Finds the streams and the code.
    fn streams(&mut self, frame: &[u8], first: usize, out: usize) -> Option<()> {
        self.streams.clear();
        let (mut at, mut filled, mut described) = (first, 0, false);
        loop {
            let header: [u8; BLOCK_HEADER] = frame.get(at..at + BLOCK_HEADER)?.try_into().ok()?;
            let header = little_endian(&header);
            let (last, kind, size) = (header & 1 == 1, header >> 1 & 3, header >> 3);
            let block = at + BLOCK_HEADER..at + BLOCK_HEADER + size;
            if kind != COMPRESSED as usize || size > BLOCK {
                return None;
            }
            at = block.end;
            let bytes = frame.get(block.clone())?;
            // Four streams with lengths of 18 bits; no sequences after them.
            let lengths = little_endian(bytes.get(..5)?);
            if bytes.last() != Some(&0) || lengths >> 2 & 3 != 3 {
                return None;
            }
            let (decoded, coded) = (lengths >> 4 & 0x3ffff, lengths >> 22 & 0x3ffff);
            if 5 + coded + 1 != size || decoded > BLOCK || decoded > out - filled {
                return None;
            }
            let mut literals = block.start + 5..block.end - 1;
            match lengths & 3 {
                2 if !described => literals.start += self.read_code(&frame[literals.clone()])?,
                3 if described => {}
                _ => return None,
            }
            described = true;
            self.add_streams(frame, literals, filled..filled + decoded)?;
            filled += decoded;
            if last {
                return (at == frame.len() && filled == out && self.are_alike(out)).then_some(());
            }
        }
    }

    /// Whether little is left where the shortest of the streams that are decoded together ends: what is left is slow.
    fn are_alike(&self, out: usize) -> bool {
        let left = |streams: &[Stream]| {
            let lengths = streams.iter().map(|stream| stream.out.len());
            let shortest = lengths.clone().min().unwrap_or(0);
            lengths.map(|length| length - shortest).sum::<usize>()
        };
        self.streams.chunks(TOGETHER).map(left).sum::<usize>() <= out / 16
    }

    /// The four streams at `coded`, which begin with three lengths.
    fn add_streams(&mut self, frame: &[u8], coded: Range<usize>, out: Range<usize>) -> Option<()> {
        let sizes = frame.get(coded.start..(coded.start + 6).min(coded.end))?;
        let quarter = out.len().div_ceil(4);
        let (mut start, mut from) = (coded.start + 6, out.start);
        for number in 0..4 {
            let size = match number {
                3 => coded.end.checked_sub(start)?,
                _ => little_endian(sizes.get(2 * number..2 * number + 2)?),
            };
            let bytes = frame.get(start..start + size).filter(|_| start + size <= coded.end)?;
            let mark = bytes.last()?.checked_ilog2()? as usize;
            let to = if number == 3 { out.end } else { from + quarter };
            if to > out.end {
                return None;
            }
            self.streams.push(Stream { start, bits: 8 * (size - 1) + mark, out: from..to });
            (start, from) = (start + size, to);
        }
        Some(())
    }

    /// Reads a code; the bytes of its description.
    fn read_code(&mut self, description: &[u8]) -> Option<usize> {
        let (mut weights, used) = weights::read(description)?;
        // The last weight makes the sum a power of two.
        let sum: usize = weights.iter().filter(|&&weight| weight > 0).map(|&weight| 1 << (weight - 1)).sum();
        let longest = sum.checked_ilog2()? as usize + 1;
        let rest = (1_usize << longest) - sum;
        if longest > LONGEST || !rest.is_power_of_two() || weights.len() > 255 {
            return None;
        }
        weights.push(rest.ilog2() as u8 + 1);
        self.table.clear();
        for weight in 1..=longest as u8 {
            // The code has `longest + 1 - weight` bits; all that may follow them are in the table.
            let entries = 1 << (LONGEST - longest + usize::from(weight) - 1);
            let length = (longest + 1 - usize::from(weight)) as u64;
            for (byte, _) in weights.iter().enumerate().filter(|(_, other)| **other == weight) {
                self.table.extend(std::iter::repeat_n((byte as u64) << 56 | length, entries));
            }
        }
        (self.table.len() == 1 << LONGEST).then_some(used)
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::{LONGEST, Stream, TOGETHER};

    const LANES: usize = 8;
    const VECTORS: usize = TOGETHER / LANES;

    /// Decodes all streams; false if the bits of one are not used up by its bytes.
    ///
    /// # Safety
    /// Every stream is within `frame`, at least [`super::BEFORE`] bytes from its beginning, and decodes to bytes of `out`. The table
    /// has 2^[`LONGEST`] entries, each with 1 to [`LONGEST`] bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn decode(table: &[u64], streams: &[Stream], frame: &[u8], out: &mut [u8]) -> bool {
        let mut right = true;
        for streams in streams.chunks(TOGETHER) {
            // SAFETY: as promised.
            right &= unsafe { decode_together(table, streams, frame, out) };
        }
        right
    }

    /// # Safety
    /// As of [`decode`]; at most [`TOGETHER`] streams.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decode_together(table: &[u64], streams: &[Stream], frame: &[u8], out: &mut [u8]) -> bool {
        let mut starts = [[0_i64; LANES]; VECTORS];
        let mut bits = [[0_i64; LANES]; VECTORS];
        for lane in 0..TOGETHER {
            // Lanes that are left decode a stream again, for nobody.
            let stream = &streams[lane.min(streams.len() - 1)];
            starts[lane / LANES][lane % LANES] = stream.start as i64 - 8;
            bits[lane / LANES][lane % LANES] = stream.bits as i64;
        }
        // SAFETY: each array has the 64 bytes that are loaded.
        let load = |array: &[i64; LANES]| unsafe { _mm512_loadu_si512(array.as_ptr().cast()) };
        let starts: [__m512i; VECTORS] = std::array::from_fn(|vector| load(&starts[vector]));
        let mut left: [__m512i; VECTORS] = std::array::from_fn(|vector| load(&bits[vector]));
        let shortest = streams.iter().map(|stream| stream.out.len()).min().unwrap_or(0);
        let mut words = [[0_u64; LANES]; VECTORS];
        for eight in 0..shortest / 8 {
            // SAFETY: as promised.
            let decoded = unsafe { decode_eights(table, frame, &starts, &mut left) };
            for vector in 0..VECTORS {
                // SAFETY: the array has the 64 bytes that are stored.
                unsafe { _mm512_storeu_si512(words[vector].as_mut_ptr().cast(), decoded[vector]) };
            }
            for (stream, word) in streams.iter().zip(words.as_flattened()) {
                let to = stream.out.start.wrapping_add(eight.wrapping_mul(8));
                // SAFETY: each stream decodes to at least these eight bytes more, within `out`.
                unsafe { out.as_mut_ptr().add(to).cast::<[u8; 8]>().write(word.to_le_bytes()) };
            }
        }
        for vector in 0..VECTORS {
            // SAFETY: the array has the 64 bytes that are stored.
            unsafe { _mm512_storeu_si512(bits[vector].as_mut_ptr().cast(), left[vector]) };
        }
        // The streams of a block differ in length by a few bytes.
        let mut right = true;
        for (stream, &left) in streams.iter().zip(bits.as_flattened()) {
            let rest = &mut out[stream.out.start + shortest / 8 * 8..stream.out.end];
            right &= decode_by_one(table, frame, stream.start, left, rest);
        }
        right
    }

    /// The next eight bytes of each stream, whose bits begin eight bytes after its place in `starts`; of these, so many are `left`.
    ///
    /// # Safety
    /// As of [`decode`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decode_eights(
        table: &[u64],
        frame: &[u8],
        starts: &[__m512i; VECTORS],
        left: &mut [__m512i; VECTORS],
    ) -> [__m512i; VECTORS] {
        let (zero, seven) = (_mm512_setzero_si512(), _mm512_set1_epi64(7));
        let mut decoded = [zero; VECTORS];
        // Four codes have at most 44 bits, and a word has at least 57 that are not used.
        for _ in 0..2 {
            let mut words = [zero; VECTORS];
            for vector in 0..VECTORS {
                // A stream that is damaged can have used more bits than it has. It stays at its beginning, and is found out at
                // the end.
                let bits = _mm512_max_epi64(left[vector], zero);
                let end = _mm512_srli_epi64::<3>(_mm512_add_epi64(bits, seven));
                let place = _mm512_add_epi64(starts[vector], end);
                // SAFETY: the word ends where the stream's unused bytes do, and begins within the frame.
                let word = unsafe { _mm512_i64gather_epi64::<1>(place, frame.as_ptr().cast()) };
                words[vector] =
                    _mm512_sllv_epi64(word, _mm512_and_si512(_mm512_sub_epi64(zero, bits), seven));
            }
            for _ in 0..4 {
                for vector in 0..VECTORS {
                    let next = _mm512_srli_epi64::<{ 64 - LONGEST as u32 }>(words[vector]);
                    // SAFETY: the table has an entry for all numbers of so many bits.
                    let entry = unsafe { _mm512_i64gather_epi64::<8>(next, table.as_ptr().cast()) };
                    let length = _mm512_and_si512(entry, _mm512_set1_epi64(0xf));
                    words[vector] = _mm512_sllv_epi64(words[vector], length);
                    left[vector] = _mm512_sub_epi64(left[vector], length);
                    // The byte becomes the highest one, and those before it move down.
                    let byte = _mm512_set1_epi64(0xff << 56);
                    decoded[vector] = _mm512_ternarylogic_epi64::<0xf8>(
                        _mm512_srli_epi64::<8>(decoded[vector]),
                        entry,
                        byte,
                    );
                }
            }
        }
        decoded
    }

    /// The last bytes of a stream of which `left` bits are left; false if these are not all.
    fn decode_by_one(table: &[u64], frame: &[u8], start: usize, mut left: i64, out: &mut [u8]) -> bool {
        for byte in out {
            let Ok(bits) = usize::try_from(left) else { return false };
            let end = start + bits.div_ceil(8);
            let Some(word) = frame[..end].last_chunk::<8>() else { return false };
            let word = u64::from_le_bytes(*word) << (8 * bits.div_ceil(8) - bits);
            let entry = table[(word >> (64 - LONGEST)) as usize];
            *byte = (entry >> 56) as u8;
            left -= (entry & 0xf) as i64;
        }
        left == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::blocks::{HEADER_BYTES, header};
    use super::super::writer::FrameWriter;
    use super::*;

    fn frame(plane: &[u8]) -> Vec<u8> {
        let mut frame = header(plane.len()).unwrap().to_vec();
        FrameWriter::new(1).unwrap().write_plane(plane, &mut frame);
        frame
    }

    #[test]
    fn large_planes_come_back_in_vectors() {
        for count in [40_000, 300_000, 1_179_648] {
            let plane: Vec<u8> =
                (0..count as u64).map(|i| ((i * i) >> 7) as u8 & ((i * 77) >> 5) as u8).collect();
            let frame = frame(&plane);
            let mut out = vec![0; plane.len()];
            let decoded = BlockDecoder::default().decode(&frame, HEADER_BYTES, &mut out);
            #[cfg(target_arch = "x86_64")]
            assert_eq!(decoded, crate::isa::has_avx512(), "{count}");
            assert!(!decoded || out == plane, "{count}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_found_or_makes_no_difference(
            plane in prop::collection::vec(prop_oneof![3 => 0_u8..9, 1 => any::<u8>()], 100..3000),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut frame = frame(&plane);
            for (place, value) in &damage {
                let place = HEADER_BYTES + place.index(frame.len() - HEADER_BYTES);
                frame[place] = *value;
            }
            let mut out = vec![0; plane.len()];
            if BlockDecoder::default().decode(&frame, HEADER_BYTES, &mut out) {
                prop_assert!(zstd::bulk::decompress(&frame, plane.len()).unwrap() == out);
            }
        }
    }
}
