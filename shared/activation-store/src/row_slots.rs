//! Memory for the rows of a window: slots that circulate one by one between the threads of a writer.
//!
//! A window is filled in the order of the text and emptied in a random one, so each row has to come back by itself. Slots are
//! cut from large pieces, whose huge pages cost a hundredth of the page faults that a million small buffers would.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::{Result, pages};

/// Bytes of a piece (one slot, if that is larger).
const PIECE: usize = 32 << 20;

/// The bytes of one row. It owns them alone, and keeps the piece that they lie in.
pub(crate) struct RowSlot {
    bytes: NonNull<[u8]>,
    /// Of which `bytes` is a part.
    _piece: Arc<MmapMut>,
}

// SAFETY: a slot is the only way to its bytes, and the piece is never read or written through `_piece`.
unsafe impl Send for RowSlot {}
// SAFETY: as above; a shared slot is only read.
unsafe impl Sync for RowSlot {}

impl RowSlot {
    /// At most `count` slots (at least one) of `length` bytes, all zero, in one piece of memory.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn piece(length: usize, count: usize) -> Result<Vec<RowSlot>> {
        let count = count.min(PIECE / length.max(1)).max(1);
        let mut map = pages::map((count * length).max(1), "rows of a window")?;
        let start = NonNull::from(&mut map[..]).cast::<u8>();
        let piece = Arc::new(map);
        let slot = |number: usize| {
            // SAFETY: slot `number` lies within the `count` · `length` bytes of the piece.
            let first = unsafe { start.add(number * length) };
            RowSlot { bytes: NonNull::slice_from_raw_parts(first, length), _piece: piece.clone() }
        };
        Ok((0..count).map(slot).collect())
    }
}

impl Deref for RowSlot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece is alive, its bytes are initialised, and no other slot has any of these.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len()) }
    }
}

impl DerefMut for RowSlot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this slot is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.bytes.as_ptr().cast(), self.bytes.len()) }
    }
}

impl fmt::Debug for RowSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowSlot({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_share_no_byte_and_outlive_each_other() {
        let mut slots = RowSlot::piece(7, 100).unwrap();
        assert_eq!(slots.len(), 100);
        for (number, slot) in slots.iter_mut().enumerate() {
            assert_eq!(**slot, [0; 7]);
            slot.fill(number as u8);
        }
        let last = slots.pop().unwrap();
        for (number, slot) in slots.iter().enumerate() {
            assert_eq!(**slot, [number as u8; 7]);
        }
        drop(slots);
        assert_eq!(*last, [99; 7]);
    }

    #[test]
    fn a_piece_is_bounded_and_holds_at_least_one_row() {
        assert_eq!(RowSlot::piece(1 << 20, 1000).unwrap().len(), 32);
        let huge = RowSlot::piece(PIECE + 1, 1000).unwrap();
        assert_eq!((huge.len(), huge[0].len()), (1, PIECE + 1));
    }
}
