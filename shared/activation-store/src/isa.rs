//! Compiles a loop for the instruction sets of the processors that a dump runs on.

/// Compiles a function once for the target's own instructions, once for AVX2 and once for AVX-512, and takes the widest that
/// this machine has.
///
/// The body is plain Rust that the compiler vectorises. It never fuses a product and a sum by itself, so the results are the
/// same bit for bit in all versions.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([const $constant:ident: usize])? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<const $constant: usize>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<const $constant: usize>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $(<const $constant: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$constant>)? ($($arg),*)
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
                fn avx512 $(<const $constant: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$constant>)? ($($arg),*)
                }

                if $crate::isa::has_avx512() {
                    // SAFETY: the features were detected.
                    return unsafe { avx512 $(::<$constant>)? ($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was detected.
                    return unsafe { avx2 $(::<$constant>)? ($($arg),*) };
                }
            }
            body $(::<$constant>)? ($($arg),*)
        }
    };
}
pub(crate) use per_isa;

/// Whether the processor has the AVX-512 instructions that [`per_isa`] compiles for.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}
