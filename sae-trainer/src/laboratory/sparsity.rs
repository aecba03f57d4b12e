//! Sixteen measures of how sparse activations are, and which of six criteria each meets.
//!
//! Measures and criteria: N. Hurley and S. Rickard, "Comparing Measures of Sparsity", IEEE Transactions on Information Theory 55
//! (2009), arXiv:0811.4706. All are turned so that more means sparser. Which criteria are met was derived again here, for numbers that
//! are not negative and at least two of which are above 0; the tests hold a counterexample against each that is not.

use rayon::prelude::*;
use serde::Serialize;

use crate::engine::SparseActivations;

/// What a measure of sparsity should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Criterion {
    /// Robin Hood: falls when a larger number gives to a smaller one, which stays the smaller.
    D1,
    /// Scaling: stays when all are multiplied.
    D2,
    /// Rising tide: falls when the same is added to all, unless they are equal.
    D3,
    /// Cloning: stays when everything is there twice.
    D4,
    /// Bill Gates: rises with any one number once that is large enough.
    P1,
    /// Babies: rises when a 0 joins.
    P2,
}

use Criterion::{D1, D2, D3, D4, P1, P2};

/// The criteria in the paper's order.
pub(super) const CRITERIA: [Criterion; 6] = [D1, D2, D3, D4, P1, P2];

/// A measure.
#[derive(Debug)]
pub(super) struct Measure {
    pub(super) name: &'static str,
    /// The criteria that it meets.
    pub(super) meets: &'static [Criterion],
}

const fn measure(name: &'static str, meets: &'static [Criterion]) -> Measure {
    Measure { name, meets }
}

/// The measures in the paper's order, with the constants that it leaves open.
pub(super) const MEASURES: [Measure; 16] = [
    measure("l0", &[D2, P2]),
    measure("l0_epsilon", &[P2]),
    measure("-l1", &[D3]),
    measure("-lp", &[D1, D3]),
    measure("l2/l1", &[D1, D2, D3, P1]),
    measure("-tanh", &[D1, D3]),
    measure("-log", &[D3]),
    measure("kappa4", &[D2, D3, P1]),
    measure("u_theta", &[D2, D4]),
    measure("-lp_negative", &[P1]),
    measure("h_gauss", &[]),
    measure("h_shannon", &[D2]),
    measure("h_shannon_modified", &[]),
    measure("hoyer", &[D1, D2, D3, P1, P2]),
    measure("pq_mean", &[D1, D2, D3, D4, P1, P2]),
    measure("gini", &[D1, D2, D3, D4, P1, P2]),
];

/// Of l0_epsilon: what counts as 0.
const EPSILON: f64 = 0.1;
/// Of -lp and pq_mean, and with the other sign of -lp_negative.
const P: f64 = 0.5;
/// Of u_theta: the share of the numbers whose narrowest interval is measured.
const THETA: f64 = 0.5;

/// Sums of the measures over rows.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    features: usize,
    sums: [f64; MEASURES.len()],
    rows: u64,
    silent_rows: u64,
}

/// What was found of an autoencoder's activations: means over the rows in which any feature is active.
#[derive(Debug, Serialize)]
pub(super) struct Sparsity {
    rows: u64,
    /// Rows without an active feature, of which most measures are undefined.
    silent_rows: u64,
    measures: Vec<Found>,
}

#[derive(Debug, Serialize)]
struct Found {
    name: &'static str,
    mean: f64,
    meets: &'static [Criterion],
}

impl Sums {
    /// Of rows of `features` activations.
    pub(super) fn new(features: usize) -> Sums {
        Sums { features, sums: [0.0; MEASURES.len()], rows: 0, silent_rows: 0 }
    }

    /// Adds the rows of a batch.
    pub(super) fn add(&mut self, activations: &SparseActivations) {
        let of_row = |row| {
            let mut active: Vec<f64> = activations.of_row(row).1.iter().map(|a| f64::from(*a)).collect();
            active.sort_unstable_by(f64::total_cmp);
            (!active.is_empty()).then(|| measures(&active, self.features))
        };
        let found: Vec<_> = (0..activations.rows()).into_par_iter().map(of_row).collect();
        for row in found {
            match row {
                Some(row) => {
                    self.rows += 1;
                    self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                None => self.silent_rows += 1,
            }
        }
    }

    /// The means.
    pub(super) fn sparsity(&self) -> Sparsity {
        let found = MEASURES.iter().zip(self.sums).map(|(measure, sum)| Found {
            name: measure.name,
            mean: sum / self.rows as f64,
            meets: measure.meets,
        });
        Sparsity { rows: self.rows, silent_rows: self.silent_rows, measures: found.collect() }
    }
}

impl Sparsity {
    /// The means in the order of [`MEASURES`].
    pub(super) fn means(&self) -> impl Iterator<Item = f64> {
        self.measures.iter().map(|found| found.mean)
    }
}

/// Each measure of `n` numbers, of which those above 0 are `active`, ascending and at least one.
fn measures(active: &[f64], n: usize) -> [f64; MEASURES.len()] {
    let sum = |term: &dyn Fn(f64) -> f64| active.iter().map(|c| term(*c)).sum::<f64>();
    let count = n as f64;
    let zeros = n - active.len();
    let small = active.partition_point(|c| *c <= EPSILON);
    let l1 = sum(&|c| c);
    let squares = sum(&|c| c * c);
    let l2 = squares.sqrt();
    let powers = sum(&|c| c.powf(P));
    // Σ c (N - k + 1/2) over the k-th smallest of all, k from 1 on.
    let ranked: f64 =
        active.iter().rev().enumerate().map(|(larger, c)| c * (larger as f64 + 0.5)).sum::<f64>() / l1;
    [
        zeros as f64,
        (zeros + small) as f64,
        -l1,
        -powers.powf(1.0 / P),
        l2 / l1,
        -sum(&f64::tanh),
        -sum(&|c| (c * c).ln_1p()),
        sum(&|c| c.powi(4)) / (squares * squares),
        narrowness(active, n),
        -sum(&|c| c.powf(-P)),
        -sum(&|c| (c * c).ln()),
        -sum(&|c| c * c / squares * (c * c / squares).powi(2).ln()),
        -sum(&|c| c * (c * c).ln()),
        (count.sqrt() - l1 / l2) / (count.sqrt() - 1.0),
        -(powers / count).powf(1.0 / P) / (squares / count).sqrt(),
        1.0 - 2.0 * ranked / count,
    ]
}

/// u_θ: one minus the narrowest interval with a share θ of the numbers over the interval with all; 1 of equal ones.
fn narrowness(active: &[f64], n: usize) -> f64 {
    let zeros = n - active.len();
    let inside = (THETA * n as f64).ceil() as usize;
    let largest = active[active.len() - 1];
    let smallest = if zeros > 0 { 0.0 } else { active[0] };
    if zeros >= inside || largest == smallest {
        return 1.0;
    }
    // An interval that begins at 0 holds all zeros.
    let from_zero = (zeros > 0).then(|| active[inside - zeros - 1]);
    let others = active.windows(inside).map(|window| window[inside - 1] - window[0]);
    1.0 - others.chain(from_zero).fold(f64::INFINITY, f64::min) / (largest - smallest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each measure of numbers in any order.
    fn of(numbers: &[f64]) -> [f64; MEASURES.len()] {
        let mut active: Vec<f64> = numbers.iter().copied().filter(|c| *c > 0.0).collect();
        active.sort_unstable_by(f64::total_cmp);
        measures(&active, numbers.len())
    }

    #[test]
    fn measures_are_those_worked_out_by_hand() {
        let found = of(&[3.0, 0.0, 4.0, 0.0]);
        let expected = [
            2.0,
            2.0,
            -7.0,
            // (√3 + √4)²
            -(7.0 + 4.0 * 3.0_f64.sqrt()),
            5.0 / 7.0,
            -(3.0_f64.tanh() + 4.0_f64.tanh()),
            -(10.0_f64.ln() + 17.0_f64.ln()),
            (81.0 + 256.0) / 625.0,
            1.0,
            -(1.0 / 3.0_f64.sqrt() + 0.5),
            -(9.0_f64.ln() + 16.0_f64.ln()),
            -2.0 * (0.36 * 0.36_f64.ln() + 0.64 * 0.64_f64.ln()),
            -(3.0 * 9.0_f64.ln() + 4.0 * 16.0_f64.ln()),
            2.0 - 7.0 / 5.0,
            -((3.0_f64.sqrt() + 2.0) / 4.0).powi(2) / 2.5,
            // 1 - 2 (3/7 · 1.5/4 + 4/7 · 0.5/4)
            1.0 - 2.0 * (4.5 + 2.0) / 28.0,
        ];
        for (measure, (found, expected)) in MEASURES.iter().zip(found.into_iter().zip(expected)) {
            assert!((found - expected).abs() < 1e-12, "{}: {found}, not {expected}", measure.name);
        }
        let u_theta = |numbers: &[f64]| of(numbers)[8];
        assert_eq!(u_theta(&[1.0, 2.0, 10.0, 11.0]), 0.9);
        assert_eq!(u_theta(&[0.0, 8.0, 2.0, 3.5]), 1.0 - 1.5 / 8.0);
        assert_eq!(u_theta(&[0.0, 8.0, 1.0, 3.5]), 1.0 - 1.0 / 8.0, "an interval may begin at 0");
    }

    /// Vectors on which criteria are tried: random ones, and those that tell measures apart.
    fn vectors() -> Vec<Vec<f64>> {
        let mut vectors = vec![
            vec![0.4, 0.1],
            vec![1.0, 1.0, 1.0, 2.0],
            vec![1.0, 2.0, 10.0, 11.0],
            vec![10.0, 1.0, 0.01],
            vec![0.3, 0.05, 0.05],
            vec![4.0, 2.0, 0.0, 0.0],
            vec![0.0, 1.0, 0.5],
        ];
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        for count in 0..500 {
            vectors.push((0..2 + count % 7).map(|_| 0.01 + 3.0 * random()).collect());
        }
        vectors
    }

    /// Before and after what a criterion speaks of.
    type Change = (Vec<f64>, Vec<f64>);

    fn changes(criterion: Criterion, vector: &[f64]) -> Vec<Change> {
        let each = 0..vector.len();
        let changed = |change: &dyn Fn(&mut Vec<f64>)| {
            let mut after = vector.to_vec();
            change(&mut after);
            (vector.to_vec(), after)
        };
        match criterion {
            D1 => each
                .clone()
                .flat_map(|rich| each.clone().map(move |poor| (rich, poor)))
                .filter(|(rich, poor)| vector[*rich] > vector[*poor])
                .flat_map(|pair| [0.05, 0.25, 0.45].map(|share| (pair, share)))
                .map(|((rich, poor), share)| {
                    let gift = share * (vector[rich] - vector[poor]);
                    changed(&|after| {
                        after[rich] -= gift;
                        after[poor] += gift;
                    })
                })
                .collect(),
            D2 => vec![changed(&|after| after.iter_mut().for_each(|c| *c *= 1.7))],
            D3 if vector.iter().all(|c| *c == vector[0]) => vec![],
            D3 => vec![changed(&|after| after.iter_mut().for_each(|c| *c += 0.3))],
            D4 => vec![changed(&|after| after.extend_from_slice(vector))],
            P1 => {
                let largest = vector.iter().copied().fold(0.0, f64::max);
                each.map(|rich| {
                    let with = |more: f64| changed(&|after| after[rich] += more * largest).1;
                    (with(50.0), with(75.0))
                })
                .collect()
            }
            P2 => vec![changed(&|after| after.push(0.0))],
        }
    }

    /// Whether a measure did what the criterion asks for.
    fn met(criterion: Criterion, before: f64, after: f64) -> bool {
        let rounding = 1e-12 * before.abs().max(after.abs()).max(1.0);
        match criterion {
            D1 | D3 => after < before - rounding,
            D2 | D4 => (after - before).abs() <= rounding,
            P1 | P2 => after > before + rounding,
        }
    }

    #[test]
    fn each_measure_meets_the_criteria_it_says_and_no_other() {
        for criterion in CRITERIA {
            let changes: Vec<Change> =
                vectors().iter().flat_map(|vector| changes(criterion, vector)).collect();
            let found: Vec<_> = changes.iter().map(|(before, after)| (of(before), of(after))).collect();
            for (number, measure) in MEASURES.iter().enumerate() {
                let broken =
                    found.iter().position(|(before, after)| !met(criterion, before[number], after[number]));
                assert_eq!(
                    broken.is_none(),
                    measure.meets.contains(&criterion),
                    "{} and {criterion:?}: {:?}",
                    measure.name,
                    broken.map(|at| &changes[at])
                );
            }
        }
    }

    #[test]
    fn means_leave_out_rows_without_activations() {
        let mut sums = Sums::new(4);
        sums.add(&SparseActivations {
            row_starts: vec![0, 2, 2, 3],
            features: vec![0, 2, 1],
            values: vec![4.0, 3.0, 2.0],
        });
        let found = sums.sparsity();
        assert_eq!((found.rows, found.silent_rows), (2, 1));
        assert_eq!(found.means().next(), Some(2.5));
    }
}
