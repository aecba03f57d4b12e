//! A Huffman code of at most eleven bits for the bytes of a plane.

use super::weights;

/// Bits of the longest code that zstd allows.
pub(super) const LONGEST: usize = 11;

/// How many of each byte.
pub(super) type Counts = [u32; 256];

/// Which bits stand for each byte.
#[derive(Debug, Clone)]
pub(super) struct Code {
    /// Bits of each byte's code; 0 if it has none.
    pub(super) lengths: [u8; 256],
    /// Its code, in the lowest bits.
    pub(super) codes: [u16; 256],
    /// How the frame describes it.
    pub(super) description: Vec<u8>,
}

impl Code {
    /// The best code for these bytes; `None` if they are all the same, or the code has no description.
    pub(super) fn of(counts: &Counts) -> Option<Code> {
        let lengths = lengths(counts)?;
        let longest = usize::from(lengths.iter().copied().max()?);
        // The longest codes begin at 0; of one length, in the order of the bytes.
        let mut of_length = [0_u16; LONGEST + 2];
        lengths.iter().filter(|&&length| length > 0).for_each(|&length| of_length[usize::from(length)] += 1);
        let mut next = [0_u16; LONGEST + 2];
        for length in (1..=LONGEST).rev() {
            next[length] = (next[length + 1] + of_length[length + 1]) / 2;
        }
        let codes = lengths.map(|length| {
            let next = &mut next[usize::from(length)];
            let code = *next;
            *next += u16::from(length > 0);
            code
        });
        let weights = lengths.map(|length| if length == 0 { 0 } else { longest as u8 + 1 - length });
        let last = weights.iter().rposition(|&weight| weight > 0)?;
        let description = weights::describe(&weights[..last])?;
        Some(Code { lengths, codes, description })
    }

    /// Bytes that `counts` of bytes take, without the description.
    pub(super) fn cost(&self, counts: &Counts) -> usize {
        let bits =
            counts.iter().zip(&self.lengths).map(|(&count, &length)| count as usize * usize::from(length));
        bits.sum::<usize>() / 8
    }
}

/// The lengths of the best code of at most eleven bits (package-merge, Larmore and Hirschberg 1990); `None` if fewer than two
/// bytes occur.
fn lengths(counts: &Counts) -> Option<[u8; 256]> {
    let mut symbols: Vec<u8> = (0..=255).filter(|&byte| counts[usize::from(byte)] > 0).collect();
    symbols.sort_by_key(|&byte| counts[usize::from(byte)]);
    let many = symbols.len();
    if many < 2 {
        return None;
    }
    let singles: Vec<u64> = symbols.iter().map(|&byte| u64::from(counts[usize::from(byte)])).collect();
    // At each level the symbols and the pairs of the level before it, by weight; which ones are symbols is kept.
    let mut level = singles.clone();
    let mut is_symbol = vec![vec![true; many]];
    for _ in 1..LONGEST {
        let pairs = level.len() / 2;
        let (mut next, mut kinds) = (Vec::with_capacity(many + pairs), Vec::with_capacity(many + pairs));
        let mut rest = &singles[..];
        for pair in level.chunks_exact(2) {
            let pair = pair[0] + pair[1];
            let before = rest.iter().take_while(|&&single| single <= pair).count();
            next.extend_from_slice(&rest[..before]);
            kinds.resize(kinds.len() + before, true);
            next.push(pair);
            kinds.push(false);
            rest = &rest[before..];
        }
        next.extend_from_slice(rest);
        kinds.resize(next.len(), true);
        level = next;
        is_symbol.push(kinds);
    }
    let mut lengths = [0; 256];
    let mut taken = 2 * many - 2;
    for kinds in is_symbol.iter().rev() {
        let of_symbols = kinds[..taken].iter().filter(|&&symbol| symbol).count();
        symbols[..of_symbols].iter().for_each(|&byte| lengths[usize::from(byte)] += 1);
        taken = 2 * (taken - of_symbols);
    }
    Some(lengths)
}

/// How many of each byte there are.
pub(super) fn count(bytes: &[u8]) -> Counts {
    count_pieces(std::iter::once(bytes))
}

/// The same of several pieces.
pub(super) fn count_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Counts {
    // Four tables, so that equal bytes in a row do not wait for each other.
    let mut tables = [[0_u32; 256]; 4];
    for piece in pieces {
        let (eights, rest) = piece.as_chunks::<8>();
        for eight in eights {
            let word = u64::from_le_bytes(*eight);
            for byte in 0..8 {
                let count = &mut tables[byte % 4][(word >> (8 * byte)) as usize & 255];
                *count = count.wrapping_add(1);
            }
        }
        rest.iter().for_each(|&byte| tables[0][usize::from(byte)] += 1);
    }
    std::array::from_fn(|byte| tables.iter().map(|table| table[byte]).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_is_complete_bounded_and_no_longer_than_eight_bits_each(
            counts in prop::collection::vec(prop_oneof![Just(0_u32), 1_u32..20, 1_u32..1_000_000], 256),
        ) {
            let counts: Counts = counts.try_into().unwrap();
            let Some(lengths) = lengths(&counts) else { return Ok(()) };
            let kraft: usize = lengths.iter().filter(|&&length| length > 0).map(|&length| 1 << (LONGEST - usize::from(length))).sum();
            prop_assert_eq!(kraft, 1 << LONGEST);
            for byte in 0..256 {
                prop_assert_eq!(lengths[byte] > 0, counts[byte] > 0);
                prop_assert!(usize::from(lengths[byte]) <= LONGEST);
            }
            let bits: u64 = (0..256).map(|byte| u64::from(counts[byte]) * u64::from(lengths[byte])).sum();
            prop_assert!(bits <= 8 * counts.iter().map(|&count| u64::from(count)).sum::<u64>());
        }

        #[test]
        fn bytes_are_counted(bytes: Vec<u8>) {
            let counts = count(&bytes);
            for byte in 0..=255 {
                let expected = bytes.iter().filter(|&&other| other == byte).count();
                prop_assert_eq!(counts[usize::from(byte)] as usize, expected);
            }
        }
    }
}
