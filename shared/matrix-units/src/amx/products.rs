//! The products of 32 rows and 32 columns: four tiles of sums, two of rows, two of columns.

use std::arch::asm;

use super::Tiles;
use crate::packed::{Line, Parts, step_lines};
use crate::sums::Sums;

/// Adds the products of steps of a panel of rows and of a panel of columns.
///
/// # Safety
/// 32 rows of 32 numbers can be read and written where the sums say.
///
/// # Panics
/// If one panel is longer than the other.
pub(crate) unsafe fn add_products(_: &Tiles, parts: Parts, (left, right): (&[Line], &[Line]), sums: Sums) {
    assert_eq!(left.len(), right.len(), "panels of a product of different depths");
    let steps = left.len() / step_lines(parts);
    let (left, right) = (left.as_ptr().cast::<u8>(), right.as_ptr().cast::<u8>());
    // SAFETY: this thread has tiles. The panels are as long as that, and the sums are the caller's promise.
    unsafe {
        match parts {
            Parts::Three => three(left, right, steps, sums),
            Parts::Six => six(left, right, steps, sums),
        }
    }
}

/// A block of instructions between loading the sums and storing them, once a step. `{a}` and `{b}` point at the step.
macro_rules! steps {
    ($bytes:literal, $left:ident, $right:ident, $steps:ident, $sums:ident, $($line:literal),+ $(,)?) => {
        asm!(
            "tileloadd tmm0, [{from} + {from_stride}*1]",
            "tileloadd tmm1, [{from} + {from_stride}*1 + 64]",
            "lea {from}, [{from} + {from_stride}*8]",
            "lea {from}, [{from} + {from_stride}*8]",
            "tileloadd tmm2, [{from} + {from_stride}*1]",
            "tileloadd tmm3, [{from} + {from_stride}*1 + 64]",
            "test {n}, {n}",
            "jz 3f",
            "2:",
            $($line,)+
            concat!("add {a}, ", $bytes),
            concat!("add {b}, ", $bytes),
            "dec {n}",
            "jnz 2b",
            "3:",
            "tilestored [{to} + {to_stride}*1], tmm0",
            "tilestored [{to} + {to_stride}*1 + 64], tmm1",
            "lea {to}, [{to} + {to_stride}*8]",
            "lea {to}, [{to} + {to_stride}*8]",
            "tilestored [{to} + {to_stride}*1], tmm2",
            "tilestored [{to} + {to_stride}*1 + 64], tmm3",
            a = inout(reg) $left => _,
            b = inout(reg) $right => _,
            n = inout(reg) $steps => _,
            s = in(reg) 64usize,
            from = inout(reg) $sums.from => _,
            from_stride = in(reg) $sums.from_stride * 4,
            to = inout(reg) $sums.to => _,
            to_stride = in(reg) $sums.to_stride * 4,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// lo·hi + hi·hi + hi·lo.
///
/// # Safety
/// The thread has tiles; `steps` steps lie at both panels, and 32 × 32 sums where `sums` says.
unsafe fn three(left: *const u8, right: *const u8, steps: usize, sums: Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        steps!(
            "4096",
            left,
            right,
            steps,
            sums,
            // lo·hi, hi·hi, hi·lo: each tile is loaded once, and a tile's next product is four instructions away.
            "tileloadd tmm4, [{a} + {s}*1 + 2048]",
            "tileloadd tmm6, [{b} + {s}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s}*1 + 3072]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {s}*1 + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b} + {s}*1 + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    }
}

/// hi·hi, hi·lo, hi·mid, mid·mid, mid·hi and lo·hi.
///
/// # Safety
/// As of `three`.
unsafe fn six(left: *const u8, right: *const u8, steps: usize, sums: Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        steps!(
            "6144",
            left,
            right,
            steps,
            sums,
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {s}*1]",
            "tileloadd tmm5, [{a} + {s}*1 + 1024]",
            "tileloadd tmm7, [{b} + {s}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {s}*1 + 4096]",
            "tileloadd tmm7, [{b} + {s}*1 + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {s}*1 + 2048]",
            "tileloadd tmm7, [{b} + {s}*1 + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {s}*1 + 2048]",
            "tileloadd tmm5, [{a} + {s}*1 + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {s}*1]",
            "tileloadd tmm7, [{b} + {s}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {s}*1 + 4096]",
            "tileloadd tmm5, [{a} + {s}*1 + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    }
}
