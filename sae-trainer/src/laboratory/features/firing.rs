//! One activation of a feature, in eight bytes.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Where a feature fired, and how strongly. By their order, firings of several features are sorted by feature, then place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Firing(u64);

impl Firing {
    /// Of the feature with this number among at most 2^16, at `place` = context · context length + position.
    pub(crate) fn new(feature: u16, place: u32, activation: f16) -> Firing {
        Firing(u64::from(feature) << 48 | u64::from(place) << 16 | u64::from(activation.to_bits()))
    }

    pub(crate) fn feature(self) -> u16 {
        (self.0 >> 48) as u16
    }

    pub(crate) fn place(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// The bits of the activation; above 0, they are in the order of the numbers.
    pub(crate) fn bits(self) -> u16 {
        self.0 as u16
    }

    pub(crate) fn activation(self) -> f32 {
        f16::from_bits(self.bits()).to_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firing_keeps_what_it_is_made_of_and_sorts_by_it() {
        let firing = Firing::new(u16::MAX, u32::MAX, f16::MAX);
        assert_eq!((firing.feature(), firing.place(), firing.activation()), (u16::MAX, u32::MAX, 65504.0));
        let of = |feature, place| Firing::new(feature, place, f16::ONE);
        assert!(of(0, 9) < of(1, 0) && of(1, 0) < of(1, 1));
    }
}
