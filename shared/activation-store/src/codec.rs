//! How a chunk and a shard are encoded: byte planes, zstd, crc32c; then the chunks, their index, its crc32c.
//!
//! A chunk of `n` elements of `e` bytes is stored as `e` planes of `n` bytes: first the lowest byte of every element, then
//! the next one, and so on. (That is `numcodecs.shuffle`.) The high bytes of activations compress well and the low ones
//! hardly at all. Kept apart, zstd compresses the former and copies the latter.

use std::ops::Range;
use std::path::Path;

use crate::frame::FrameWriter;
use crate::isa::per_isa;
use crate::{Result, StoreError, StoreSpec};

/// Bytes of the checksum after a chunk and after an index.
pub(crate) const CHECKSUM: usize = 4;
/// Offset and length of a chunk that holds no row.
const MISSING: u64 = u64::MAX;

/// Writes the bytes of consecutive elements into the planes, beginning at element `first`.
pub(crate) fn shuffle_into(elements: &[u8], size: usize, planes: &mut [u8], first: usize) {
    let per_plane = planes.len() / size;
    let count = elements.len() / size;
    if size == 2 {
        let (low, high) = planes.split_at_mut(per_plane);
        let (low, high) = (&mut low[first..first + count], &mut high[first..first + count]);
        return split_pairs(elements.as_chunks().0, low, high);
    }
    for (byte, plane) in planes.chunks_exact_mut(per_plane).enumerate() {
        let plane = &mut plane[first..first + count];
        for (to, element) in plane.iter_mut().zip(elements.chunks_exact(size)) {
            *to = element[byte];
        }
    }
}

per_isa! {
    /// The low and the high bytes of elements of two bytes.
    fn split_pairs(elements: &[[u8; 2]], low: &mut [u8], high: &mut [u8]) {
        for ((element, low), high) in elements.iter().zip(low).zip(high) {
            let element = u16::from_le_bytes(*element);
            *low = element as u8;
            *high = (element >> 8) as u8;
        }
    }
}

/// The elements `range` of a chunk, back in their natural byte order.
pub(crate) fn unshuffle(planes: &[u8], size: usize, range: Range<usize>) -> Vec<u8> {
    let per_plane = planes.len() / size;
    let mut elements = vec![0; range.len() * size];
    for (byte, plane) in planes.chunks_exact(per_plane).enumerate() {
        for (element, &from) in elements.chunks_exact_mut(size).zip(&plane[range.clone()]) {
            element[byte] = from;
        }
    }
    elements
}

/// Compresses one chunk's planes into `stored`, of which only the memory is kept, and appends the checksum.
pub(crate) fn encode_chunk(
    compressor: &mut zstd::bulk::Compressor<'_>,
    planes: &[u8],
    stored: &mut Vec<u8>,
) -> std::io::Result<()> {
    stored.clear();
    stored.reserve_exact(zstd::zstd_safe::compress_bound(planes.len()) + CHECKSUM);
    compressor.compress_to_buffer(planes, stored)?;
    let checksum = crc32c::crc32c(stored);
    stored.extend_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Encodes the planes of a full chunk of rows into `stored`, of which only the memory is kept, and appends the checksum.
pub(crate) fn encode_rows(
    frames: &mut FrameWriter,
    spec: &StoreSpec,
    planes: &[u8],
    stored: &mut Vec<u8>,
) -> std::io::Result<()> {
    stored.clear();
    frames.write(planes, spec.row_type.bytes(), spec.width, stored)?;
    let checksum = crc32c::crc32c(stored);
    stored.extend_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Checks and decompresses one chunk into `planes`, which must be exactly as long as the chunk.
pub(crate) fn decode_chunk(
    decompressor: &mut zstd::bulk::Decompressor<'_>,
    stored: &[u8],
    planes: &mut [u8],
) -> std::result::Result<(), String> {
    let front = &stored[..stored.len().saturating_sub(CHECKSUM)];
    decode_chunk_with(decompressor, stored, crc32c::crc32c(front), planes)
}

/// [`decode_chunk`] where the checksum of all but the last [`CHECKSUM`] bytes was `found` to be this.
pub(crate) fn decode_chunk_with(
    decompressor: &mut zstd::bulk::Decompressor<'_>,
    stored: &[u8],
    found: u32,
    planes: &mut [u8],
) -> std::result::Result<(), String> {
    let Some((compressed, checksum)) = stored.split_last_chunk::<CHECKSUM>() else {
        return Err(format!("it has {} bytes, too few for a checksum", stored.len()));
    };
    let expected = u32::from_le_bytes(*checksum);
    if found != expected {
        return Err(format!("its crc32c is {found:08x}, recorded is {expected:08x}"));
    }
    let written = decompressor
        .decompress_to_buffer(compressed, planes)
        .map_err(|error| format!("zstd cannot decompress it to {} bytes ({error})", planes.len()))?;
    if written != planes.len() {
        return Err(format!("it decompresses to {written} bytes, expected {}", planes.len()));
    }
    Ok(())
}

/// Encodes a chunk of the `tokens` array; what the chunk's contexts do not fill is zeros.
pub(crate) fn encode_tokens(
    compressor: &mut zstd::bulk::Compressor<'_>,
    spec: &StoreSpec,
    tokens: &[u32],
) -> std::io::Result<Vec<u8>> {
    let tokens = tokens.iter().copied().map(u64::from);
    encode_integers(compressor, spec.token_bytes(), spec.token_chunk_contexts() * spec.context_length, tokens)
}

/// Encodes a chunk of the `origin` array; the last chunk is padded with zeros.
pub(crate) fn encode_origins(
    compressor: &mut zstd::bulk::Compressor<'_>,
    spec: &StoreSpec,
    origins: &[u64],
) -> std::io::Result<Vec<u8>> {
    encode_integers(compressor, spec.origin_bytes(), spec.layout.chunk_rows, origins.iter().copied())
}

/// Encodes a chunk of `count` integers of `size` bytes, of which the last ones can be missing.
fn encode_integers(
    compressor: &mut zstd::bulk::Compressor<'_>,
    size: usize,
    count: usize,
    integers: impl Iterator<Item = u64>,
) -> std::io::Result<Vec<u8>> {
    let mut planes = vec![0; count * size];
    for (number, integer) in integers.enumerate() {
        shuffle_into(&integer.to_le_bytes()[..size], size, &mut planes, number);
    }
    let mut stored = Vec::new();
    encode_chunk(compressor, &planes, &mut stored)?;
    stored.shrink_to_fit();
    Ok(stored)
}

/// The tokens `range` of the chunk of the `tokens` array that is `stored` at `path`.
pub(crate) fn decode_tokens(
    path: &Path,
    stored: &[u8],
    spec: &StoreSpec,
    range: Range<usize>,
) -> Result<Vec<u32>> {
    let size = spec.token_bytes();
    let mut planes = vec![0; spec.token_chunk_contexts() * spec.context_length * size];
    zstd::bulk::Decompressor::new()
        .map_err(|error| error.to_string())
        .and_then(|mut decompressor| decode_chunk(&mut decompressor, stored, &mut planes))
        .map_err(|what| StoreError::damaged(path, what))?;
    Ok(unshuffle(&planes, size, range).chunks_exact(size).map(|bytes| little_endian(bytes) as u32).collect())
}

/// An unsigned number of up to eight bytes.
pub(crate) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The index of a shard: where each of its inner chunks lies; `None` for a chunk past the last row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShardIndex(pub(crate) Vec<Option<Range<u64>>>);

impl ShardIndex {
    /// Bytes of an index of `chunks` inner chunks, with its checksum.
    pub(crate) fn encoded_len(chunks: usize) -> usize {
        16 * chunks + CHECKSUM
    }

    /// The encoded index of a shard whose first chunks have the given lengths and lie one after the other.
    pub(crate) fn encode(lengths: impl IntoIterator<Item = u64>, chunks: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::encoded_len(chunks));
        let mut offset = 0_u64;
        for length in lengths {
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
            offset += length;
        }
        bytes.resize(16 * chunks, 0xff);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the index at the end of a shard file, of which the first `present` of `chunks` chunks hold rows.
    pub(crate) fn parse(file: &[u8], chunks: usize, present: usize) -> std::result::Result<Self, String> {
        Self::parse_tail(file, file.len() as u64, chunks, present)
    }

    /// Reads the index at the end of a file of `length` bytes, of which `tail` are the last ones.
    pub(crate) fn parse_tail(
        tail: &[u8],
        length: u64,
        chunks: usize,
        present: usize,
    ) -> std::result::Result<Self, String> {
        let Some(start) = tail.len().checked_sub(Self::encoded_len(chunks)) else {
            return Err(format!("it has {length} bytes, too few for the index of {chunks} chunks"));
        };
        let data_end = length - Self::encoded_len(chunks) as u64;
        let (entries, checksum) = tail[start..].split_at(16 * chunks);
        let found = crc32c::crc32c(entries);
        if found.to_le_bytes() != checksum {
            return Err(format!("the crc32c of its index is {found:08x}, which is not the recorded one"));
        }
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let mut index = Vec::with_capacity(chunks);
        for (chunk, entry) in entries.chunks_exact(16).enumerate() {
            let (offset, length) = (word(&entry[..8]), word(&entry[8..]));
            index.push(match (chunk < present, (offset, length)) {
                (false, (MISSING, MISSING)) => None,
                (false, _) => {
                    return Err(format!(
                        "its chunk {chunk} lies past the last row and is not marked missing"
                    ));
                }
                (true, (MISSING, MISSING)) => return Err(format!("its chunk {chunk} is marked missing")),
                (true, _) => {
                    let end = offset.checked_add(length).filter(|&end| end <= data_end);
                    let end =
                        end.ok_or_else(|| format!("its chunk {chunk} would end beyond the file's chunks"))?;
                    Some(offset..end)
                }
            });
        }
        Ok(ShardIndex(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn byte_planes_are_the_low_bytes_then_the_high_bytes() {
        let mut planes = [0; 6];
        shuffle_into(&[0x01, 0x11, 0x02, 0x12], 2, &mut planes, 1);
        assert_eq!(planes, [0, 0x01, 0x02, 0, 0x11, 0x12]);
        assert_eq!(unshuffle(&planes, 2, 1..3), [0x01, 0x11, 0x02, 0x12]);
    }

    #[test]
    fn an_index_holds_offsets_lengths_and_a_checksum() {
        let bytes = ShardIndex::encode([5, 7], 3);
        #[rustfmt::skip]
        assert_eq!(bytes[..48], [
            0, 0, 0, 0, 0, 0, 0, 0,   5, 0, 0, 0, 0, 0, 0, 0,
            5, 0, 0, 0, 0, 0, 0, 0,   7, 0, 0, 0, 0, 0, 0, 0,
            255, 255, 255, 255, 255, 255, 255, 255,   255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        let file = [&[9; 12], &bytes[..]].concat();
        let index = ShardIndex::parse(&file, 3, 2).unwrap();
        assert_eq!(index.0, [Some(0..5), Some(5..12), None]);
        assert!(ShardIndex::parse(&file, 3, 3).unwrap_err().contains("chunk 2 is marked missing"));
        assert!(ShardIndex::parse(&file, 3, 1).unwrap_err().contains("not marked missing"));
        assert!(ShardIndex::parse(&file[1..], 3, 2).unwrap_err().contains("beyond"));
        assert!(ShardIndex::parse(&file[..20], 3, 2).unwrap_err().contains("too few"));
    }

    proptest! {
        #[test]
        fn a_chunk_comes_back_and_no_flipped_bit_passes(
            planes in prop::collection::vec(0_u8..20, 1..3000), bit: prop::sample::Index,
        ) {
            let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
            let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
            let mut stored = vec![1; 5000];
            encode_chunk(&mut compressor, &planes, &mut stored).unwrap();
            let mut decoded = vec![0; planes.len()];
            decode_chunk(&mut decompressor, &stored, &mut decoded).unwrap();
            prop_assert_eq!(&decoded, &planes);
            prop_assert!(decode_chunk(&mut decompressor, &stored, &mut vec![0; planes.len() + 1]).is_err());
            prop_assert!(decode_chunk(&mut decompressor, &stored, &mut decoded[1..]).is_err());
            let bit = bit.index(stored.len() * 8);
            stored[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_chunk(&mut decompressor, &stored, &mut decoded).is_err());
        }

        #[test]
        fn any_index_gives_an_error_or_ranges_inside_the_file(
            mut file in prop::collection::vec(any::<u8>(), 0..200), chunks in 0_usize..8, present in 0_usize..8,
        ) {
            if file.len() >= ShardIndex::encoded_len(chunks) {
                let end = file.len() - 4;
                let checksum = crc32c::crc32c(&file[end - 16 * chunks..end]);
                file[end..].copy_from_slice(&checksum.to_le_bytes());
            }
            if let Ok(ShardIndex(index)) = ShardIndex::parse(&file, chunks, present) {
                prop_assert!(index.iter().flatten().all(|range| range.start <= range.end && range.end <= file.len() as u64));
            }
        }
    }
}
