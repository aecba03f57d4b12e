//! Memory for packed factors.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::packed::Line;

/// A large page of x86-64.
const LARGE_PAGE: usize = 2 << 20;
/// From this size on, in bytes, large pages are worth their size.
const LARGE: usize = LARGE_PAGE / 4;

/// Lines, in large pages where they are many: a product reads more pages of 4 KiB than the processor remembers the addresses
/// of, and looking these up takes a third of its time.
pub(crate) enum Lines {
    Few(Vec<Line>),
    Many { first: NonNull<Line>, count: usize, mapping: NonNull<libc::c_void>, bytes: usize },
}

// SAFETY: the mapping belongs to this value alone, like a vector's memory.
unsafe impl Send for Lines {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Lines {}

impl Lines {
    pub(crate) fn zeros(count: usize) -> Lines {
        let few = || Lines::Few(vec![Line([0; 32]); count]);
        if size_of::<Line>() * count < LARGE { few() } else { Lines::mapped(count).unwrap_or_else(few) }
    }

    /// None where the system gives no mapping.
    fn mapped(count: usize) -> Option<Lines> {
        let wanted = (size_of::<Line>() * count).checked_next_multiple_of(LARGE_PAGE)?;
        let bytes = wanted.checked_add(LARGE_PAGE)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the system's choice.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return None;
        }
        let mapping = NonNull::new(mapping)?;
        let first = mapping.as_ptr().map_addr(|address| address.next_multiple_of(LARGE_PAGE));
        // SAFETY: a part of the mapping. Where there are no large pages it stays as it is.
        unsafe { libc::madvise(first, wanted, libc::MADV_HUGEPAGE) };
        Some(Lines::Many { first: NonNull::new(first.cast())?, count, mapping, bytes })
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Lines::Few(lines) => lines,
            // SAFETY: as many lines lie there, of zeros or of what was written since, and belong to this value.
            Lines::Many { first, count, .. } => unsafe { std::slice::from_raw_parts(first.as_ptr(), *count) },
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Lines::Few(lines) => lines,
            // SAFETY: as above.
            Lines::Many { first, count, .. } => unsafe {
                std::slice::from_raw_parts_mut(first.as_ptr(), *count)
            },
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Lines::Many { mapping, bytes, .. } = self {
            // SAFETY: the mapping was made with this size, and nobody else has it.
            unsafe { libc::munmap(mapping.as_ptr(), *bytes) };
        }
    }
}
