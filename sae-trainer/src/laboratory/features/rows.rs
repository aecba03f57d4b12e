//! Which features fire in each row: an index turned around.

use anyhow::Result;

use super::detail::{Relations, cofiring};
use super::firing::Firing;
use super::index::Index;

/// The features of the first rows of an index.
pub(super) struct Rows {
    /// Where the features of each place begin, and where the last end.
    starts: Vec<usize>,
    features: Vec<u32>,
    /// Bits of the activations, if they were asked for.
    bits: Vec<u16>,
    /// Firings of each feature in these rows, [F].
    firings: Vec<u64>,
}

/// Counts of other features, all zeros in between.
pub(super) struct Counts {
    counts: Vec<u32>,
    touched: Vec<u32>,
}

/// Most firings that are held, four bytes each.
const MOST: u64 = 1 << 26;

impl Rows {
    /// Of whole contexts, as many as have about [`MOST`] firings.
    pub(super) fn of(index: &Index) -> Result<Rows> {
        Rows::read(index, false)
    }

    /// The same with the activations, two bytes each.
    pub(super) fn with_activations(index: &Index) -> Result<Rows> {
        Rows::read(index, true)
    }

    /// Bytes that [`Rows::with_activations`] takes, about.
    pub(super) fn memory(index: &Index) -> u64 {
        let record = &index.record;
        let places = (record.contexts * record.context_length) as u64;
        6 * record.firings.min(MOST) + 2 * size_of::<usize>() as u64 * places
    }

    fn read(index: &Index, activations: bool) -> Result<Rows> {
        let record = &index.record;
        let share = (MOST as f64 / record.firings.max(1) as f64).min(1.0);
        let contexts = (share * record.contexts as f64).ceil() as usize;
        let places = contexts * record.context_length;
        let mut starts = vec![0; places + 1];
        let mut firings = vec![0; record.features];
        index.each_firing(|feature, place, _| {
            if place < places {
                starts[place + 1] += 1;
                firings[feature] += 1;
            }
        })?;
        for place in 0..places {
            starts[place + 1] += starts[place];
        }
        let (mut features, mut next) = (vec![0; starts[places]], starts.clone());
        let mut bits = if activations { vec![0; starts[places]] } else { Vec::new() };
        index.each_firing(|feature, place, activation| {
            if place < places {
                features[next[place]] = feature as u32;
                if activations {
                    bits[next[place]] = activation;
                }
                next[place] += 1;
            }
        })?;
        Ok(Rows { starts, features, bits, firings })
    }

    /// Places that these rows may have.
    pub(super) fn places(&self) -> usize {
        self.starts.len() - 1
    }

    /// The features that fire at a place, ascending, with the bits of their activations.
    pub(super) fn at(&self, place: usize) -> (&[u32], &[u16]) {
        let range = self.starts[place]..self.starts[place + 1];
        (&self.features[range.clone()], &self.bits[range])
    }

    /// Memory for [`Rows::relations`].
    pub(super) fn counts(&self) -> Counts {
        Counts { counts: vec![0; self.firings.len()], touched: Vec::new() }
    }

    /// The features that fire in the same rows as `feature`, which fires at `firings`.
    pub(super) fn relations(&self, feature: usize, firings: &[Firing], memory: &mut Counts) -> Relations {
        let Counts { counts, touched } = memory;
        for firing in firings {
            let place = firing.place() as usize;
            if place + 1 >= self.starts.len() {
                break;
            }
            for other in &self.features[self.starts[place]..self.starts[place + 1]] {
                if counts[*other as usize] == 0 {
                    touched.push(*other);
                }
                counts[*other as usize] += 1;
            }
        }
        let both = touched.iter().map(|other| (*other as usize, u64::from(counts[*other as usize])));
        let found = cofiring(feature, both, |of| self.firings[of]);
        touched.drain(..).for_each(|other| counts[other as usize] = 0);
        Relations { cofiring: found, neighbours: Vec::new(), logits: None }
    }
}
