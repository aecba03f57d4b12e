//! What a zstd frame consists of (RFC 8878).

/// Bytes of a block before it is coded: zstd allows no more.
pub(crate) const BLOCK: usize = 128 << 10;
/// Bytes of a block's header.
pub(crate) const BLOCK_HEADER: usize = 3;
/// Magic number; a content size of four bytes; a window of [`BLOCK`].
pub(super) const HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x80, 7 << 3];
/// Bytes of a header with its content size.
pub(crate) const HEADER_BYTES: usize = HEADER.len() + 4;

/// Types of blocks: as they are; one byte, repeated; coded.
pub(super) const RAW: u32 = 0;
pub(super) const SAME: u32 = 1;
pub(super) const COMPRESSED: u32 = 2;

/// The header of a frame of `content` bytes; `None` if they are too many for it.
pub(crate) fn header(content: usize) -> Option<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    header[..HEADER.len()].copy_from_slice(&HEADER);
    header[HEADER.len()..].copy_from_slice(&u32::try_from(content).ok()?.to_le_bytes());
    Some(header)
}

/// The bytes of a block that is stored as it is and has another one after it, by its header.
pub(crate) fn raw_block([a, b, c]: [u8; BLOCK_HEADER]) -> Option<usize> {
    let header = u32::from_le_bytes([a, b, c, 0]);
    let size = (header >> 3) as usize;
    (header & 7 == RAW << 1 && size <= BLOCK).then_some(size)
}

/// The header of a block of type `kind`.
pub(super) fn block_header(kind: u32, size: usize, last: bool) -> [u8; BLOCK_HEADER] {
    let header = u32::from(last) | kind << 1 | (size as u32) << 3;
    let [a, b, c, _] = header.to_le_bytes();
    [a, b, c]
}

/// A number of a few bytes.
pub(super) fn little_endian(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}
