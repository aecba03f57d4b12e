//! Factors of a product, split into bfloat16 numbers and laid out in tiles.
//!
//! A panel is 32 lanes: rows of the left factor, columns of the right one. A step is 32 numbers of each lane along the depth,
//! the dimension that is summed over. A panel lies step after step, a step part after part, a part as two tiles of 16 lanes.
//! A tile is 16 lines of 64 bytes: of the left factor a line is 32 numbers of a row; of the right factor it is a pair of
//! numbers, one below the other, of each of 16 columns. Zeros stand where a lane or the depth ends earlier.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::leaf::{self, Lines, MatrixUnits};
use crate::matrix::Matrix;

/// Rows of the left factor, or columns of the right one, that are packed and multiplied together.
pub const PANEL: usize = 32;
/// Numbers along the depth in a tile.
pub(crate) const STEP: usize = 32;
/// Lines of the two tiles of one part of a step.
pub(crate) const PART_LINES: usize = 32;

/// In how many products of bfloat16 numbers a product of float32 numbers is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parts {
    /// Each number is hi + lo, and lo·lo is left out: an error of at most 2⁻¹⁶ |a|·|b| in each product of two numbers, and an
    /// rms error of about 4·10⁻⁶ of the rms of the sums.
    Three,
    /// Each number is hi + mid + lo, exactly, and the three smallest of nine products are left out: the error is that of adding
    /// in float32, as in any other order.
    Six,
}

impl Parts {
    /// Numbers that a float32 number is split into.
    pub(crate) fn pieces(self) -> usize {
        match self {
            Parts::Three => 2,
            Parts::Six => 3,
        }
    }
}

/// A cache line of bfloat16 numbers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u16; 32]);

/// Which factor of a product: [`Rows`] or [`Columns`].
pub trait Side: sealed::Sealed {
    #[doc(hidden)]
    const LEFT: bool;
}

/// The left factor's lanes.
#[derive(Debug)]
pub enum Rows {}
/// The right factor's lanes.
#[derive(Debug)]
pub enum Columns {}

impl Side for Rows {
    const LEFT: bool = true;
}
impl Side for Columns {
    const LEFT: bool = false;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Rows {}
    impl Sealed for super::Columns {}
}

/// A packed left factor [rows, depth].
pub type Left = Packed<Rows>;
/// A packed right factor [depth, columns].
pub type Right = Packed<Columns>;

/// A factor of a product in split tiles. It takes 4 bytes a number in three parts and 6 in six, with lanes and depth rounded
/// up to multiples of 32.
pub struct Packed<S> {
    units: MatrixUnits,
    parts: Parts,
    lanes: usize,
    depth: usize,
    /// At least as many as there are panels of.
    lines: Lines,
    side: PhantomData<S>,
}

impl<S> fmt::Debug for Packed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed {{ {} lanes of {} numbers in {:?} parts }}", self.lanes, self.depth, self.parts)
    }
}

impl<S: Side> Packed<S> {
    /// Room for a factor of `lanes` rows (left) or columns (right) of `depth` numbers. All are 0.
    pub fn zeros(units: MatrixUnits, parts: Parts, lanes: usize, depth: usize) -> Packed<S> {
        let count = lanes.div_ceil(PANEL) * panel_lines(parts, depth);
        Packed { units, parts, lanes, depth, lines: Lines::zeros(count), side: PhantomData }
    }

    /// Packs `source`, [lanes, depth] for a left factor and [depth, lanes] for a right one.
    ///
    /// # Panics
    /// If the source does not hold as many numbers.
    pub fn new(
        units: MatrixUnits,
        parts: Parts,
        (lanes, depth): (usize, usize),
        source: Matrix<'_>,
    ) -> Packed<S> {
        let mut packed = Packed::zeros(units, parts, lanes, depth);
        packed.pack(source);
        packed
    }

    /// Makes room for another factor, whose numbers are any until they are packed. Memory is kept.
    pub fn resize(&mut self, parts: Parts, lanes: usize, depth: usize) {
        (self.parts, self.lanes, self.depth) = (parts, lanes, depth);
        let count = lanes.div_ceil(PANEL) * panel_lines(parts, depth);
        if count > self.lines.len() {
            self.lines = Lines::zeros(count);
        }
    }

    /// Replaces the factor by another of the same size: [lanes, depth] for a left factor, [depth, lanes] for a right one.
    ///
    /// # Panics
    /// If the source does not hold as many numbers.
    pub fn pack(&mut self, source: Matrix<'_>) {
        self.split(usize::MAX).for_each(|mut panels| panels.pack(source));
    }

    /// All panels, `panels` at a time, so that several threads can pack them.
    ///
    /// # Panics
    /// If `panels` is 0.
    pub fn split(&mut self, panels: usize) -> impl Iterator<Item = Panels<'_, S>> {
        let (units, parts, lanes, depth) = (self.units, self.parts, self.lanes, self.depth);
        let lines = panel_lines(parts, depth);
        let panels = panels.min(lanes.div_ceil(PANEL).max(1));
        let count = lanes.div_ceil(PANEL) * lines;
        self.lines[..count].chunks_mut((panels * lines).max(1)).enumerate().map(move |(index, lines)| {
            let first = index * panels * PANEL;
            let lanes = first..lanes.min(first + panels * PANEL);
            Panels { units, parts, lanes, depth, lines, side: PhantomData }
        })
    }

    /// Rows or columns.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Numbers in a row of the left factor, or in a column of the right one.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Panels of 32 lanes; the last may be smaller.
    pub fn panels(&self) -> usize {
        self.lanes.div_ceil(PANEL)
    }

    /// In how many products it is multiplied.
    pub fn parts(&self) -> Parts {
        self.parts
    }

    /// The units that multiply it.
    pub fn units(&self) -> MatrixUnits {
        self.units
    }

    /// Some steps of a panel.
    pub(crate) fn steps(&self, panel: usize, steps: Range<usize>) -> &[Line] {
        let (panel_lines, lines) = (panel_lines(self.parts, self.depth), step_lines(self.parts));
        &self.lines[panel * panel_lines..(panel + 1) * panel_lines][steps.start * lines..steps.end * lines]
    }
}

/// Some panels of a factor, to be packed.
pub struct Panels<'a, S> {
    units: MatrixUnits,
    parts: Parts,
    /// Of the whole factor.
    lanes: Range<usize>,
    depth: usize,
    lines: &'a mut [Line],
    side: PhantomData<S>,
}

// SAFETY: the panels are numbers that are borrowed alone; S is only a name.
unsafe impl<S> Send for Panels<'_, S> {}

impl<S> fmt::Debug for Panels<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Panels {{ lanes {:?} of {} numbers }}", self.lanes, self.depth)
    }
}

impl<S: Side> Panels<'_, S> {
    /// Packs these panels from `source`, which is the whole factor.
    ///
    /// # Panics
    /// If the source does not hold the whole factor.
    pub fn pack(&mut self, source: Matrix<'_>) {
        let source = if S::LEFT { source } else { source.transposed() };
        source.assert_holds(self.lanes.end, self.depth);
        let panels = self.lanes.len().div_ceil(PANEL);
        let steps = self.depth.div_ceil(STEP);
        if source.strides().1 == 1 {
            (0..panels).for_each(|panel| (0..steps).for_each(|step| self.pack_step(source, panel, step)));
        } else {
            // Memory goes on across the lanes.
            (0..steps).for_each(|step| (0..panels).for_each(|panel| self.pack_step(source, panel, step)));
        }
    }

    /// Packs a step of a panel from the whole factor, [lanes, depth].
    fn pack_step(&mut self, source: Matrix<'_>, panel: usize, step: usize) {
        let first = self.lanes.start + panel * PANEL;
        let size = ((self.lanes.end - first).min(PANEL), (self.depth - step * STEP).min(STEP));
        let (panel_lines, lines) = (panel_lines(self.parts, self.depth), step_lines(self.parts));
        let lines = &mut self.lines[panel * panel_lines + step * lines..][..lines];
        leaf::pack_step(self.units, self.parts, S::LEFT, source.from(first, step * STEP), size, lines);
    }
}

/// Lines of a step of a panel.
pub(crate) fn step_lines(parts: Parts) -> usize {
    parts.pieces() * PART_LINES
}

/// Lines of a panel.
pub(crate) fn panel_lines(parts: Parts, depth: usize) -> usize {
    depth.div_ceil(STEP) * step_lines(parts)
}
