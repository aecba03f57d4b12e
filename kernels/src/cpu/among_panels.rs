//! The largest z of all panels from the largest of each: those of each row, or those of the batch, ties by the lower feature and
//! then by the lower row. All ranks find the same ones.

use bytemuck::{Pod, Zeroable};
use ranks::ExchangeError;
use rayon::prelude::*;

use super::pairs::{ActivePairs, RowPairs};
use super::peers::Peers;

/// A pair of a row that may be among its largest.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Candidate {
    /// Above 0, or 0 if there is none.
    value: f32,
    feature: u32,
}

const NONE: Candidate = Candidate { value: 0.0, feature: u32::MAX };

impl Candidate {
    /// Whether it comes before `other` among the largest, or is the same.
    fn is_within(&self, other: &Candidate) -> bool {
        self.value > other.value || (self.value == other.value && self.feature <= other.feature)
    }

    fn order(&self, other: &Candidate) -> std::cmp::Ordering {
        other.value.total_cmp(&self.value).then(self.feature.cmp(&other.feature))
    }
}

/// Leaves of the largest of each own panel those that are among the k largest of their row. A panel comes with its first feature.
pub(super) fn keep_of_rows(
    peers: &Peers,
    k: usize,
    rows: usize,
    panels: &mut [(usize, &mut ActivePairs)],
) -> Result<(), ExchangeError> {
    let mut own = vec![NONE; rows * k];
    own.par_chunks_mut(k).enumerate().for_each(|(row, own)| {
        let all = panels.iter().flat_map(|(first, pairs)| {
            let (features, values) = pairs.of_row(row);
            let candidate =
                |(j, value): (&u32, &f32)| Candidate { value: *value, feature: *first as u32 + j };
            features.iter().zip(values).map(candidate)
        });
        let mut all: Vec<Candidate> = all.collect();
        all.sort_unstable_by(Candidate::order);
        own.iter_mut().zip(all).for_each(|(own, candidate)| *own = candidate);
    });
    let all = peers.all(&own)?;
    let last_of_row = |row: usize| {
        let ranks = all.chunks_exact(rows * k);
        let mut candidates: Vec<Candidate> = ranks.flat_map(|rank| &rank[row * k..][..k]).copied().collect();
        *candidates.select_nth_unstable_by(k - 1, Candidate::order).1
    };
    let last: Vec<Candidate> = (0..rows).into_par_iter().map(last_of_row).collect();
    for (first, pairs) in panels {
        keep(pairs, |row, feature, value| {
            Candidate { value, feature: *first as u32 + feature }.is_within(&last[row])
        });
    }
    Ok(())
}

/// Leaves of the largest of each own panel those that are among the `count` largest of all.
pub(super) fn keep_of_batch(
    peers: &Peers,
    count: usize,
    panels: &mut [(usize, &mut ActivePairs)],
) -> Result<(), ExchangeError> {
    let own: u64 = panels.iter().map(|(_, pairs)| pairs.len() as u64).sum();
    if peers.all(&[own])?.iter().sum::<u64>() <= count as u64 {
        return Ok(());
    }
    let (last, mut ties) = nth_largest(peers, count as u64, panels)?;
    // The first of those with equal values are kept, panel by panel.
    let equal = |pairs: &ActivePairs| pairs.row_values.iter().filter(|value| **value == last).count() as u64;
    let own: Vec<u64> = panels.iter().map(|(_, pairs)| equal(pairs)).collect();
    let all = peers.all(&own)?;
    let before = peers.rank() * own.len();
    ties = ties.saturating_sub(all[..before].iter().sum());
    for ((_, pairs), own) in panels.iter_mut().zip(own) {
        let end = tie(pairs, last, ties.min(own));
        ties -= ties.min(own);
        keep(pairs, |row, feature, value| {
            value > last || (value == last && Some((feature, row as u32)) <= end)
        });
    }
    Ok(())
}

/// The `count`-th largest value of all panels, and how many of those that equal it are among the `count` largest.
fn nth_largest(
    peers: &Peers,
    count: u64,
    panels: &[(usize, &mut ActivePairs)],
) -> Result<(f32, u64), ExchangeError> {
    // Numbers above 0 are in the order of their bits, which are found from the upper ones to the lower.
    let (mut found, mut left) = (0u32, count);
    for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
        let mut counts = vec![0u64; 1 << bits];
        let above = shift + bits;
        for value in panels.iter().flat_map(|(_, pairs)| &pairs.row_values) {
            let value = value.to_bits();
            if u64::from(value) >> above == u64::from(found) >> above {
                counts[(value >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        let all = peers.all(&counts)?;
        let of_all = |at: usize| -> u64 { all.iter().skip(at).step_by(counts.len()).sum() };
        for at in (0..counts.len()).rev() {
            let here = of_all(at);
            if here >= left {
                found |= (at as u32) << shift;
                break;
            }
            left -= here;
        }
    }
    Ok((f32::from_bits(found), left))
}

/// Feature and row of number `count` of the pairs with this value, features and then rows ascending; None for none.
fn tie(pairs: &ActivePairs, value: f32, count: u64) -> Option<(u32, u32)> {
    let last = count.checked_sub(1)?;
    let mut equal = (0..pairs.len()).filter(|at| pairs.feature_values[*at] == value);
    let at = equal.nth(last as usize)?;
    let feature = pairs.feature_starts.partition_point(|start| *start <= at) - 1;
    Some((feature as u32, pairs.rows[at]))
}

/// Leaves the pairs of which `keeps`, asked with row, feature and value, says so.
fn keep(pairs: &mut ActivePairs, keeps: impl Fn(usize, u32, f32) -> bool + Sync) {
    let features = pairs.feature_starts.len() - 1;
    let found = RowPairs {
        starts: std::mem::take(&mut pairs.row_starts),
        features: std::mem::take(&mut pairs.features),
        values: std::mem::take(&mut pairs.row_values),
    };
    let kept = |row: usize| {
        let (of_row, values) = found.of_row(row);
        let keeps = &keeps;
        of_row
            .iter()
            .zip(values)
            .map(move |(feature, value)| keeps(row, *feature, *value))
            .collect::<Vec<_>>()
    };
    let kept: Vec<bool> = (0..found.rows()).into_par_iter().flat_map_iter(kept).collect();
    pairs.take(&found, features, |at| kept[at]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use example_steps::numbers;
    use ranks::Alone;

    use super::*;

    /// Pairs of four rows and twelve features, with many equal values.
    fn cells() -> Vec<f32> {
        numbers(48, 5).iter().map(|z| (z * 4.0).round() / 4.0).collect()
    }

    /// The pairs above 0 of the features in `panel`.
    fn pairs(z: &[f32], panel: std::ops::Range<usize>) -> ActivePairs {
        let mut found = RowPairs { starts: vec![0], ..RowPairs::default() };
        for row in z.chunks_exact(12) {
            for (feature, z) in row[panel.clone()].iter().enumerate().filter(|(_, z)| **z > 0.0) {
                found.features.push(feature as u32);
                found.values.push(*z);
            }
            found.starts.push(found.features.len());
        }
        let mut pairs = ActivePairs::default();
        pairs.take(&found, panel.len(), |_| true);
        pairs
    }

    /// What `select` leaves of four panels: (row, feature), sorted.
    fn left(z: &[f32], select: impl FnOnce(&Peers, &mut [(usize, &mut ActivePairs)])) -> Vec<(usize, u32)> {
        let mut panels: Vec<ActivePairs> = (0..4).map(|panel| pairs(z, panel * 3..panel * 3 + 3)).collect();
        let mut own: Vec<_> = panels.iter_mut().enumerate().map(|(at, pairs)| (3 * at, pairs)).collect();
        select(&Peers(Arc::new(Alone)), &mut own);
        let mut left = Vec::new();
        for (at, pairs) in panels.iter().enumerate() {
            for row in 0..4 {
                left.extend(pairs.of_row(row).0.iter().map(|feature| (row, 3 * at as u32 + feature)));
            }
        }
        left.sort();
        left
    }

    #[test]
    fn the_largest_of_a_row_are_those_of_all_its_panels() {
        let z = cells();
        for k in 1..=12 {
            let mut expected = Vec::new();
            for (row, z) in z.chunks_exact(12).enumerate() {
                let mut order: Vec<u32> = (0..12).filter(|j| z[*j as usize] > 0.0).collect();
                order.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
                expected.extend(order.into_iter().take(k).map(|feature| (row, feature)));
            }
            expected.sort();
            assert_eq!(left(&z, |peers, panels| keep_of_rows(peers, k, 4, panels).unwrap()), expected, "{k}");
        }
    }

    #[test]
    fn the_largest_of_a_batch_are_those_of_all_panels() {
        let z = cells();
        for count in 1..=48 {
            let cells = (0..48).filter(|at| z[*at] > 0.0);
            let mut order: Vec<(usize, u32)> = cells.map(|at| (at / 12, (at % 12) as u32)).collect();
            let value = |(row, feature): (usize, u32)| z[row * 12 + feature as usize];
            order.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then((a.1, a.0).cmp(&(b.1, b.0))));
            order.truncate(count);
            order.sort();
            assert_eq!(
                left(&z, |peers, panels| keep_of_batch(peers, count, panels).unwrap()),
                order,
                "{count}"
            );
        }
    }
}
