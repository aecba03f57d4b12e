//! The bits of Huffman-coded bytes, which a reader takes from the last one to the first.

use super::code::{Code, LONGEST};

/// Bytes that the bits of `count` bytes may be written into.
pub(super) const fn room(count: usize) -> usize {
    // Whole words are written, of which the last is past the end.
    count * LONGEST / 8 + 16
}

/// The entry of a byte without a code. No code has this bit.
const MISSING: u32 = 1 << 15;

/// A code as the loops below want it.
#[derive(Debug)]
pub(super) struct Coder {
    /// Of each byte, its code, and its length from bit 16 on.
    entries: [u32; 256],
    #[cfg(target_arch = "x86_64")]
    vectors: vectors::Tables,
}

impl Coder {
    pub(super) fn new(code: &Code) -> Coder {
        Coder {
            entries: std::array::from_fn(|byte| match code.lengths[byte] {
                0 => MISSING,
                length => u32::from(code.codes[byte]) | u32::from(length) << 16,
            }),
            #[cfg(target_arch = "x86_64")]
            vectors: vectors::Tables::new(code),
        }
    }

    /// Writes the bits of two runs of bytes, each into the beginning of a slice of its [`room`]; how many bytes they take, or
    /// `None` if some byte has no code. Two at once keep the processor busier than one.
    ///
    /// # Panics
    /// If a slice is shorter than that.
    pub(super) fn encode_two(&self, runs: [&[u8]; 2], out: [&mut [u8]; 2]) -> Option<[usize; 2]> {
        for run in 0..2 {
            assert!(out[run].len() >= room(runs[run].len()), "room for every code");
        }
        #[cfg(target_arch = "x86_64")]
        if vectors::supported() {
            // SAFETY: the features were detected, and there is room.
            return unsafe { vectors::encode_two(self, runs, out) };
        }
        // SAFETY: there is room.
        unsafe { self.encode_two_plainly(runs, out) }
    }

    /// # Safety
    /// Each slice has the [`room`] of its run.
    unsafe fn encode_two_plainly(&self, runs: [&[u8]; 2], out: [&mut [u8]; 2]) -> Option<[usize; 2]> {
        let mut writers = [Writer::default(); 2];
        for run in 0..2 {
            // SAFETY: as promised.
            unsafe { self.encode_plainly(runs[run], &mut writers[run], out[run]) };
        }
        // SAFETY: as promised.
        Some([unsafe { writers[0].close(out[0])? }, unsafe { writers[1].close(out[1])? }])
    }

    /// The last of `bytes` first.
    ///
    /// # Safety
    /// As of [`Writer::push`].
    #[inline(always)]
    unsafe fn encode_plainly(&self, bytes: &[u8], writer: &mut Writer, out: &mut [u8]) {
        let (rest, fours) = bytes.as_rchunks::<4>();
        for four in fours.iter().rev() {
            let [a, b, c, d] = four.map(|byte| u64::from(self.entries[usize::from(byte)]));
            writer.seen |= a | b | c | d;
            let join = |high: u64, low: u64| {
                let length = low >> 16;
                (low & 0xffff | (high & 0xffff).wrapping_shl(length as u32), length.wrapping_add(high >> 16))
            };
            let ((high, high_length), (low, low_length)) = (join(a, b), join(c, d));
            let bits = low | high.wrapping_shl(low_length as u32);
            // SAFETY: as promised.
            unsafe { writer.push(bits, low_length.wrapping_add(high_length), out) };
        }
        for &byte in rest.iter().rev() {
            let entry = u64::from(self.entries[usize::from(byte)]);
            writer.seen |= entry;
            // SAFETY: as promised.
            unsafe { writer.push(entry & 0xffff, entry >> 16, out) };
        }
    }
}

/// Where a stream of bits has got to.
#[derive(Debug, Clone, Copy, Default)]
struct Writer {
    /// Fewer than eight bits that are not in a whole byte yet.
    bits: u64,
    count: u64,
    /// Whole bytes.
    written: usize,
    /// All entries together, for [`MISSING`].
    seen: u64,
}

impl Writer {
    /// Appends at most 56 bits.
    ///
    /// # Safety
    /// `out` has the [`room`] of all bytes whose codes are appended. (A check for each four of them would take a tenth of the time.)
    #[inline(always)]
    unsafe fn push(&mut self, bits: u64, count: u64, out: &mut [u8]) {
        self.bits |= bits.wrapping_shl(self.count as u32);
        self.count = self.count.wrapping_add(count);
        debug_assert!(self.written + 8 <= out.len());
        // SAFETY: so many bits are at most `written` whole bytes, and eight more are in the room.
        unsafe { out.as_mut_ptr().add(self.written).cast::<[u8; 8]>().write(self.bits.to_le_bytes()) };
        self.written = self.written.wrapping_add((self.count >> 3) as usize);
        self.bits = self.bits.wrapping_shr(self.count as u32 & !7);
        self.count &= 7;
    }

    /// With the bit that shows where the last ones are; the bytes of the stream, or `None` if a byte had no code.
    ///
    /// # Safety
    /// As of [`Writer::push`].
    unsafe fn close(mut self, out: &mut [u8]) -> Option<usize> {
        // SAFETY: as promised; the room has one bit more.
        unsafe { self.push(1, 1, out) };
        (self.seen & u64::from(MISSING) == 0).then_some(self.written + usize::from(self.count > 0))
    }
}

/// Sixty-four bytes at a time: codes are looked up in registers, and four of them are joined before they are written.
#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::{Code, Coder, Writer};

    /// Of a byte without a code.
    const NO_CODE: u8 = 1 << 3;

    /// Of each byte, the low byte of its code, and the high one with the length from bit 4 on.
    #[derive(Debug)]
    pub(super) struct Tables {
        low: [u8; 256],
        high: [u8; 256],
    }

    impl Tables {
        pub(super) fn new(code: &Code) -> Tables {
            Tables {
                low: code.codes.map(|code| code as u8),
                high: std::array::from_fn(|byte| match code.lengths[byte] {
                    0 => NO_CODE,
                    length => (code.codes[byte] >> 8) as u8 | length << 4,
                }),
            }
        }
    }

    pub(super) fn supported() -> bool {
        crate::isa::has_avx512() && is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("bmi2")
    }

    /// # Safety
    /// Each slice has the [`super::room`] of its run.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi2")]
    pub(super) unsafe fn encode_two(
        coder: &Coder,
        runs: [&[u8]; 2],
        mut out: [&mut [u8]; 2],
    ) -> Option<[usize; 2]> {
        let mut seen = _mm512_setzero_si512();
        let tables = [load_table(&coder.vectors.low), load_table(&coder.vectors.high)];
        let mut writers = [Writer::default(); 2];
        let [first, second] = runs.map(|run| run.as_chunks::<64>());
        for (run, (_, rest)) in [first, second].into_iter().enumerate() {
            // SAFETY: as promised.
            unsafe { coder.encode_plainly(rest, &mut writers[run], out[run]) };
        }
        let (mut first, mut second) = (first.0.iter().rev(), second.0.iter().rev());
        let [out_first, out_second] = &mut out;
        let [writer_first, writer_second] = &mut writers;
        loop {
            match (first.next(), second.next()) {
                (Some(one), Some(other)) => {
                    let (one, other) = (join(one, &tables, &mut seen), join(other, &tables, &mut seen));
                    for four in (0..16).rev() {
                        // SAFETY: as promised.
                        unsafe {
                            one.push(four, writer_first, out_first);
                            other.push(four, writer_second, out_second);
                        }
                    }
                }
                (Some(one), None) => {
                    let one = join(one, &tables, &mut seen);
                    // SAFETY: as promised.
                    (0..16).rev().for_each(|four| unsafe { one.push(four, writer_first, out_first) });
                }
                (None, Some(other)) => {
                    let other = join(other, &tables, &mut seen);
                    // SAFETY: as promised.
                    (0..16).rev().for_each(|four| unsafe { other.push(four, writer_second, out_second) });
                }
                (None, None) => break,
            }
        }
        if _mm512_test_epi8_mask(seen, _mm512_set1_epi8(NO_CODE as i8)) != 0 {
            return None;
        }
        let [first, second] = writers;
        // SAFETY: as promised.
        Some([unsafe { first.close(out[0])? }, unsafe { second.close(out[1])? }])
    }

    /// The codes of sixteen times four bytes, joined: of each four the bits, and how many.
    struct Fours {
        /// The even ones, then the odd ones.
        bits: [[u64; 8]; 2],
        counts: [u32; 16],
    }

    impl Fours {
        /// # Safety
        /// As of [`Writer::push`].
        #[inline(always)]
        unsafe fn push(&self, four: usize, writer: &mut Writer, out: &mut [u8]) {
            // SAFETY: as promised.
            unsafe { writer.push(self.bits[four % 2][four / 2], u64::from(self.counts[four]), out) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_table(table: &[u8; 256]) -> [__m512i; 4] {
        let parts = table.as_chunks::<64>().0;
        // SAFETY: each part has the 64 bytes that are loaded.
        std::array::from_fn(|part| unsafe { _mm512_loadu_si512(parts[part].as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(bytes: __m512i, table: &[__m512i; 4]) -> __m512i {
        let low = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
        let high = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn join(bytes: &[u8; 64], tables: &[[__m512i; 4]; 2], seen: &mut __m512i) -> Fours {
        // SAFETY: there are the 64 bytes that are loaded.
        let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        let (low, high) = (look_up(bytes, &tables[0]), look_up(bytes, &tables[1]));
        *seen = _mm512_or_si512(*seen, high);
        let three = _mm512_set1_epi16(0x0700);
        // Of each pair of bytes, the first is the higher part of the joined bits.
        let first = _mm512_or_si512(
            _mm512_and_si512(low, _mm512_set1_epi16(0x00ff)),
            _mm512_and_si512(_mm512_slli_epi16::<8>(high), three),
        );
        let second = _mm512_or_si512(_mm512_srli_epi16::<8>(low), _mm512_and_si512(high, three));
        let first_count = _mm512_and_si512(_mm512_srli_epi16::<4>(high), _mm512_set1_epi16(0x000f));
        let second_count = _mm512_srli_epi16::<12>(high);
        let pair_count = _mm512_add_epi16(first_count, second_count);
        // Pairs in 32 bits: of each two pairs the first one, and the second one.
        let half = _mm512_set1_epi32(0xffff);
        let early = _mm512_or_si512(
            _mm512_and_si512(second, half),
            _mm512_sllv_epi32(_mm512_and_si512(first, half), _mm512_and_si512(second_count, half)),
        );
        let late = _mm512_or_si512(
            _mm512_srli_epi32::<16>(second),
            _mm512_sllv_epi32(_mm512_srli_epi32::<16>(first), _mm512_srli_epi32::<16>(second_count)),
        );
        let late_count = _mm512_srli_epi32::<16>(pair_count);
        let counts = _mm512_add_epi32(_mm512_and_si512(pair_count, half), late_count);
        // Fours in 64 bits.
        let word = _mm512_set1_epi64(0xffff_ffff);
        let even = _mm512_or_si512(
            _mm512_and_si512(late, word),
            _mm512_sllv_epi64(_mm512_and_si512(early, word), _mm512_and_si512(late_count, word)),
        );
        let odd = _mm512_or_si512(
            _mm512_srli_epi64::<32>(late),
            _mm512_sllv_epi64(_mm512_srli_epi64::<32>(early), _mm512_srli_epi64::<32>(late_count)),
        );
        let mut fours = Fours { bits: [[0; 8]; 2], counts: [0; 16] };
        // SAFETY: each array has the 64 bytes that are stored.
        unsafe {
            _mm512_storeu_si512(fours.bits[0].as_mut_ptr().cast(), even);
            _mm512_storeu_si512(fours.bits[1].as_mut_ptr().cast(), odd);
            _mm512_storeu_si512(fours.counts.as_mut_ptr().cast(), counts);
        }
        fours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_write_the_same_bits(
            bytes in prop::collection::vec(0_u8..=255, 2..1000), other in 0_usize..1000, missing in any::<u8>(),
        ) {
            let mut counts = super::super::code::count(&bytes);
            counts[usize::from(bytes[0])] += 5000;
            counts[usize::from(missing)] = 0;
            let Some(code) = Code::of(&counts) else { return Ok(()) };
            let coder = Coder::new(&code);
            let runs = [&bytes[..], &bytes[..other.min(bytes.len())]];
            let mut plain = [vec![0; room(1000)], vec![0; room(1000)]];
            let mut fast = plain.clone();
            let [first, second] = &mut plain;
            // SAFETY: there is room.
            let lengths = unsafe { coder.encode_two_plainly(runs, [first, second]) };
            let [first, second] = &mut fast;
            prop_assert_eq!(coder.encode_two(runs, [first, second]), lengths);
            prop_assert_eq!(lengths.is_none(), bytes.contains(&missing));
            let Some(lengths) = lengths else { return Ok(()) };
            for run in 0..2 {
                prop_assert_eq!(&plain[run][..lengths[run]], &fast[run][..lengths[run]]);
            }
        }
    }
}
