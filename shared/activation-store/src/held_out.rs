//! The contexts of a store that training never sees.
//!
//! Whole contexts are held out, because rows of one context resemble each other. Which ones is a pure function of the store's
//! seed, the number of its contexts and the fraction; `docs/store-format.md` specifies it. So all runs on a store, whatever
//! their own seeds, hold out the same rows, and so do the stores of all hooks of a dump.

use crate::Store;

/// Which contexts of its stores a stream has.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Part {
    /// All of them.
    #[default]
    All,
    /// Those that are not held out.
    Training {
        /// Of the contexts of each store, from 0 to below 1.
        held_out: f64,
    },
    /// Those that are held out.
    HeldOut {
        /// As for [`Part::Training`].
        held_out: f64,
    },
}

/// How many of `contexts` contexts are held out: the `fraction` of them, rounded up, and at least one, as long as one is left
/// to train on; none if `fraction` is 0.
pub fn held_out_contexts(contexts: u64, fraction: f64) -> u64 {
    if fraction <= 0.0 {
        return 0;
    }
    ((fraction * contexts as f64).ceil() as u64).min(contexts.saturating_sub(1))
}

impl Part {
    /// The numbers of the contexts of `store` that are in this part, in order.
    pub fn contexts(self, store: &Store) -> Vec<u64> {
        let part = HeldOut::of(store, self);
        (0..store.contexts()).filter(|context| part.keeps(*context)).collect()
    }
}

/// The contexts of one store that a [`Part`] has: those whose hash is the lowest are held out.
#[derive(Debug)]
pub(crate) struct HeldOut {
    part: Part,
    seed: u64,
    /// The highest hash of a context that is held out, if any is.
    highest: Option<u64>,
}

impl HeldOut {
    pub(crate) fn of(store: &Store, part: Part) -> HeldOut {
        HeldOut::new(part, store.spec().seed, store.contexts())
    }

    fn new(part: Part, seed: u64, contexts: u64) -> HeldOut {
        let count = match part {
            Part::All => 0,
            Part::Training { held_out } | Part::HeldOut { held_out } => held_out_contexts(contexts, held_out),
        };
        let highest = (count > 0).then(|| {
            let mut hashes: Vec<u64> = (0..contexts).map(|context| hash(seed, context)).collect();
            *hashes.select_nth_unstable((count - 1) as usize).1
        });
        HeldOut { part, seed, highest }
    }

    pub(crate) fn keeps(&self, context: u64) -> bool {
        let held_out = || self.highest.is_some_and(|highest| hash(self.seed, context) <= highest);
        match self.part {
            Part::All => true,
            Part::Training { .. } => !held_out(),
            Part::HeldOut { .. } => held_out(),
        }
    }
}

/// Output number `context` of SplitMix64 (Steele, Lea and Flood, 2014) started at `seed`: different for each context.
fn hash(seed: u64, context: u64) -> u64 {
    let mut z = seed.wrapping_add((context + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_out(seed: u64, contexts: u64, fraction: f64) -> Vec<u64> {
        let part = HeldOut::new(Part::HeldOut { held_out: fraction }, seed, contexts);
        let training = HeldOut::new(Part::Training { held_out: fraction }, seed, contexts);
        for context in 0..contexts {
            assert_ne!(part.keeps(context), training.keeps(context));
        }
        (0..contexts).filter(|&context| part.keeps(context)).collect()
    }

    #[test]
    fn the_held_out_contexts_of_format_version_1_never_change() {
        // The first outputs of SplitMix64 from 1234567, as published with its reference implementation.
        let published = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|context| hash(1_234_567, context)), published);
        assert_eq!(held_out(0, 100, 0.05), GOLDEN);
    }

    const GOLDEN: [u64; 5] = [2, 33, 42, 53, 94];

    #[test]
    fn as_many_contexts_are_held_out_as_asked_for_and_one_is_left() {
        for (contexts, fraction, expected) in [
            (100_000, 0.01, 1000),
            (101, 0.01, 2),
            (100, 0.01, 1),
            (2, 0.01, 1),
            (1, 0.01, 0),
            (0, 0.01, 0),
            (10, 0.999, 9),
            (10, 0.0, 0),
        ] {
            assert_eq!(held_out_contexts(contexts, fraction), expected, "{fraction} of {contexts}");
            assert_eq!(held_out(3, contexts, fraction).len() as u64, expected, "{fraction} of {contexts}");
        }
    }

    #[test]
    fn a_larger_fraction_holds_out_the_same_contexts_and_more() {
        let (small, large) = (held_out(7, 1000, 0.01), held_out(7, 1000, 0.1));
        assert!(small.iter().all(|context| large.contains(context)));
        assert_ne!(small, held_out(8, 1000, 0.01));
        // Spread over the store: of each tenth of it some, and of none many.
        for tenth in 0..10 {
            let of_tenth = large.iter().filter(|&&context| context / 100 == tenth).count();
            assert!((3..=20).contains(&of_tenth), "{of_tenth} of tenth {tenth}");
        }
    }
}
