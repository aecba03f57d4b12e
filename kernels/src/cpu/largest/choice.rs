//! Which of some values are the largest, where each is known within a margin.
//!
//! The count-th largest of the exact values lies between the count-th largest of what the values are at least and that of
//! what they are at most. What is surely above this is kept, what is surely below is not; values in between are formed exactly.

use rayon::prelude::*;

use crate::cpu::pairs::{ROW_GROUP, RowPairs, split_at_ends};

/// A choice among pairs that were found.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Whether each pair is among the largest.
    keep: Vec<bool>,
    /// For a batch, what each value is at least, and at most.
    lower: Vec<f32>,
    upper: Vec<f32>,
    memory: Vec<f32>,
}

/// A pair that may or may not be among the largest.
#[derive(Debug, Clone, Copy)]
struct Doubtful {
    /// Exact.
    value: f32,
    feature: u32,
    row: usize,
    place: usize,
}

impl Choice {
    /// Whether the pair at this place is among the largest.
    pub(super) fn keeps(&self, place: usize) -> bool {
        self.keep[place]
    }

    /// Chooses the k largest of each row's pairs, whose values are known within the row's margin; `exact` forms that of a row
    /// and a feature, and of equal ones the lower features are taken.
    pub(super) fn of_rows(
        &mut self,
        k: usize,
        found: &RowPairs,
        margins: &[f32],
        exact: impl Fn(usize, u32) -> f32 + Sync,
    ) {
        let groups = self.groups(found);
        groups.into_par_iter().enumerate().for_each(|(group, mut keep)| {
            let (mut memory, mut doubtful) = (Vec::new(), Vec::new());
            for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(found.rows()) {
                let (features, values) = found.of_row(row);
                let (own, rest) = keep.split_at_mut(values.len());
                keep = rest;
                if values.len() <= k {
                    continue;
                }
                // All have one margin, so the k-th largest of what they are at least is the k-th largest less the margin.
                let (margin, kth) = (margins[row], kth_largest(values, k, &mut memory));
                let (least, most) = (kth - margin, kth + margin);
                for (keep, value) in own.iter_mut().zip(values) {
                    *keep = value - margin > most;
                }
                doubtful.clear();
                for (place, value) in values.iter().enumerate() {
                    // A margin that is NaN rules nothing out.
                    let below = value + margin < least;
                    if !own[place] && !below {
                        doubtful.push(Doubtful { value: *value, feature: features[place], row, place });
                    }
                }
                let certain = own.iter().filter(|keep| **keep).count();
                keep_largest(k - certain, &mut doubtful, |_| margin != 0.0, &exact, own);
            }
        });
    }

    /// Chooses the `count` largest of all pairs, of equal ones those of lower features and then of lower rows; otherwise as
    /// [`Choice::of_rows`].
    pub(super) fn of_batch(
        &mut self,
        count: usize,
        found: &RowPairs,
        margins: &[f32],
        exact: impl Fn(usize, u32) -> f32 + Sync,
    ) {
        drop(self.groups(found));
        if found.values.len() <= count {
            return;
        }
        let Choice { keep, lower, upper, memory } = self;
        lower.resize(found.values.len(), 0.0);
        upper.resize(found.values.len(), 0.0);
        let ends = group_ends(found);
        let bounds = split_at_ends(lower, upper, ends).into_par_iter().enumerate();
        bounds.for_each(|(group, (mut lower, mut upper))| {
            for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(found.rows()) {
                let (margin, values) = (margins[row], found.of_row(row).1);
                let (own_lower, own_upper);
                (own_lower, lower) = lower.split_at_mut(values.len());
                (own_upper, upper) = upper.split_at_mut(values.len());
                for ((lower, upper), value) in own_lower.iter_mut().zip(own_upper).zip(values) {
                    (*lower, *upper) = (value - margin, value + margin);
                }
            }
        });
        let least = kth_largest_of_many(lower, count, memory);
        let most = kth_largest_of_many(upper, count, memory);
        keep.iter_mut().zip(&*lower).for_each(|(keep, lower)| *keep = *lower > most);
        let mut doubtful = Vec::new();
        for row in 0..found.rows() {
            for place in found.starts[row]..found.starts[row + 1] {
                let below = upper[place] < least;
                if !keep[place] && !below {
                    let (value, feature) = (found.values[place], found.features[place]);
                    doubtful.push(Doubtful { value, feature, row, place });
                }
            }
        }
        let certain = keep.iter().filter(|keep| **keep).count();
        keep_largest(count - certain, &mut doubtful, |row| margins[row] != 0.0, &exact, keep);
    }

    /// Keeps everything, and returns the marks of each group of rows.
    fn groups(&mut self, found: &RowPairs) -> Vec<&mut [bool]> {
        self.keep.clear();
        self.keep.resize(found.values.len(), true);
        let (mut rest, mut start) = (&mut self.keep[..], 0);
        group_ends(found)
            .map(|end| {
                let (group, after) = std::mem::take(&mut rest).split_at_mut(end - start);
                (rest, start) = (after, end);
                group
            })
            .collect()
    }
}

/// Where the pairs of each group of rows end.
fn group_ends(found: &RowPairs) -> impl Iterator<Item = usize> {
    let rows = found.rows();
    (0..rows.div_ceil(ROW_GROUP)).map(move |group| found.starts[((group + 1) * ROW_GROUP).min(rows)])
}

/// Marks the `count` largest of `doubtful` pairs, formed exactly where their values are not.
fn keep_largest(
    count: usize,
    doubtful: &mut [Doubtful],
    is_rounded: impl Fn(usize) -> bool + Sync,
    exact: &(impl Fn(usize, u32) -> f32 + Sync),
    keep: &mut [bool],
) {
    // Often it is the k-th alone.
    if doubtful.len() > count {
        let form = |pair: &mut Doubtful| {
            if is_rounded(pair.row) {
                pair.value = exact(pair.row, pair.feature);
            }
        };
        // The many of a batch, but not the few of a row.
        doubtful.par_iter_mut().with_min_len(64).for_each(form);
        let larger = |a: &Doubtful, b: &Doubtful| {
            b.value.total_cmp(&a.value).then((a.feature, a.row).cmp(&(b.feature, b.row)))
        };
        doubtful.sort_unstable_by(larger);
    }
    doubtful.iter().take(count).for_each(|pair| keep[pair.place] = true);
}

/// The k-th largest of `values`, k ≥ 1; −∞ if there are fewer.
pub(super) fn kth_largest(values: &[f32], k: usize, memory: &mut Vec<f32>) -> f32 {
    if values.len() < k {
        return f32::NEG_INFINITY;
    }
    memory.clear();
    memory.extend_from_slice(values);
    kth_largest_in(memory, k)
}

/// The k-th largest of `values`, 1 ≤ k ≤ their number, whose order changes.
pub(super) fn kth_largest_in(values: &mut [f32], k: usize) -> f32 {
    *values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Bits of a number by which many are counted first.
const COUNTED_BITS: u32 = 16;

/// As [`kth_largest`], of so many that counting them by their upper bits first is faster.
pub(super) fn kth_largest_of_many(values: &[f32], k: usize, memory: &mut Vec<f32>) -> f32 {
    if values.len() < k {
        return f32::NEG_INFINITY;
    }
    // Larger numbers have lower keys.
    let key = |value: f32| {
        let bits = value.to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        (!ascending >> (32 - COUNTED_BITS)) as usize
    };
    let part = values.len().div_ceil(rayon::current_num_threads()).max(1);
    let count = |values: &[f32]| {
        let mut counts = vec![0u32; 1 << COUNTED_BITS];
        values.iter().for_each(|value| counts[key(*value)] += 1);
        counts
    };
    let add = |mut sum: Vec<u32>, counts: Vec<u32>| {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        sum
    };
    let counts = values.par_chunks(part).map(count).reduce_with(add).unwrap_or_default();
    let (mut before, mut wanted) = (0, 0);
    for (key, count) in counts.iter().enumerate() {
        wanted = key;
        if before + *count as usize >= k {
            break;
        }
        before += *count as usize;
    }
    let same: Vec<f32> = values.iter().copied().filter(|value| key(*value) == wanted).collect();
    kth_largest(&same, k - before, memory)
}

#[cfg(test)]
mod tests {
    use example_steps::numbers;

    use super::*;

    #[test]
    fn the_kth_of_many_is_the_kth() {
        let mut values = numbers(5000, 3);
        // Equal ones, zeros of both signs, infinities and tiny numbers.
        values.extend(numbers(500, 3));
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-44, -1e-44, f32::MAX, f32::MIN]);
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 3, 77, 2600, 2754, 2755, 5000, values.len() - 1, values.len()] {
            let (of_many, of_few) =
                (kth_largest_of_many(&values, k, &mut Vec::new()), kth_largest(&values, k, &mut Vec::new()));
            assert_eq!(of_many.to_bits(), sorted[k - 1].to_bits(), "{k}");
            assert_eq!(of_few.to_bits(), sorted[k - 1].to_bits(), "{k}");
        }
        assert_eq!(kth_largest_of_many(&values, values.len() + 1, &mut Vec::new()), f32::NEG_INFINITY);
        assert_eq!(kth_largest_of_many(&[], 1, &mut Vec::new()), f32::NEG_INFINITY);
    }
}
