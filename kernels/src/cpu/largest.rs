//! The k largest z of each row, or the k·B largest of a batch, where they are above 0: exactly those of the plain float32
//! product, ties by the lower feature and then the lower row.
//!
//! Nothing but the largest z is looked for. A few rows tell where they begin: [cutoffs](cutoff) that are guessed from their z leave
//! few more than k pairs for a row to be found by [screening](super::screen). At least k pairs above the cutoff prove that the k
//! largest are among them; rows with fewer are searched again with a lower one, and at last without. So a guess costs time, and
//! decides nothing.
//!
//! Screening leaves z that are within rounding of the plain product's. Where this could decide which pair is the k-th, the
//! pairs in doubt are formed again in the plain product's order ([choice]).

mod choice;
mod cutoff;

use choice::Choice;
use cutoff::{Guess, GuessMemory};

use super::encode::{Cutoff, Encode, EncodeBuffers, Found, Search, encode_above, encode_more};
use super::isa::Isa;
use super::pairs::{ActivePairs, RowPairs};
use super::products::Products;
use super::screen::z_in_order;

/// What rows with too few pairs lower their cutoffs by, time after time.
const LOWER: [f32; 3] = [0.85, 0.5, 0.0];

/// What the largest z are the largest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// The k largest of each row.
    Row,
    /// The k·B largest of the batch.
    Batch,
}

/// A search for the largest z.
#[derive(Debug, Clone, Copy)]
pub struct Largest<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Rows and encoder.
    pub input: Encode<'a>,
    /// How pairs are searched.
    pub search: Search,
    /// How dense products are formed, which are guessed from.
    pub products: Products,
    /// k, at least 1.
    pub k: usize,
    /// Of a row or of the batch.
    pub among: Among,
}

/// Memory that searches of one size share.
#[derive(Debug, Default)]
pub struct LargestMemory {
    /// A cutoff of each row.
    cutoffs: Vec<f32>,
    found: RowPairs,
    /// The pairs of rows that are searched again.
    again: RowPairs,
    /// For each row, by how much at most its z as found differ from the plain product's.
    margins: Vec<f32>,
    guess: GuessMemory,
    choice: Choice,
}

impl Largest<'_> {
    /// Puts the largest into `kept`; returns how many pairs screening left to recompute.
    pub fn find(
        &self,
        buffers: &mut EncodeBuffers,
        memory: &mut LargestMemory,
        kept: &mut ActivePairs,
    ) -> usize {
        let LargestMemory { cutoffs, found, again, margins, guess, choice } = memory;
        let exact = |row: usize, feature: u32| z_in_order(self.isa, &self.input, row, feature as usize);
        let Largest { isa, input, products, k, .. } = *self;
        let first_guess = Guess { isa, input, products, k };
        match self.among {
            Among::Row => first_guess.of_rows(guess, cutoffs),
            Among::Batch => first_guess.of_batch(cutoffs),
        }
        let (first, mut rechecked) = self.search(Cutoff::OfRows(cutoffs), buffers, found, margins);
        match self.among {
            Among::Row => {
                for factor in LOWER {
                    rechecked += self.search_again(factor, first, buffers, (cutoffs, margins), found, again);
                }
                choice.of_rows(self.k, found, margins, exact);
            }
            Among::Batch => {
                let count = self.k.saturating_mul(self.input.rows());
                for factor in LOWER {
                    if found.values.len() >= count {
                        break;
                    }
                    cutoffs.iter_mut().for_each(|cutoff| *cutoff *= factor);
                    rechecked += self.more(&self.input, Cutoff::OfRows(cutoffs), first, buffers, found);
                }
                choice.of_batch(count, found, margins, exact);
            }
        }
        kept.take(found, self.input.features(), |at| choice.keeps(at));
        rechecked
    }

    /// Pairs above their cutoffs, and the margins of their z; also returns how many were recomputed.
    fn search(
        &self,
        above: Cutoff<'_>,
        buffers: &mut EncodeBuffers,
        found: &mut RowPairs,
        margins: &mut Vec<f32>,
    ) -> (Found, usize) {
        let cells = self.input.rows() * self.input.features();
        let report = encode_above(self.isa, self.input, above, self.search, cells, buffers, found)
            .expect("no more pairs than there are");
        buffers.margins(&self.input, report, margins);
        (report, report.rechecked)
    }

    /// Searches rows with fewer than k pairs again, `factor` times their cutoffs being the new ones; returns how many pairs were
    /// recomputed.
    fn search_again(
        &self,
        factor: f32,
        first: Found,
        buffers: &mut EncodeBuffers,
        (cutoffs, margins): (&mut [f32], &mut [f32]),
        found: &mut RowPairs,
        again: &mut RowPairs,
    ) -> usize {
        let is_short = |row: &usize| found.of_row(*row).0.len() < self.k && cutoffs[*row] > 0.0;
        let short: Vec<usize> = (0..self.input.rows()).filter(is_short).collect();
        if short.is_empty() {
            return 0;
        }
        for row in &short {
            cutoffs[*row] *= factor;
        }
        let lower: Vec<f32> = short.iter().map(|row| cutoffs[*row]).collect();
        let x = self.input.gather(&short);
        let input = Encode { x: &x, ..self.input };
        let rechecked = self.more(&input, Cutoff::OfRows(&lower), first, buffers, again);
        let mut margins_again = Vec::new();
        buffers.margins(&input, first, &mut margins_again);
        short.iter().zip(margins_again).for_each(|(row, margin)| margins[*row] = margin);
        found.replace(&short, again);
        rechecked
    }

    /// Pairs of `input` above their cutoffs, after a `first` search with the same weights; returns how many were recomputed.
    fn more(
        &self,
        input: &Encode<'_>,
        above: Cutoff<'_>,
        first: Found,
        buffers: &mut EncodeBuffers,
        found: &mut RowPairs,
    ) -> usize {
        encode_more(self.isa, *input, above, first, buffers, found).rechecked
    }
}

#[cfg(test)]
mod tests;
