//! Words in memory that begins at a cache line, as matrix units want it.

use std::ops::{Deref, DerefMut};

/// A cache line.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Words that begin at a cache line.
#[derive(Debug, Default)]
pub(super) struct Words {
    lines: Vec<Line>,
    length: usize,
}

impl Words {
    /// Makes room for so many words. What they hold is of no interest.
    pub(super) fn resize(&mut self, length: usize) {
        self.lines.resize(length.div_ceil(16), Line::default());
        self.length = length;
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}
