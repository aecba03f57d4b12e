//! Mean, variance and mean norm of the stored rows, in float64.

/// Statistics over all rows of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Rows counted.
    pub rows: u64,
    /// Mean of each component, `[d]`.
    pub mean: Vec<f64>,
    /// Population variance (divided by the number of rows) of each component, `[d]`.
    pub variance: Vec<f64>,
    /// Mean over the rows of their Euclidean norm.
    pub mean_norm: f64,
}
