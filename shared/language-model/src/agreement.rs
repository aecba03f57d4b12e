//! How far two runs of a model are apart.

/// How far two runs of a model on the same tokens are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfCheck {
    /// The hook at which they are farthest apart.
    pub hook: String,
    /// The largest difference of a row: ‖found − expected‖ / ‖expected‖, with the median row's norm for
    /// rows that are shorter than it.
    pub difference: f32,
    /// The largest difference that counts as rounding.
    pub tolerance: f32,
}
