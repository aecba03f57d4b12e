//! Mean, variance and mean norm of the stored rows, in float64.
//!
//! Each chunk is summed in row order and the chunks are merged in store order. So the result is the same, bit for bit, for any
//! number of threads and however often the dump was interrupted.

use crate::isa::per_isa;

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
pub(crate) struct ChunkStatistics {
    rows: u64,
    /// The first row: with a mean far from zero the sum of plain squares would cancel.
    pivot: Vec<f64>,
    /// Distances from the pivot.
    sum: Vec<f64>,
    /// Squared distances from the pivot.
    squares: Vec<f64>,
    /// Euclidean norms.
    norm: f64,
}

impl ChunkStatistics {
    /// Of no row.
    pub(crate) fn new(width: usize) -> Self {
        let zeros = vec![0.0; width];
        ChunkStatistics { rows: 0, pivot: zeros.clone(), sum: zeros.clone(), squares: zeros, norm: 0.0 }
    }

    /// Adds the next rows, `[n, d]`. The sums do not depend on how the rows are divided among calls, but four at a time are
    /// faster than one.
    pub(crate) fn add(&mut self, rows: &[f32]) {
        let width = self.pivot.len();
        if self.rows == 0 {
            self.pivot.iter_mut().zip(rows).for_each(|(pivot, &value)| *pivot = f64::from(value));
        }
        self.rows += (rows.len() / width) as u64;
        let mut fours = rows.chunks_exact(4 * width);
        let ChunkStatistics { pivot, sum, squares, norm, .. } = self;
        for four in &mut fours {
            add_rows::<4>(four, pivot, sum, squares, norm);
        }
        for row in fours.remainder().chunks_exact(width) {
            add_rows::<1>(row, pivot, sum, squares, norm);
        }
    }

    pub(crate) fn finish(self) -> RunningStatistics {
        let n = self.rows.max(1) as f64;
        let ChunkStatistics { rows, pivot, sum, squares, norm } = self;
        RunningStatistics {
            rows,
            mean: pivot.iter().zip(&sum).map(|(pivot, sum)| pivot + sum / n).collect(),
            deviation: squares
                .iter()
                .zip(&sum)
                .map(|(squares, sum)| (squares - sum * sum / n).max(0.0))
                .collect(),
            norm_sum: norm,
        }
    }
}

/// Components that are summed side by side, and partial sums of a norm.
const LANES: usize = 8;

per_isa! {
    /// Adds `N` rows to the sums, to each component's in their order: a sum is loaded and stored once for all of them.
    fn add_rows[const N: usize](rows: &[f32], pivot: &[f64], sum: &mut [f64], squares: &mut [f64], norm: &mut f64) {
        let width = pivot.len();
        let rows: [&[f32]; N] = std::array::from_fn(|row| &rows[row * width..(row + 1) * width]);
        let mut blocks = rows.map(|row| row.as_chunks::<LANES>().0.iter());
        let pivots = pivot.as_chunks::<LANES>().0;
        let sums = sum.as_chunks_mut::<LANES>().0.iter_mut().zip(squares.as_chunks_mut::<LANES>().0);
        // The squared norm in interleaved partial sums, so that it vectorises in a fixed order.
        let mut squared = [[0.0_f64; LANES]; N];
        for (pivot, (sum, squares)) in pivots.iter().zip(sums) {
            // Copies, which the compiler keeps in registers.
            let (pivot, mut new_sum, mut new_squares) = (*pivot, *sum, *squares);
            for (block, squared) in blocks.iter_mut().zip(&mut squared) {
                let Some(values) = block.next() else { break };
                let mut wide = [0.0_f64; LANES];
                for lane in 0..LANES {
                    wide[lane] = f64::from(values[lane]);
                }
                for lane in 0..LANES {
                    let distance = wide[lane] - pivot[lane];
                    new_sum[lane] += distance;
                    new_squares[lane] += distance * distance;
                }
                for lane in 0..LANES {
                    squared[lane] += wide[lane] * wide[lane];
                }
            }
            (*sum, *squares) = (new_sum, new_squares);
        }
        for row in 0..N {
            let mut rest = 0.0;
            for channel in width / LANES * LANES..width {
                let value = f64::from(rows[row][channel]);
                let distance = value - pivot[channel];
                sum[channel] += distance;
                squares[channel] += distance * distance;
                rest += value * value;
            }
            *norm += (squared[row].iter().sum::<f64>() + rest).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// One row, one component after the other: the order that the format's statistics have had from the beginning.
    fn add_plainly(to: &mut ChunkStatistics, row: &[f32]) {
        if to.rows == 0 {
            to.pivot = row.iter().copied().map(f64::from).collect();
        }
        to.rows += 1;
        let (mut squared, mut rest) = ([0.0; 8], 0.0);
        for (channel, &value) in row.iter().enumerate() {
            let value = f64::from(value);
            let distance = value - to.pivot[channel];
            to.sum[channel] += distance;
            to.squares[channel] += distance * distance;
            let partial = if channel < row.len() / 8 * 8 { &mut squared[channel % 8] } else { &mut rest };
            *partial += value * value;
        }
        to.norm += (squared.iter().sum::<f64>() + rest).sqrt();
    }

    #[test]
    fn chunks_merge_to_exact_statistics_with_a_mean_far_from_zero() {
        let (rows, width) = (1000, 19);
        let value = |row: usize, channel: usize| {
            f16::from_f32(300.0 * channel as f32 + ((row * 7919 + channel * 104_729) % 1013) as f32 / 1013.0)
        };
        let mut running = RunningStatistics::new(width);
        for first in (0..rows).step_by(137) {
            let count = 137.min(rows - first);
            let rows: Vec<f32> = (first..first + count)
                .flat_map(|row| (0..width).map(move |channel| value(row, channel).to_f32()))
                .collect();
            let [mut chunk, mut by_one, mut plain] = [(); 3].map(|()| ChunkStatistics::new(width));
            chunk.add(&rows);
            rows.chunks_exact(width).for_each(|row| by_one.add(row));
            rows.chunks_exact(width).for_each(|row| add_plainly(&mut plain, row));
            let chunk = chunk.finish();
            assert_eq!(by_one.finish(), chunk);
            assert_eq!(plain.finish(), chunk);
            running.merge(&chunk);
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
