//! The system's allocator, except that large arrays begin at a cache line.
//!
//! The system places them 16 bytes after one, so that every second vector of 32 bytes straddles two lines. The encode then
//! takes 5 % longer and the decode 10 %.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Smaller arrays are not moved.
const LARGE: usize = 4096;

pub(crate) struct CacheLines;

/// Depends only on the layout, so that memory is released as it was allocated.
fn aligned(layout: Layout) -> Layout {
    if layout.size() < LARGE {
        return layout;
    }
    // An alignment is only refused where the size does not fit the address space; the system refuses that as well.
    layout.align_to(CACHE_LINE).unwrap_or(layout)
}

// SAFETY: all memory is the system's, asked for and given back with the same layout; what is not overridden
// is made of these two.
unsafe impl GlobalAlloc for CacheLines {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is the caller's, and not zero; the alignment is a power of two.
        unsafe { System.alloc(aligned(layout)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory was taken with this layout.
        unsafe { System.dealloc(memory, aligned(layout)) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn large_arrays_begin_at_a_cache_line_and_survive_growth() {
        let mut numbers: Vec<u32> = (0..100).collect();
        for length in [1_000, 1_025, 50_000, 3_000_000] {
            numbers.extend(numbers.len() as u32..length);
            numbers.shrink_to_fit();
            assert!(numbers.iter().copied().eq(0..length));
            if length >= 1_025 {
                assert!(numbers.as_ptr().addr().is_multiple_of(super::CACHE_LINE));
            }
        }
        numbers.truncate(10);
        numbers.shrink_to_fit();
        assert!(numbers.iter().copied().eq(0..10));
    }
}
