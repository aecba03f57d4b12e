//! The float32 step on a GPU: handwritten kernels (`kernels/cuda`) and the order in which they run.
//!
//! Memory layout on the device. Rows of X, of both weight matrices and of everything in their shape are padded
//! with zeros to `stride` numbers, d rounded up to a multiple of 64: no kernel has a tail in the inner dimension,
//! rows are aligned for 16-byte loads and TMA, and zeros stay zeros through a whole step. Both weight matrices are
//! [F,stride], one row per feature, as on the CPU.
//!
//! The encode's result is a bit mask, one bit per pair (row, feature): 12.6 MB at B = 4096, F = 24,576. It has no
//! order that could vary and cannot overflow; lists of pairs follow from it by prefix sums.

mod buffers;
mod clip;
pub mod cubin_cache;
pub mod cuda_device;
mod dead;
mod dense;
pub mod device;
mod forward;
mod groups;
mod halves;
pub mod launch;
mod layout;
pub mod libraries;
mod meeting;
pub mod nvrtc;
mod panel;
mod places;
pub mod plan;
mod rank;
mod resident;
mod select;
pub mod sources;
mod state;
pub mod step;
mod train;
