//! The matrix units of x86-64 processors (AMX), from stable Rust.
//!
//! AMX has eight registers of 16 rows of 64 bytes, the tiles, and instructions that multiply two of them and add the product
//! to a third: of bytes, or of bfloat16 numbers. Rust's intrinsics for it are not stable; inline assembly is.
//!
//! A process may use tiles once the kernel has allowed it ([`MatrixUnits::get`] asks), and a thread once it has said what
//! shape its tiles have ([`MatrixUnits::tiles`]).

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod without;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use amx::{MatrixUnits, Tiles};
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use without::{MatrixUnits, Tiles};
