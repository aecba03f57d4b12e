//! One bit for each of some rows.

/// One bit per row of a chunk, the first in the lowest bit of the first word.
pub(crate) type ChunkBits = Box<[u64]>;

/// Flags, 64 to a word.
pub(crate) fn bits(flags: impl Iterator<Item = bool>) -> Vec<u64> {
    let mut words = Vec::new();
    for (index, flag) in flags.enumerate() {
        if index % 64 == 0 {
            words.push(0);
        }
        words[index / 64] |= u64::from(flag) << (index % 64);
    }
    words
}
