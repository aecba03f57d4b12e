//! Products of packed factors.

use std::marker::PhantomData;
use std::ops::Range;

use crate::leaf;
use crate::matrix::Matrix;
use crate::packed::{Left, Line, PANEL, Parts, Right, STEP};
use crate::sums::Sums;

/// Panels of rows that are multiplied by a panel of columns while it is in the nearest cache.
const ROW_PANELS: usize = 8;
/// Steps of a block in depth: with that many rows, in the bytes that the next cache can keep beside the sums and a panel of
/// columns. Shorter ones would keep that panel in the nearest cache, but loading and storing sums costs more than it saves.
fn block_steps(parts: Parts) -> usize {
    match parts {
        Parts::Three => 32,
        Parts::Six => 21,
    }
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// To nothing.
    Zero,
    /// To the same row everywhere: one number for each column of the result.
    Row(&'a [f32]),
    /// To this multiple of what is there already. With 0, nothing of it counts, not even NaN.
    Scaled(f32),
}

/// Where a product goes: rows × columns numbers.
#[derive(Debug)]
pub struct Out<'a> {
    numbers: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of float32 numbers.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// Rows one after the other.
    ///
    /// # Panics
    /// If the length is not rows × columns.
    pub fn new(numbers: &'a mut [f32], rows: usize, columns: usize) -> Out<'a> {
        assert_eq!(numbers.len(), rows * columns, "the result of a product has another size");
        Out::strided(numbers, rows, columns, columns)
    }

    /// Rows that lie `stride` numbers apart.
    ///
    /// # Panics
    /// If the rows overlap, or do not lie within the numbers.
    pub fn strided(numbers: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Out<'a> {
        assert!(columns <= stride, "the rows of a product's result overlap");
        Matrix::rows(numbers, stride).assert_holds(rows, columns);
        Out { numbers: numbers.as_mut_ptr(), rows, columns, stride, borrowed: PhantomData }
    }

    /// The first `rows` rows, and the others.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn split_rows(self, rows: usize) -> (Out<'a>, Out<'a>) {
        assert!(rows <= self.rows, "there are fewer rows than that");
        let numbers = self.numbers.wrapping_add(rows * self.stride);
        let rest = Out { numbers, rows: self.rows - rows, ..self };
        (Out { rows, ..self }, rest)
    }

    /// The first `columns` columns, and the others.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn split_columns(self, columns: usize) -> (Out<'a>, Out<'a>) {
        assert!(columns <= self.columns, "there are fewer columns than that");
        let numbers = self.numbers.wrapping_add(columns);
        let rest = Out { numbers, columns: self.columns - columns, ..self };
        (Out { columns, ..self }, rest)
    }

    /// The same numbers for a while.
    pub fn reborrow(&mut self) -> Out<'_> {
        Out { borrowed: PhantomData, ..*self }
    }

    /// The rows, one after the other.
    pub fn for_each_row(&mut self, mut work: impl FnMut(&mut [f32])) {
        (0..self.rows).for_each(|row| work(self.part(row, 0, self.columns)));
    }

    fn scale(&mut self, factor: f32) {
        for row in 0..self.rows {
            self.part(row, 0, self.columns).iter_mut().for_each(|number| *number *= factor);
        }
    }

    /// Some of the columns of a row.
    fn part(&mut self, row: usize, column: usize, columns: usize) -> &mut [f32] {
        assert!(row < self.rows && column + columns <= self.columns, "beyond the result of a product");
        // SAFETY: they are some of the numbers that are borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.numbers.add(row * self.stride + column), columns) }
    }
}

/// out = start + left · right, of the panels `rows` of `left` and the panels `columns` of `right`.
///
/// `out` and a starting row are of these panels alone. Every sum goes over the depth in the same order, so the result does not
/// depend on how rows and columns are divided among calls.
///
/// # Errors of the result
/// Those of [`Parts`], and of float32 sums. Numbers below 2⁻¹²⁶ count as 0, in factors, in what a factor leaves when it is
/// split, and in sums: absolutely, an error of 2⁻¹²⁶ times the other factor may come to each product. A sum that is not finite,
/// or a factor above 3.389·10³⁸, makes the result infinite or NaN.
///
/// # Panics
/// If the depths or parts of the factors differ, if there are no such panels, or if the sizes of `out` or of a starting row
/// are others.
pub fn multiply(
    left: &Left,
    rows: Range<usize>,
    right: &Right,
    columns: Range<usize>,
    start: Start<'_>,
    mut out: Out<'_>,
) {
    assert!(left.depth() == right.depth(), "factors of depths {} and {}", left.depth(), right.depth());
    assert!(rows.end <= left.panels() && columns.end <= right.panels(), "there are no such panels");
    let size = (lanes(&rows, left.lanes()), lanes(&columns, right.lanes()));
    let start = Begin::of(start, size, &mut out);
    let tiles = right.units().tiles();
    for panels in blocks(rows.clone(), ROW_PANELS) {
        for steps in even_blocks(left.depth().div_ceil(STEP), block_steps(right.parts())) {
            let block = Block { left, panel: panels.start, step: 0, right, columns: columns.clone() };
            block.multiply(&tiles, panels.len(), (panels.start - rows.start) * PANEL, steps, start, &mut out);
        }
    }
}

/// out = start + left · right, of the first `rows` rows of a matrix that is packed a block at a time, and of the panels
/// `columns` of `right`.
///
/// Faster than [`Left::new`] and [`multiply`] where each row is multiplied once: the packed block never leaves the cache.
/// `space` is for the block, whatever its size and parts; it grows to 1 MiB or less. The result is that of [`multiply`].
///
/// # Panics
/// As [`multiply`] does, and if the matrix does not hold [rows, depth].
pub fn pack_and_multiply(
    left: Matrix<'_>,
    rows: usize,
    space: &mut Left,
    right: &Right,
    columns: Range<usize>,
    start: Start<'_>,
    mut out: Out<'_>,
) {
    let depth = right.depth();
    left.assert_holds(rows, depth);
    assert!(columns.end <= right.panels(), "there are no such panels");
    let start = Begin::of(start, (rows, lanes(&columns, right.lanes())), &mut out);
    let tiles = right.units().tiles();
    for panels in blocks(0..rows.div_ceil(PANEL), ROW_PANELS) {
        let row = panels.start * PANEL;
        for steps in even_blocks(depth.div_ceil(STEP), block_steps(right.parts())) {
            let numbers = depth.min(steps.end * STEP) - steps.start * STEP;
            space.resize(right.parts(), lanes(&panels, rows), numbers);
            space.pack(left.from(row, steps.start * STEP));
            let block = Block { left: space, panel: 0, step: steps.start, right, columns: columns.clone() };
            block.multiply(&tiles, panels.len(), row, steps, start, &mut out);
        }
    }
}

/// Lanes of some panels of a factor that has `all`.
fn lanes(panels: &Range<usize>, all: usize) -> usize {
    (panels.end * PANEL).min(all).saturating_sub(panels.start * PANEL)
}

/// A range in pieces of `size`.
fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |first| first..range.end.min(first + size))
}

/// As few pieces of at most `size` as it takes, of about the same length; one that is empty where there is nothing.
fn even_blocks(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(size).max(1);
    (0..count).map(move |index| length * index / count..length * (index + 1) / count)
}

/// [`Start`], after scaling.
#[derive(Clone, Copy)]
enum Begin<'a> {
    Zero,
    Row(&'a [f32]),
    There,
}

impl<'a> Begin<'a> {
    fn of(start: Start<'a>, size: (usize, usize), out: &mut Out<'_>) -> Begin<'a> {
        assert_eq!((out.rows, out.columns), size, "the result of a product has another size");
        match start {
            Start::Zero => Begin::Zero,
            Start::Row(row) => {
                assert_eq!(row.len(), size.1, "the row that a product is added to has another length");
                Begin::Row(row)
            }
            Start::Scaled(0.0) => Begin::Zero,
            Start::Scaled(factor) => {
                if factor != 1.0 {
                    out.scale(factor);
                }
                Begin::There
            }
        }
    }
}

/// Factors of a block: panels of rows from `panel` on, whose packed steps begin with `step` of the right factor's.
struct Block<'a> {
    left: &'a Left,
    panel: usize,
    step: usize,
    right: &'a Right,
    columns: Range<usize>,
}

impl Block<'_> {
    /// Adds the products over `steps` to `panels` panels of rows of `out`, from row `row` on.
    fn multiply(
        &self,
        tiles: &leaf::Tiles,
        panels: usize,
        row: usize,
        steps: Range<usize>,
        start: Begin<'_>,
        out: &mut Out<'_>,
    ) {
        assert_eq!(self.left.parts(), self.right.parts(), "factors in different parts");
        let parts = self.right.parts();
        let mut edge = Edge([0.0; PANEL * PANEL]);
        let start = if steps.start == 0 { start } else { Begin::There };
        for (column_panel, panel) in self.columns.clone().enumerate() {
            let right = self.right.steps(panel, steps.clone());
            for index in 0..panels {
                let left =
                    self.left.steps(self.panel + index, steps.start - self.step..steps.end - self.step);
                let place = (row + index * PANEL, column_panel * PANEL);
                panel_product(tiles, parts, (left, right), place, start, &mut edge, out);
            }
        }
    }
}

/// Adds the products of a panel of rows and one of columns over some steps to their 32 × 32 place in `out`.
fn panel_product(
    tiles: &leaf::Tiles,
    parts: Parts,
    factors: (&[Line], &[Line]),
    (row, column): (usize, usize),
    start: Begin<'_>,
    edge: &mut Edge,
    out: &mut Out<'_>,
) {
    static ZEROS: Edge = Edge([0.0; PANEL * PANEL]);
    let (rows, columns) = ((out.rows - row).min(PANEL), (out.columns - column).min(PANEL));
    let place = out.numbers.wrapping_add(row * out.stride + column);
    if (rows, columns) == (PANEL, PANEL) {
        let (from, from_stride) = match start {
            Begin::Zero => (ZEROS.0.as_ptr(), 0),
            Begin::Row(row) => (row[column..column + PANEL].as_ptr(), 0),
            Begin::There => (place.cast_const(), out.stride),
        };
        let sums = Sums { from, from_stride, to: place, to_stride: out.stride };
        // SAFETY: 32 rows of 32 numbers lie at a whole place of `out`; 32 numbers at a starting row.
        unsafe { leaf::add_products(tiles, parts, factors, sums) };
        return;
    }
    edge.0.fill(0.0);
    for (i, edge) in edge.0.chunks_exact_mut(PANEL).enumerate().take(rows) {
        match start {
            Begin::Zero => {}
            Begin::Row(row) => edge[..columns].copy_from_slice(&row[column..column + columns]),
            Begin::There => edge[..columns].copy_from_slice(out.part(row + i, column, columns)),
        }
    }
    let numbers = edge.0.as_mut_ptr();
    let sums = Sums { from: numbers.cast_const(), from_stride: PANEL, to: numbers, to_stride: PANEL };
    // SAFETY: the edge is 32 rows of 32 numbers.
    unsafe { leaf::add_products(tiles, parts, factors, sums) };
    for (i, edge) in edge.0.chunks_exact(PANEL).enumerate().take(rows) {
        out.part(row + i, column, columns).copy_from_slice(&edge[..columns]);
    }
}

/// Sums of a place that is smaller than 32 × 32.
#[repr(C, align(64))]
struct Edge([f32; PANEL * PANEL]);
