//! Groups of neighbouring features, which belong to different reconstructions.

/// dL/dx̂ as a group of features sees it: the sum over the reconstructions that the group is part of.
#[derive(Debug, Clone, Copy)]
pub struct GroupGradient<'a> {
    /// Where the group ends; the next one begins there.
    pub end: usize,
    /// [B,d].
    pub g: &'a [f32],
}
