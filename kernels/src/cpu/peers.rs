//! The ranks that share a step: how sums over panels meet, and what every rank has to know comes to all.
//!
//! Each row of a batch has an owner, who adds the ranks' sums in the [tree](crate::panels) and finishes the row. What is summed over
//! rows, every rank sums by itself, in the order of the rows. One rank alone moves nothing.

use std::ops::{AddAssign, Range};
use std::sync::Arc;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use ranks::{Exchange, ExchangeError};
use rayon::prelude::*;

use crate::panels::Tree;

/// Numbers of a task.
const CHUNK: usize = 1 << 14;

/// This rank and the others.
#[derive(Clone)]
pub(crate) struct Peers(pub(crate) Arc<dyn Exchange>);

impl Peers {
    fn count(&self) -> usize {
        self.0.ranks()
    }

    pub(crate) fn rank(&self) -> usize {
        self.0.rank()
    }

    pub(crate) fn are_several(&self) -> bool {
        self.count() > 1
    }

    /// The rows that this rank owns of `rows`.
    pub(crate) fn own_rows(&self, rows: usize) -> Range<usize> {
        let (each, rank) = (rows.div_ceil(self.count()), self.rank());
        (rank * each).min(rows)..((rank + 1) * each).min(rows)
    }

    /// From this rank's sums for all of `rows` to the sums of all ranks for the own rows.
    pub(crate) fn to_owners<T: Pod + AddAssign + Send + Sync>(
        &self,
        numbers: &mut Vec<T>,
        rows: usize,
    ) -> Result<(), ExchangeError> {
        let count = self.count();
        if count == 1 || rows == 0 {
            return Ok(());
        }
        let line = numbers.len() / rows;
        let part = rows.div_ceil(count) * line;
        numbers.resize(count * part, T::zeroed());
        let mut received = vec![T::zeroed(); count * part];
        self.0.all_to_all(cast_slice(numbers), cast_slice_mut(&mut received))?;
        // The tree of `Tree`, in place.
        let mut distance = 1;
        while distance < count {
            for left in (0..count).step_by(2 * distance) {
                let (sums, right) = received.split_at_mut((left + distance) * part);
                add(&mut sums[left * part..][..part], &right[..part]);
            }
            distance *= 2;
        }
        numbers.clear();
        numbers.extend_from_slice(&received[..self.own_rows(rows).len() * line]);
        Ok(())
    }

    /// From the numbers of the own rows, `line` for each, to those of all of `rows`.
    pub(crate) fn spread<T: Pod>(
        &self,
        numbers: &mut Vec<T>,
        rows: usize,
        line: usize,
    ) -> Result<(), ExchangeError> {
        if !self.are_several() || rows == 0 {
            return Ok(());
        }
        numbers.resize(rows.div_ceil(self.count()) * line, T::zeroed());
        let mut all = vec![T::zeroed(); self.count() * numbers.len()];
        self.0.all_gather(cast_slice(numbers), cast_slice_mut(&mut all))?;
        all.truncate(rows * line);
        *numbers = all;
        Ok(())
    }

    /// The `numbers` of all ranks, who have as many each.
    pub(crate) fn all<T: Pod>(&self, numbers: &[T]) -> Result<Vec<T>, ExchangeError> {
        if !self.are_several() {
            return Ok(numbers.to_vec());
        }
        let mut all = vec![T::zeroed(); self.count() * numbers.len()];
        self.0.all_gather(cast_slice(numbers), cast_slice_mut(&mut all))?;
        Ok(all)
    }

    /// The numbers of all features, `line` for each, from those of the own ones; `features` are those of each rank.
    pub(crate) fn all_features<T: Pod>(
        &self,
        numbers: Vec<T>,
        features: &[Range<usize>],
        line: usize,
    ) -> Result<Vec<T>, ExchangeError> {
        if !self.are_several() {
            return Ok(numbers);
        }
        let most = features.iter().map(Range::len).max().unwrap_or(0) * line;
        let mut own = numbers;
        own.resize(most, T::zeroed());
        let all = self.all(&own)?;
        let parts = all.chunks_exact(most.max(1)).zip(features);
        Ok(parts.flat_map(|(part, features)| &part[..features.len() * line]).copied().collect())
    }

    /// The sum over all panels of as many numbers each, from those of the own ones.
    pub(crate) fn sum(&self, panels: impl Iterator<Item = Vec<f64>>) -> Result<Vec<f64>, ExchangeError> {
        let join = |mut left: Vec<f64>, right: Vec<f64>| {
            left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
            left
        };
        let mut tree = Tree::default();
        panels.for_each(|panel| tree.add(panel, join));
        let own = tree.sum().unwrap_or_default();
        if !self.are_several() {
            return Ok(own);
        }
        let mut tree = Tree::default();
        self.all(&own)?.chunks(own.len()).for_each(|rank| tree.add(rank.to_vec(), join));
        Ok(tree.sum().unwrap_or_default())
    }
}

/// sums += numbers.
pub(crate) fn add<T: Copy + AddAssign + Send + Sync>(sums: &mut [T], numbers: &[T]) {
    sums.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK)).for_each(|(sums, numbers)| {
        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += *number);
    });
}
