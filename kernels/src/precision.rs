//! How the products of a step are computed.

/// How the encode and the products are computed. [`Precision::Exact`] and [`Precision::Fp32`] find the same active set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// A cheap product screens (integers on a CPU, bfloat16 on a GPU's tensor cores), float32 decides and computes. On a GPU the
    /// activations are those of [`Precision::Fp32`] bit for bit, and dense products are split into three bfloat16 ones,
    /// which is float32 within rounding.
    Exact,
    /// The bfloat16 product decides, activations come from bfloat16 operands; on a GPU decode and dense products too.
    Bf16,
    /// Plain float32 everywhere: the definition.
    Fp32,
}
