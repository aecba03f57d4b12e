//! The matrix units of x86-64 processors (AMX), from stable Rust.
//!
//! AMX has eight registers of 16 rows of 64 bytes, the tiles, and instructions that multiply two of them and add the product
//! to a third: of bytes, or of bfloat16 numbers. Rust's intrinsics for it are not stable; inline assembly is.
//!
//! A process may use tiles once the kernel has allowed it ([`MatrixUnits::get`] asks), and a thread once it has said what
//! shape its tiles have ([`MatrixUnits::tiles`]).
//!
//! # Products of float32 matrices
//! Each number is split into two or three bfloat16 numbers ([`Parts`]), and their products are added in float32. A factor is
//! packed once, from rows or from columns ([`Left`], [`Right`]), and multiplied any number of times ([`multiply`]);
//! [`pack_and_multiply`] packs the left one on the way. Nothing here starts threads: callers divide panels of 32 rows or
//! columns among theirs ([`Packed::split`], [`Out::split_rows`], [`Out::split_columns`]), and however they do it, every bit
//! of the result is the same.
//!
//! ```
//! use matrix_units::{Left, Matrix, MatrixUnits, Out, Parts, Right, Start, multiply};
//!
//! let Some(units) = MatrixUnits::get() else { return };
//! let (m, k, n) = (2, 3, 1);
//! let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [m, k]
//! let b = [1.0, 10.0, 100.0]; // [n, k], the transposed right factor
//! let left = Left::new(units, Parts::Three, (m, k), Matrix::rows(&a, k));
//! let right = Right::new(units, Parts::Three, (n, k), Matrix::rows(&b, k).transposed());
//! let mut product = [0.5; 2];
//! let out = Out::new(&mut product, m, n);
//! multiply(&left, 0..left.panels(), &right, 0..right.panels(), Start::Scaled(2.0), out);
//! assert_eq!(product, [322.0, 655.0]);
//! ```

mod matrix;
mod packed;
mod product;
mod sums;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "amx/mod.rs"]
mod leaf;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "without.rs"]
mod leaf;

pub use leaf::{MatrixUnits, Tiles};
pub use matrix::Matrix;
pub use packed::{Columns, Left, PANEL, Packed, Panels, Parts, Right, Rows, Side};
pub use product::{Out, Start, multiply, pack_and_multiply};
