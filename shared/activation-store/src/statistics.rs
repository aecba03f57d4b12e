//! Mean, variance and mean norm of the stored rows, in float64.
//!
//! Each chunk is summed in row order and the chunks are merged in store order. So the result is the same, bit for bit, for any
//! number of threads and however often the dump was interrupted.

use crate::RowType;
use crate::widen::widen_row;

/// Statistics over all rows of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Rows counted.
    pub rows: u64,
    /// Mean of each component, `[d]`.
    pub mean: Vec<f64>,
    /// Population variance (divided by the number of rows) of each component, `[d]`.
    pub variance: Vec<f64>,
    /// Mean over the rows of their Euclidean norm.
    pub mean_norm: f64,
}

/// Statistics of some rows, mergeable with those of other rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunningStatistics {
    rows: u64,
    mean: Vec<f64>,
    /// Sum over the rows of the squared distance from the mean, per component.
    deviation: Vec<f64>,
    norm_sum: f64,
}

impl RunningStatistics {
    /// Of no row.
    pub(crate) fn new(width: usize) -> Self {
        RunningStatistics { rows: 0, mean: vec![0.0; width], deviation: vec![0.0; width], norm_sum: 0.0 }
    }

    /// Of the first `count` rows of a chunk's byte planes.
    pub(crate) fn of(row_type: RowType, width: usize, planes: &[u8], count: usize) -> Self {
        let mut values = vec![0.0_f32; width];
        let mut sums =
            Sums { pivot: vec![0.0; width], sum: vec![0.0; width], squares: vec![0.0; width], norm: 0.0 };
        for row in 0..count {
            widen_row(planes, row_type, row, &mut values);
            if row == 0 {
                sums.pivot.iter_mut().zip(&values).for_each(|(pivot, &value)| *pivot = f64::from(value));
            }
            sums.add(&values);
        }
        let n = count.max(1) as f64;
        let Sums { pivot, sum, squares, norm } = sums;
        RunningStatistics {
            rows: count as u64,
            mean: pivot.iter().zip(&sum).map(|(pivot, sum)| pivot + sum / n).collect(),
            deviation: squares
                .iter()
                .zip(&sum)
                .map(|(squares, sum)| (squares - sum * sum / n).max(0.0))
                .collect(),
            norm_sum: norm,
        }
    }

    /// Rows counted.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the statistics of other rows (Chan, Golub, LeVeque 1979).
    pub(crate) fn merge(&mut self, other: &RunningStatistics) {
        if other.rows == 0 {
            return;
        }
        let (a, b) = (self.rows as f64, other.rows as f64);
        for channel in 0..self.mean.len() {
            let difference = other.mean[channel] - self.mean[channel];
            self.mean[channel] += difference * b / (a + b);
            self.deviation[channel] += other.deviation[channel] + difference * difference * a * b / (a + b);
        }
        self.norm_sum += other.norm_sum;
        self.rows += other.rows;
    }

    /// The finished statistics.
    pub(crate) fn finish(&self) -> Statistics {
        let n = self.rows.max(1) as f64;
        Statistics {
            rows: self.rows,
            mean: self.mean.clone(),
            variance: self.deviation.iter().map(|deviation| deviation / n).collect(),
            mean_norm: self.norm_sum / n,
        }
    }

    /// The state as hexadecimal digits, exact to the bit; see [`RunningStatistics::from_hex`].
    pub(crate) fn to_hex(&self) -> String {
        let words = [self.rows, self.norm_sum.to_bits()];
        let floats = self.mean.iter().chain(&self.deviation).map(|value| value.to_bits());
        words.into_iter().chain(floats).map(|word| format!("{word:016x}")).collect()
    }

    /// Reads back what [`RunningStatistics::to_hex`] wrote for rows of `width` elements.
    pub(crate) fn from_hex(text: &str, width: usize) -> Option<Self> {
        if text.len() != 16 * (2 + 2 * width) || !text.is_ascii() {
            return None;
        }
        let words: Option<Vec<u64>> =
            (0..text.len() / 16).map(|i| u64::from_str_radix(&text[16 * i..16 * i + 16], 16).ok()).collect();
        let words = words?;
        let floats =
            |range: std::ops::Range<usize>| words[range].iter().map(|&word| f64::from_bits(word)).collect();
        Some(RunningStatistics {
            rows: words[0],
            norm_sum: f64::from_bits(words[1]),
            mean: floats(2..2 + width),
            deviation: floats(2 + width..2 + 2 * width),
        })
    }
}

/// Sums over the rows of a chunk.
struct Sums {
    /// The first row: with a mean far from zero the sum of plain squares would cancel.
    pivot: Vec<f64>,
    /// Distances from the pivot.
    sum: Vec<f64>,
    /// Squared distances from the pivot.
    squares: Vec<f64>,
    /// Euclidean norms.
    norm: f64,
}

impl Sums {
    fn add(&mut self, row: &[f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected.
            return unsafe { self.add_avx2(row) };
        }
        self.add_plain(row);
    }

    /// The same operations in the same order, and so the same bits, four at a time. (Rust never fuses a product and
    /// a sum by itself.)
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn add_avx2(&mut self, row: &[f32]) {
        self.add_plain(row);
    }

    #[inline(always)]
    fn add_plain(&mut self, row: &[f32]) {
        let sums = self.sum.iter_mut().zip(&mut self.squares).zip(&self.pivot);
        for (((sum, squares), pivot), &value) in sums.zip(row) {
            let distance = f64::from(value) - pivot;
            *sum += distance;
            *squares += distance * distance;
        }
        // The squared norm in eight interleaved partial sums, so that it vectorises in a fixed order.
        let (blocks, rest) = row.as_chunks::<8>();
        let mut squared = [0.0_f64; 8];
        for block in blocks {
            for (sum, &value) in squared.iter_mut().zip(block) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        let rest: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        self.norm += (squared.iter().sum::<f64>() + rest).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use half::f16;

    #[test]
    fn chunks_merge_to_exact_statistics_with_a_mean_far_from_zero() {
        let (rows, width) = (1000, 19);
        let value = |row: usize, channel: usize| {
            f16::from_f32(300.0 * channel as f32 + ((row * 7919 + channel * 104_729) % 1013) as f32 / 1013.0)
        };
        let mut running = RunningStatistics::new(width);
        for first in (0..rows).step_by(137) {
            let count = 137.min(rows - first);
            // Chunks of 137 rows; the last one is padded with zeros that must not count.
            let mut planes = vec![0; 137 * width * 2];
            for row in 0..count {
                let halves: Vec<u8> =
                    (0..width).flat_map(|channel| value(first + row, channel).to_le_bytes()).collect();
                codec::shuffle_into(&halves, 2, &mut planes, row * width);
            }
            running.merge(&RunningStatistics::of(RowType::F16, width, &planes, count));
        }
        let restored = RunningStatistics::from_hex(&running.to_hex(), width).unwrap();
        assert_eq!(restored, running);
        let stats = running.finish();
        assert_eq!(stats.rows, 1000);
        let column = |channel| (0..rows).map(move |row| value(row, channel).to_f64());
        let mut norms = 0.0;
        for row in 0..rows {
            norms += (0..width).map(|channel| value(row, channel).to_f64().powi(2)).sum::<f64>().sqrt();
        }
        assert!((stats.mean_norm / (norms / 1000.0) - 1.0).abs() < 1e-14);
        for channel in 0..width {
            let mean = column(channel).sum::<f64>() / 1000.0;
            let variance = column(channel).map(|value| (value - mean).powi(2)).sum::<f64>() / 1000.0;
            assert!((stats.mean[channel] - mean).abs() < 1e-11 * mean.abs().max(1.0));
            assert!((stats.variance[channel] - variance).abs() < 1e-10, "{channel}");
        }
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let text = RunningStatistics::new(3).to_hex();
        assert!(RunningStatistics::from_hex(&text[1..], 3).is_none());
        assert!(RunningStatistics::from_hex(&text, 4).is_none());
        assert!(RunningStatistics::from_hex(&text.replace('0', "x"), 3).is_none());
        assert!(RunningStatistics::from_hex(&"é".repeat(64), 3).is_none());
    }
}
