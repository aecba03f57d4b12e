//! Seeded permutations that are the same on every machine, for any number of threads, in every version.
//!
//! The generator is ChaCha8, keyed with four little-endian u64: the user's seed, the purpose, and two numbers that select
//! one permutation of that purpose. Libraries change how they shuffle between versions, so the few lines that turn the
//! generator's output into a permutation are our own; `docs/store-format.md` specifies them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a permutation is for; separates the streams of one seed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// The rows of a shuffle window: (window, 0).
    Window = 1,
    /// The chunks of an epoch: (epoch, 0).
    Epoch = 2,
    /// The rows of a mixing block: (epoch, block).
    Block = 3,
    /// The chunks of which the median norm is taken: (0, 0).
    NormSample = 4,
}

/// Permutes `items` (Fisher-Yates, from the last element down).
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64, purpose: Purpose, a: u64, b: u64) {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut random = ChaCha8Rng::from_seed(key);
    for last in (1..items.len()).rev() {
        // The high half of a 64 × 64-bit product: uniform over 0..=last to within 2^-32 for 2^32 items.
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, other as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_stays_and_every_argument_counts() {
        let order = |seed, purpose, a, b| {
            let mut items: Vec<u32> = (0..1000).collect();
            shuffle(&mut items, seed, purpose, a, b);
            items
        };
        let base = order(1, Purpose::Window, 2, 3);
        let mut sorted = base.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(base, order(1, Purpose::Window, 2, 3));
        for other in [
            order(2, Purpose::Window, 2, 3),
            order(1, Purpose::Epoch, 2, 3),
            order(1, Purpose::Window, 3, 3),
            order(1, Purpose::Window, 2, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_permutation_of_format_version_1_never_changes() {
        let mut items: Vec<u32> = (0..10).collect();
        shuffle(&mut items, 42, Purpose::Epoch, 0, 0);
        assert_eq!(items, GOLDEN);
    }

    const GOLDEN: [u32; 10] = [8, 5, 7, 0, 6, 3, 9, 1, 2, 4];
}
