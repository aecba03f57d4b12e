//! How a step runs on CPU threads.

use matrix_units::Parts;

use crate::precision::Precision;

use super::encode::Search;
use super::isa::Isa;
use super::products::Products;

/// How a [`CpuStep`] runs. Only `bf16` changes results beyond rounding; `threads` does not change them at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuOptions {
    /// Worker threads of an engine's own pool; 0 means one per core.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Up to this density (active pairs / (B·F)) a step takes the sparse path.
    pub sparse_density: f64,
    /// How the active pairs are searched.
    pub search: Search,
    /// Round the encode's factors to bfloat16 first: z is then what a GPU's tensor cores compute without a recheck.
    /// This shows the effect on a result. On the dense path, AVX512_BF16 forms the products if the CPU has it,
    /// with sums in an order of its own.
    pub bf16: bool,
    /// Form dense products on matrix units, where the instruction set has them, from numbers that are split into bfloat16 parts:
    /// in training three products for one, in an evaluation six, whose errors are those of float32 sums.
    pub split_products: bool,
}

impl CpuOptions {
    /// One thread per core, the widest instruction set, and the density up to which the sparse path was
    /// measured to be the faster one.
    pub fn for_precision(precision: Precision) -> CpuOptions {
        let (search, bf16, split_products) = match precision {
            Precision::Exact => (Search::Screened, false, true),
            Precision::Bf16 => (Search::Screened, true, true),
            Precision::Fp32 => (Search::Plain, false, false),
        };
        CpuOptions { threads: 0, isa: Isa::detect(), sparse_density: 0.25, search, bf16, split_products }
    }
}

impl CpuOptions {
    /// How a step forms dense products.
    pub fn training_products(&self) -> Products {
        self.products(Purpose::Training)
    }

    pub(super) fn products(&self, purpose: Purpose) -> Products {
        let parts = match purpose {
            Purpose::Training => Parts::Three,
            Purpose::Reading => Parts::Six,
        };
        if self.split_products { Products::of(self.isa, parts) } else { Products::Float32 }
    }
}

impl Default for CpuOptions {
    /// [`CpuOptions::for_precision`] of [`Precision::Exact`].
    fn default() -> CpuOptions {
        CpuOptions::for_precision(Precision::Exact)
    }
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step follows.
    Training,
    /// The autoencoder is used: a row's activations do not depend on the rows beside it.
    Reading,
}
