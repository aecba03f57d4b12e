//! The sums of a block.

/// Where 32 × 32 sums begin and where they go, with strides in numbers. A stride of 0 begins every row alike.
pub(crate) struct Sums {
    pub(crate) from: *const f32,
    pub(crate) from_stride: usize,
    pub(crate) to: *mut f32,
    pub(crate) to_stride: usize,
}
