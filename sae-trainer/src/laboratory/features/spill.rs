//! Firings on their way from rows to features: a file for each range of features, sorted when it is read back.
//!
//! Rows arrive in the store's order, and features are asked for one by one. Encoding costs far more than writing eight bytes for
//! each firing, so all are encoded once and written, rather than encoded again for each range that fits into memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::slice::ParallelSliceMut;
use terminal::foreign_path;

use super::firing::Firing;
use crate::engine::SparseActivations;

/// Files, as long as features can be told apart by 16 bits in each.
const FILES: usize = 64;
/// Firings that are collected for a file before they are written.
const BUFFER: usize = 1 << 15;

/// Bytes of memory that collecting takes.
pub(super) const MEMORY: u64 = (FILES * BUFFER * size_of::<Firing>()) as u64;

/// Collects firings.
pub(super) struct Spill {
    parts: Vec<Part>,
    /// Part of a feature: its number without this many bits.
    shift: u32,
    counts: Vec<u64>,
    halves: Vec<f16>,
    clipped: u64,
}

struct Part {
    path: PathBuf,
    file: File,
    buffer: Vec<Firing>,
}

/// All firings of a pass, by feature.
pub(super) struct Spilled {
    paths: Vec<Option<PathBuf>>,
    shift: u32,
    /// Of each feature.
    pub(super) counts: Vec<u64>,
    /// Activations beyond float16, which became its largest number.
    pub(super) clipped: u64,
}

impl Spill {
    /// For so many features, in the empty folder `folder`.
    pub(super) fn create(folder: &Path, features: usize) -> Result<Spill> {
        let shift = features.div_ceil(FILES).next_power_of_two().ilog2().min(16);
        let parts = (0..features.div_ceil(1 << shift)).map(|number| {
            let path = folder.join(number.to_string());
            let file =
                File::create_new(&path).with_context(|| format!("cannot create {}", foreign_path(&path)))?;
            Ok(Part { path, file, buffer: Vec::with_capacity(BUFFER) })
        });
        Ok(Spill {
            parts: parts.collect::<Result<_>>()?,
            shift,
            counts: vec![0; features],
            halves: Vec::new(),
            clipped: 0,
        })
    }

    /// Adds what rows, whose places are given, activate. What rounds to 0 in float16 is left out.
    pub(super) fn add(&mut self, places: &[u32], found: &SparseActivations) -> Result<()> {
        self.halves.resize(found.values.len(), f16::ZERO);
        self.halves.convert_from_f32_slice(&found.values);
        let within = (1_u32 << self.shift) - 1;
        for (row, place) in places.iter().enumerate() {
            let range = found.row_starts[row]..found.row_starts[row + 1];
            for (feature, half) in found.features[range.clone()].iter().zip(&mut self.halves[range]) {
                if !half.is_finite() {
                    *half = f16::MAX;
                    self.clipped += 1;
                }
                if *half == f16::ZERO {
                    continue;
                }
                self.counts[*feature as usize] += 1;
                let part = &mut self.parts[(*feature >> self.shift) as usize];
                part.buffer.push(Firing::new((feature & within) as u16, *place, *half));
                if part.buffer.len() == BUFFER {
                    part.write()?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<Spilled> {
        self.parts.iter_mut().try_for_each(Part::write)?;
        let paths = self.parts.into_iter().map(|part| Some(part.path)).collect();
        Ok(Spilled { paths, shift: self.shift, counts: self.counts, clipped: self.clipped })
    }
}

impl Part {
    fn write(&mut self) -> Result<()> {
        let written = self.file.write_all(bytemuck::cast_slice(&self.buffer));
        written.with_context(|| format!("cannot write {}", foreign_path(&self.path)))?;
        self.buffer.clear();
        Ok(())
    }
}

impl Spilled {
    /// Firings of these features, of one after the other, each's by place.
    pub(super) fn read(&self, features: Range<usize>) -> Result<Vec<Firing>> {
        let expected: u64 = self.counts[features.clone()].iter().sum();
        let mut firings = Vec::with_capacity(expected as usize);
        let mut bytes = vec![0; BUFFER * size_of::<Firing>()];
        for (number, path) in self.paths.iter().enumerate() {
            let first = number << self.shift;
            let end = (number + 1) << self.shift;
            let Some(path) = path.as_ref().filter(|_| first < features.end && features.start < end) else {
                continue;
            };
            let wanted = features.start.saturating_sub(first)..(features.end - first).min(1 << self.shift);
            let read = || format!("cannot read {}", foreign_path(path));
            let mut file = File::open(path).with_context(read)?;
            let mut rest = file.metadata().with_context(read)?.len() as usize;
            let before = firings.len();
            while rest > 0 {
                let chunk = &mut bytes[..rest.min(BUFFER * size_of::<Firing>())];
                file.read_exact(chunk).with_context(read)?;
                rest -= chunk.len();
                let chunk = bytemuck::pod_collect_to_vec::<u8, Firing>(chunk);
                firings.extend(chunk.iter().filter(|firing| wanted.contains(&usize::from(firing.feature()))));
            }
            firings[before..].par_sort_unstable();
        }
        assert_eq!(firings.len() as u64, expected, "what was written is read");
        Ok(firings)
    }

    /// Removes the files in which there are no features from `feature` on.
    pub(super) fn discard_before(&mut self, feature: usize) -> Result<()> {
        let whole = (feature >> self.shift).min(self.paths.len());
        for path in self.paths[..whole].iter_mut().filter_map(Option::take) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", foreign_path(&path)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_back_sorted_from_whatever_range_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let features = 200; // four to a file
        let mut spill = Spill::create(dir.path(), features).unwrap();
        // Every row activates every third feature from its own number on.
        let mut expected = vec![Vec::new(); features];
        for rows in [[9_u32, 2], [70_000, 1]] {
            let mut found = SparseActivations { row_starts: vec![0], ..SparseActivations::default() };
            for place in rows {
                for feature in (place as usize % 3..features).step_by(3) {
                    found.features.push(feature as u32);
                    found.values.push(1.0 + feature as f32);
                    expected[feature].push(place);
                }
                found.row_starts.push(found.features.len());
            }
            spill.add(&rows, &found).unwrap();
        }
        let mut spilled = spill.finish().unwrap();
        for range in [0..features, 3..9, 7..8, 150..200] {
            let mut firings = spilled.read(range.clone()).unwrap().into_iter();
            for feature in range {
                expected[feature].sort_unstable();
                for place in &expected[feature] {
                    let firing = firings.next().unwrap();
                    assert_eq!((firing.place(), firing.activation()), (*place, 1.0 + feature as f32));
                }
            }
            assert!(firings.next().is_none());
        }
        spilled.discard_before(9).unwrap();
        assert!(!dir.path().join("1").exists() && dir.path().join("2").exists());
        assert_eq!(spilled.read(9..10).unwrap().len(), expected[9].len());
    }

    #[test]
    fn what_float16_cannot_hold_is_clipped_or_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::create(dir.path(), 3).unwrap();
        let found = SparseActivations {
            row_starts: vec![0, 3],
            features: vec![0, 1, 2],
            values: vec![1e6, 1e-9, 0.1],
        };
        spill.add(&[5], &found).unwrap();
        let spilled = spill.finish().unwrap();
        assert_eq!((spilled.clipped, &spilled.counts[..]), (1, &[1, 0, 1][..]));
        assert_eq!(spilled.read(0..1).unwrap()[0].activation(), 65504.0);
    }
}
