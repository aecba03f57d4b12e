//! How the activations of a feature go together with those of other features, and with the numbers of the rows that the autoencoder
//! reads, which are called neurons here whatever they are.
//!
//! As SAEDashboard has them (`RollingCorrCoef` in its utils_fns.py): over n rows, with x the activations and y the other numbers,
//! pearson = (n Σxy - Σx Σy) / √((n Σx² - (Σx)²) (n Σy² - (Σy)²)) and cosine = Σxy / √(Σx² Σy²).

use std::ops::Range;

use activation_store::Store;
use anyhow::Result;
use half::f16;
use ndarray::{Array2, ArrayView1, Axis};
use rayon::prelude::*;
use terminal::Interrupt;

use super::index::Index;
use super::rows::Rows;
use crate::report::progress::{counted, proceed};
use crate::report::table::grouped;

/// Entries of a list.
const LISTED: usize = 3;
/// Rows that are read at once.
const BATCH: usize = 4096;
/// Sums of products that are held at once, eight bytes each. More features take more passes over the rows.
const SUMS: usize = 1 << 25;
/// Features of a task. The order of no sum depends on it.
const TASK: usize = 256;

/// A number that goes together with a feature's activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Correlation {
    /// The component of the rows, or the other feature.
    pub(crate) of: u32,
    pub(crate) pearson: f64,
    pub(crate) cosine: f64,
}

/// The largest correlations of a feature, the largest first, as far as they are above 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Correlated {
    pub(crate) neurons: Vec<Correlation>,
    /// Of all features that fire in a row with it.
    pub(crate) features: Vec<Correlation>,
}

/// Which rows count: those whose token is not left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unmasked<'a> {
    /// By place.
    pub(crate) tokens: &'a [u32],
    pub(crate) left_out: &'a [u32],
}

impl Unmasked<'_> {
    /// Whether the row at a place counts.
    pub(crate) fn has(&self, place: usize) -> bool {
        !self.left_out.contains(&self.tokens[place])
    }
}

/// n, Σx and Σx² of some variables.
struct Sums {
    rows: f64,
    of: Vec<f64>,
    squares: Vec<f64>,
}

/// Of the first `features` features, whose activations are multiplied by `factors`, [F]. Rows are those of the first contexts of the index, as many as have about 67 million activations.
pub(crate) fn correlations(
    index: &Index,
    store: &Store,
    unmasked: Unmasked<'_>,
    factors: &[f32],
    features: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Correlated>> {
    let rows = Rows::with_activations(index)?;
    let (contexts, all) = (rows.places() / index.record.context_length, index.record.contexts);
    if contexts < all {
        terminal::say!(
            "correlations are over the first {} of {} contexts",
            grouped(contexts as u64),
            grouped(all as u64)
        );
    }
    let source = Source { store, rows: &rows, unmasked, factors };
    let (mut own, mut neurons) = (source.sums(index.record.features), Vec::with_capacity(features));
    let width = store.width();
    let group = (SUMS / width).max(1);
    let passes = features.div_ceil(group) as u64;
    let bar = counted("correlating", passes * store.rows(), "rows");
    for first in (0..features).step_by(group) {
        let range = first..(first + group).min(features);
        let mut products = vec![0.0; range.len() * width];
        let mut of_neurons = Sums { rows: 0.0, of: vec![0.0; width], squares: vec![0.0; width] };
        source.each(|block, places| {
            proceed(interrupt)?;
            bar.inc(block.nrows() as u64);
            source.add(block, places, &range, &mut products);
            of_neurons.add(block);
            Ok(())
        })?;
        own.rows = of_neurons.rows;
        let found = |(at, products): (usize, &[f64])| {
            let all = products.iter().enumerate().map(|(neuron, sum)| (neuron, *sum));
            largest(all, &own, range.start + at, &of_neurons)
        };
        neurons.par_extend(products.par_chunks(width).enumerate().map(found));
    }
    bar.finish_and_clear();

    let bar = counted("correlating", features as u64, "features");
    let found: Vec<Vec<Correlation>> = (0..features)
        .into_par_iter()
        .map_init(
            || (vec![0.0; index.record.features], Vec::new()),
            |memory, feature| {
                proceed(interrupt)?;
                bar.inc(1);
                source.with_others(index, feature, &own, memory)
            },
        )
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    Ok(neurons.into_iter().zip(found).map(|(neurons, features)| Correlated { neurons, features }).collect())
}

/// Bytes that [`correlations`] takes, about.
pub(crate) fn memory(index: &Index, width: usize, features: usize) -> u64 {
    let sums = (features * width).min(SUMS.max(width));
    Rows::memory(index) + 8 * sums as u64
}

impl Sums {
    fn add(&mut self, block: &Array2<f32>) {
        self.rows += block.nrows() as f64;
        for row in block.rows() {
            for ((sum, squares), x) in self.of.iter_mut().zip(&mut self.squares).zip(row) {
                *sum += f64::from(*x);
                *squares += f64::from(*x).powi(2);
            }
        }
    }

    /// n Σx² - (Σx)²
    fn spread(&self, at: usize) -> f64 {
        (self.rows * self.squares[at] - self.of[at].powi(2)).max(0.0)
    }
}

/// The variables of `others` with the largest correlations with variable `own_at` of `own`. SAEDashboard adds 1e-6 to each
/// denominator, so that nothing is divided by 0.
fn largest(
    products: impl Iterator<Item = (usize, f64)>,
    own: &Sums,
    own_at: usize,
    others: &Sums,
) -> Vec<Correlation> {
    let n = own.rows;
    let correlation = |(of, sum): (usize, f64)| {
        let numerator = n * sum - own.of[own_at] * others.of[of];
        let pearson = numerator / ((own.spread(own_at) * others.spread(of)).sqrt() + 1e-6);
        let cosine = sum / ((own.squares[own_at] * others.squares[of]).sqrt() + 1e-6);
        Correlation { of: of as u32, pearson, cosine }
    };
    let mut found: Vec<Correlation> = products.map(correlation).filter(|found| found.pearson > 0.0).collect();
    found.sort_by(|a, b| b.pearson.total_cmp(&a.pearson).then(a.of.cmp(&b.of)));
    found.truncate(LISTED);
    found
}

struct Source<'a> {
    store: &'a Store,
    rows: &'a Rows,
    unmasked: Unmasked<'a>,
    factors: &'a [f32],
}

impl Source<'_> {
    /// Those of the activations of all features, without the number of rows.
    fn sums(&self, features: usize) -> Sums {
        let mut sums = Sums { rows: 0.0, of: vec![0.0; features], squares: vec![0.0; features] };
        for place in (0..self.rows.places()).filter(|place| self.unmasked.has(*place)) {
            let (features, bits) = self.rows.at(place);
            for (feature, bits) in features.iter().zip(bits) {
                let a = self.activation(*feature, *bits);
                sums.of[*feature as usize] += a;
                sums.squares[*feature as usize] += a * a;
            }
        }
        sums
    }

    fn activation(&self, feature: u32, bits: u16) -> f64 {
        f64::from(f16::from_bits(bits).to_f32() * self.factors[feature as usize])
    }

    /// Calls `take` with the rows that count, some at a time, and their places.
    fn each(&self, mut take: impl FnMut(&Array2<f32>, &[usize]) -> Result<()>) -> Result<()> {
        let rows = self.store.rows();
        let step = BATCH.next_multiple_of(self.store.spec().layout.chunk_rows) as u64;
        for start in (0..rows).step_by(step as usize) {
            let range = start..(start + step).min(rows);
            let origins = self.store.origin(range.clone())?;
            let counts = |origin: u64| {
                usize::try_from(origin).is_ok_and(|at| at < self.rows.places() && self.unmasked.has(at))
            };
            let kept: Vec<usize> = (0..origins.len()).filter(|at| counts(origins[*at])).collect();
            if !kept.is_empty() {
                let places: Vec<usize> = kept.iter().map(|at| origins[*at] as usize).collect();
                take(&self.store.read_rows(range)?.select(Axis(0), &kept), &places)?;
            }
        }
        Ok(())
    }

    /// Adds to the sums of products [features, d].
    fn add(&self, block: &Array2<f32>, places: &[usize], features: &Range<usize>, products: &mut [f64]) {
        let width = block.ncols();
        products.par_chunks_mut(TASK * width).enumerate().for_each(|(task, products)| {
            let first = features.start + task * TASK;
            let end = (first + TASK).min(features.end);
            for (row, place) in block.rows().into_iter().zip(places) {
                let (active, bits) = self.rows.at(*place);
                let from = active.partition_point(|feature| (*feature as usize) < first);
                for (number, bits) in active[from..].iter().zip(&bits[from..]) {
                    let feature = *number as usize;
                    if feature >= end {
                        break;
                    }
                    let at = (feature - first) * width;
                    add_multiple(&mut products[at..at + width], self.activation(*number, *bits), row);
                }
            }
        });
    }

    /// The correlations of a feature with all others.
    fn with_others(
        &self,
        index: &Index,
        feature: usize,
        own: &Sums,
        (sums, touched): &mut (Vec<f64>, Vec<usize>),
    ) -> Result<Vec<Correlation>> {
        for firing in index.firings(feature)? {
            let place = firing.place() as usize;
            if place >= self.rows.places() {
                break;
            }
            if !self.unmasked.has(place) {
                continue;
            }
            let a = self.activation(feature as u32, firing.bits());
            let (others, bits) = self.rows.at(place);
            for (other, bits) in others.iter().zip(bits) {
                let sum = &mut sums[*other as usize];
                if *sum == 0.0 {
                    touched.push(*other as usize);
                }
                *sum += a * self.activation(*other, *bits);
            }
        }
        let products = touched.iter().filter(|other| **other != feature).map(|other| (*other, sums[*other]));
        let found = largest(products, own, feature, own);
        touched.drain(..).for_each(|other| sums[other] = 0.0);
        Ok(found)
    }
}

fn add_multiple(to: &mut [f64], factor: f64, row: ArrayView1<'_, f32>) {
    to.iter_mut().zip(row).for_each(|(to, x)| *to += factor * f64::from(*x));
}
