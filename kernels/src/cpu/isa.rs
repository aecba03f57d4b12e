//! Which instruction set the float32 step uses, chosen at run time.

use matrix_units::MatrixUnits;

/// An instruction set that this machine has. Results are the same bit for bit on all of them but the
/// portable one of x86-64, which rounds products and sums separately, and but for dense products on matrix units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    level: Level,
    /// Whether VNNI is used beside AVX-512.
    vnni: bool,
    /// Whether the matrix units (AMX) are used beside both.
    matrix_units: bool,
}

/// The instruction sets for which code exists, the most basic first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the compilation target guarantees, in plain Rust.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which every aarch64 CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    fn alone(self) -> Isa {
        Isa { level: self, vnni: false, matrix_units: false }
    }
}

impl Isa {
    /// The widest instruction set of this machine.
    pub fn detect() -> Isa {
        *Isa::available().last().expect("the portable level is always there")
    }

    /// Every instruction set of this machine for which code exists, the most basic first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut levels = vec![Level::Portable.alone()];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2.alone());
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(Level::Avx512.alone());
                    if is_x86_feature_detected!("avx512vnni") {
                        levels.push(Isa { vnni: true, ..Level::Avx512.alone() });
                        if MatrixUnits::get().is_some() {
                            levels.push(Isa { level: Level::Avx512, vnni: true, matrix_units: true });
                        }
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon.alone());
        levels
    }

    /// The level, which is available on this machine: an [`Isa`] is only made for such levels.
    pub(crate) fn level(self) -> Level {
        self.level
    }

    /// The matrix units, where they are used.
    pub(crate) fn matrix_units(self) -> Option<MatrixUnits> {
        MatrixUnits::get().filter(|_| self.matrix_units)
    }

    /// Whether it multiplies and adds up bytes and words of four and two a lane (AVX-512 with VNNI).
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_vnni(self) -> bool {
        self.vnni
    }

    /// A short name for reports.
    pub fn name(self) -> &'static str {
        match self.level {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.matrix_units => "avx-512+amx",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.vnni => "avx-512+vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx-512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
        }
    }
}

/// Whether the portable level has a fused multiply-add.
pub(crate) const PORTABLE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// a·b + c, fused where the instruction set has it (a call into libm where it has not would be slow).
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles a function once per instruction set; the first argument at the call is the [`Isa`].
///
/// The body is plain Rust that the compiler vectorises; inside it the constant `FMA` says whether
/// multiply-add is fused.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::cpu::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }

            match isa.level() {
                $crate::cpu::isa::Level::Portable => body::<{ $crate::cpu::isa::PORTABLE_FMA }>($($arg),*),
                // SAFETY: an Isa of this level is only made where the CPU has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Level::Avx512 => unsafe { avx512($($arg),*) },
                // What the compiler makes of plain Rust here is NEON.
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::isa::Level::Neon => body::<true>($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;
