//! CUDA without a GPU, for tests.
//!
//! - [`EmulatedDevice`] is a [`Device`](kernels::cuda::device::Device) that runs the `.cu` files on the CPU: `cpp/cuda.h` says
//!   how, and what that can find.
//! - [`EmulatedDriver`] starts programs that find a `libcuda.so.1` and take it for a GPU's: `cpp/driver/README.md`.
//!
//! The C++ is compiled by g++ when a test first asks for it, into libraries below cargo's target folder, each under a hash of
//! all that went into it: every test binary finds what another has built.

mod buffer;
mod compiler;
mod device;
mod driver;
mod gpu;
mod library;
mod on_gpu;
mod sanitized;
mod signatures;

pub use buffer::Buffer;
pub use device::EmulatedDevice;
pub use driver::EmulatedDriver;
pub use gpu::on_a_gpu;
pub use sanitized::run_again_sanitized;

/// The example of the README, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
