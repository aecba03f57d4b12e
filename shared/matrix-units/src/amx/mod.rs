//! Asking for the tiles, and giving them back.

mod lines;
mod pack;
mod products;

pub(crate) use lines::Lines;
pub(crate) use pack::pack_step;
pub(crate) use products::add_products;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// That this process may use the matrix units: AMX with bytes and bfloat16, next to AVX-512 with bfloat16, which every
/// processor that has the one has too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixUnits(());

impl MatrixUnits {
    /// Asks the processor and, once per process, the kernel. None if either says no: a plain path has to do then.
    pub fn get() -> Option<MatrixUnits> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        ALLOWED.get_or_init(|| processor_has_them() && kernel_allows_them()).then_some(MatrixUnits(()))
    }

    /// Gives the current thread eight tiles of 16 rows of 64 bytes, until the result is dropped. What is in the tiles belongs
    /// to nobody before it is written.
    pub fn tiles(self) -> Tiles {
        let before = DEPTH.get();
        if before == 0 {
            // SAFETY: there are tiles, as `self` says, and this is a shape that they can have.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPE, options(nostack, readonly, preserves_flags)) };
        }
        DEPTH.set(before + 1);
        Tiles(PhantomData)
    }
}

/// That the current thread's tiles have their shape. While a thread has tiles, each switch to another thread saves 8 KiB more.
#[derive(Debug)]
pub struct Tiles(PhantomData<*const ()>);

thread_local! {
    /// How many [`Tiles`] the thread has: the last one gives them back.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

impl Drop for Tiles {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if DEPTH.get() == 0 {
            // SAFETY: this thread has asked for them, and nobody on it uses them any more.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles as large as they can be.
static SHAPE: Shape = {
    let (mut bytes_of_a_row, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (bytes_of_a_row[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Shape { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_a_row, rows }
};

fn processor_has_them() -> bool {
    // CPUID's leaf 7: AMX_BF16, AMX_TILE, AMX_INT8.
    const UNITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    let has_leaf = __cpuid(0).eax >= 7;
    has_leaf
        && __cpuid_count(7, 0).edx & UNITS == UNITS
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && system_saves_them()
}

/// Whether the system keeps the tiles of a thread that it suspends.
fn system_saves_them() -> bool {
    // The tiles' shape and their contents.
    const STATE: u32 = 1 << 17 | 1 << 18;
    let low: u32;
    // SAFETY: the system uses XSAVE, or there would be no AVX-512; then XCR0 can be read.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & STATE == STATE
}

/// Asks the kernel, for the whole process. Linux gives tiles only to those who ask, as they make its stacks for signals larger.
fn kernel_allows_them() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_keep_their_shape_until_the_last_guard_is_gone() {
        let Some(units) = MatrixUnits::get() else { return };
        let first = units.tiles();
        drop(units.tiles());
        let mut stored = [0xffu8; 1024];
        // SAFETY: this thread has tiles; 16 rows of 64 bytes are written, 64 bytes apart.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilestored [{to} + {stride}*1], tmm0",
                to = in(reg) &mut stored, stride = in(reg) 64usize, out("tmm0") _, options(nostack),
            );
        }
        drop(first);
        assert_eq!(stored, [0; 1024]);
    }
}
