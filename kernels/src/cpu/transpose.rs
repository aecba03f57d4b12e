//! Columns of a matrix as rows.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;

/// Rows and columns that are turned together: a column's numbers lie a page or more apart, and one page serves a tile's width
/// at once.
const TILE: usize = 16;

/// Columns of a matrix of `width` columns, from `first` on, into the rows of `out` [columns,rows].
pub(crate) fn transpose_columns(
    isa: Isa,
    matrix: &[f32],
    width: usize,
    first: usize,
    rows: usize,
    out: &mut [f32],
) {
    let columns = out.len() / rows;
    assert!(first + columns <= width && matrix.len() >= rows * width, "columns of a smaller matrix");
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            let (height, across) = (TILE.min(rows - row), TILE.min(columns - column));
            let (from, to) = (&matrix[row * width + first + column..], &mut out[column * rows + row..]);
            #[cfg(target_arch = "x86_64")]
            if (height, across) == (TILE, TILE) && isa.level() != Level::Portable {
                let (from, to) = (from.as_ptr(), to.as_mut_ptr());
                // 16 rows of 16 numbers lie in the matrix, as many columns in `out`.
                match isa.level() {
                    // SAFETY: as just said, and the level has AVX-512.
                    Level::Avx512 => unsafe { x86::whole_tile(from, width, to, rows) },
                    // SAFETY: as said, and the other levels have AVX2.
                    _ => unsafe { x86::tile(from, width, to, rows) },
                }
                continue;
            }
            let _ = isa;
            for at in 0..across {
                for line in 0..height {
                    to[at * rows + line] = from[line * width + at];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Transposes 16 × 16 numbers, of which each line is read and written once: lines that lie pages apart fall out of the nearest
    /// cache before they can be used twice.
    ///
    /// # Safety
    /// As of [`tile`], with AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn whole_tile(from: *const f32, width: usize, to: *mut f32, rows: usize) {
        // SAFETY: the caller's promise.
        let line: [__m512; 16] = std::array::from_fn(|row| unsafe { _mm512_loadu_ps(from.add(row * width)) });
        // Pairs of rows, fours, then quarters of eight and of all.
        let pairs: [__m512; 16] = std::array::from_fn(|at| match (at % 2, line[at & !1], line[at | 1]) {
            (0, a, b) => _mm512_unpacklo_ps(a, b),
            (_, a, b) => _mm512_unpackhi_ps(a, b),
        });
        let fours: [__m512; 16] = std::array::from_fn(|at| {
            let first = at & !3 | (at & 2) >> 1;
            match (at % 2, pairs[first], pairs[first + 2]) {
                (0, a, b) => _mm512_shuffle_ps::<0x44>(a, b),
                (_, a, b) => _mm512_shuffle_ps::<0xee>(a, b),
            }
        });
        for at in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|four| fours[four + at]);
            let (low, high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
            let (low_odd, high_odd) =
                (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
            // SAFETY: the caller's promise.
            unsafe {
                _mm512_storeu_ps(to.add(at * rows), _mm512_shuffle_f32x4::<0x88>(low, high));
                _mm512_storeu_ps(to.add((at + 8) * rows), _mm512_shuffle_f32x4::<0xdd>(low, high));
                _mm512_storeu_ps(to.add((at + 4) * rows), _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd));
                _mm512_storeu_ps(to.add((at + 12) * rows), _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd));
            }
        }
    }

    /// Transposes 16 × 16 numbers, of which each half of a line is 8 × 8.
    ///
    /// # Safety
    /// The CPU must have AVX2; 16 rows of 16 numbers can be read and written, `width` and `rows` apart.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn tile(from: *const f32, width: usize, to: *mut f32, rows: usize) {
        for column in [0, 8] {
            for row in [0, 8] {
                // SAFETY: the caller's promise.
                unsafe { eighth(from.add(row * width + column), width, to.add(column * rows + row), rows) };
            }
        }
    }

    /// Transposes 8 × 8 numbers.
    ///
    /// # Safety
    /// As of [`tile`], with 8 for 16.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eighth(from: *const f32, width: usize, to: *mut f32, rows: usize) {
        // SAFETY: the caller's promise.
        let line: [__m256; 8] = std::array::from_fn(|row| unsafe { _mm256_loadu_ps(from.add(row * width)) });
        // Pairs of rows, then fours, then both halves of eight.
        let pairs: [[__m256; 2]; 4] = std::array::from_fn(|at| {
            let (a, b) = (line[2 * at], line[2 * at + 1]);
            [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
        });
        let fours: [[__m256; 4]; 2] = std::array::from_fn(|at| {
            let ([a, b], [c, d]) = (pairs[2 * at], pairs[2 * at + 1]);
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ]
        });
        for at in 0..4 {
            let (a, b) = (fours[0][at], fours[1][at]);
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(to.add(at * rows), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((at + 4) * rows), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows_on_every_instruction_set() {
        for (rows, width, first, columns) in [(1, 1, 0, 1), (16, 16, 0, 16), (35, 70, 3, 50), (48, 40, 8, 32)]
        {
            let matrix: Vec<f32> = (0..rows * width).map(|at| at as f32).collect();
            for isa in Isa::available() {
                let mut out = vec![-1.0; rows * columns];
                transpose_columns(isa, &matrix, width, first, rows, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let (column, row) = (at / rows, at % rows);
                    assert_eq!(*got, matrix[row * width + first + column], "{} {row} {column}", isa.name());
                }
            }
        }
    }
}
