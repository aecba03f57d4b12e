//! Float32 matrices in memory.

/// A matrix of float32 numbers: element (i, j) lies at i·row_stride + j·column_stride.
///
/// Packing is fast where one of the strides is 1, and right for any.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    numbers: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows lie `row_stride` numbers apart.
    pub fn rows(numbers: &'a [f32], row_stride: usize) -> Matrix<'a> {
        Matrix::strided(numbers, row_stride, 1)
    }

    /// A matrix with any strides, in numbers.
    pub fn strided(numbers: &'a [f32], row_stride: usize, column_stride: usize) -> Matrix<'a> {
        Matrix { numbers, row_stride, column_stride }
    }

    /// The same numbers with rows for columns.
    pub fn transposed(self) -> Matrix<'a> {
        Matrix { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// What begins with a row and a column; nothing if they lie beyond the numbers.
    pub fn from(self, row: usize, column: usize) -> Matrix<'a> {
        let first = row * self.row_stride + column * self.column_stride;
        Matrix { numbers: self.numbers.get(first..).unwrap_or_default(), ..self }
    }

    /// # Panics
    /// If a rows×columns matrix does not lie within the numbers.
    pub fn assert_holds(&self, rows: usize, columns: usize) {
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let holds = rows == 0
            || columns == 0
            || last(rows, self.row_stride)
                .zip(last(columns, self.column_stride))
                .and_then(|(row, column)| row.checked_add(column))
                .is_some_and(|last| last < self.numbers.len());
        assert!(holds, "a matrix of {rows}×{columns} does not lie within {} numbers", self.numbers.len());
    }

    /// How far apart rows lie, and columns.
    pub fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// The numbers, of which the first is element (0, 0).
    pub fn numbers(&self) -> &'a [f32] {
        self.numbers
    }
}
