//! An allocator with a limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be allocated at once. What is meant to be large (a line of JSON has 256 MiB at most) has room.
const LIMIT: usize = 1 << 30;

/// The system's allocator, which gives no more than 1 GiB: more makes the process abort and name the size.
#[derive(Debug)]
pub struct BoundedMemory;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory is the system allocator's; a null pointer is a refusal, as the trait allows.
unsafe impl GlobalAlloc for BoundedMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed).saturating_add(layout.size()) > LIMIT {
            ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
