//! The program as a user runs it, on small stores.

mod bench;
mod compare;
mod cuda;
mod damage;
mod default_store;
#[path = "../../../kernels/tests/emulation/mod.rs"]
mod emulation;
mod endings;
mod errors;
mod faults;
mod fixture;
mod gpu_check;
mod resume;
mod sweep;
mod training;
