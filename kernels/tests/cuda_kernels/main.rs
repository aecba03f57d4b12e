//! Kernel by kernel, emulated, against the CPU engine's pieces: random, odd-sized, empty and all-active batches.

mod case;
mod dead;
mod dense;
mod encode;
mod frequency;
mod lengths;
mod lists;
mod recheck;
mod rows;
mod screen;
mod select;
mod select_batch;
mod widen;

use emulation::run_again_sanitized;

#[test]
fn no_kernel_reads_or_writes_outside_of_its_buffers() {
    run_again_sanitized("no_kernel_reads_or_writes_outside_of_its_buffers", &[]);
}
