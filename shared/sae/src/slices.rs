//! The file of the weights, written in slices of neighbouring features: by several writers, each with its own features, which may
//! be on several machines.
//!
//! ```text
//! header | W_dec [F, d]               a slice is in one piece
//!        | W_enc [d, F]               in d pieces, one in each row
//!        | W_skip [d, d], b_dec [d]   belong to no feature: one of the slices brings them
//!        | b_enc [F], threshold [F]   in one piece
//! ```
//!
//! The first writer [creates](WeightSlices::create) the file in its full length, then the others [open](WeightSlices::open) it. None of
//! them reads it before all are done. A network file system may keep a page that was read, or that reached beyond the end, and write
//! it back whole, over what another machine has written into it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::files::WEIGHTS_FILE;
use crate::{Error, Optional, Weights};

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();
/// What the header's length is a multiple of, and the bytes before it, which tell that length.
const ALIGNMENT: usize = 8;

/// The file of the weights of an autoencoder, open for one of those that write it.
#[derive(Debug)]
pub struct WeightSlices {
    path: PathBuf,
    file: File,
    features: usize,
    layout: Layout,
}

/// Where the tensors lie.
#[derive(Debug)]
struct Layout {
    metadata: Metadata,
    /// Everything before the first number.
    header: Vec<u8>,
}

impl Layout {
    /// That of [`crate::write_tensors`].
    fn new(path: &Path, d_in: usize, d_sae: usize, optional: Optional) -> Result<Layout, Error> {
        let error = |source| Error::Safetensors { path: path.into(), source };
        let mut shapes = Weights::shapes(d_in, d_sae, optional);
        // Of numbers of one type, safetensors sorts by name.
        shapes.sort_by_key(|(name, _)| *name);
        let mut end = 0;
        let infos = shapes.into_iter().map(|(name, shape)| {
            let start = end;
            end += NUMBER * shape.iter().product::<usize>();
            (name.to_owned(), TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
        });
        let metadata = Metadata::new(None, infos.collect()).map_err(error)?;
        let mut text = serde_json::to_vec(&metadata).expect("a header is plain data");
        text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        Ok(Layout { metadata, header })
    }

    fn bytes(&self) -> u64 {
        (self.header.len() + self.metadata.data_len()) as u64
    }

    /// The byte at which a tensor begins.
    fn start_of(&self, name: &str) -> usize {
        let info = self.metadata.info(name).expect("weights of these shapes were asked for");
        self.header.len() + info.data_offsets.0
    }
}

impl WeightSlices {
    /// Makes the file [`WEIGHTS_FILE`] in `folder` for an autoencoder of d = `d_in` and F = `d_sae`, with zeros for all weights.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn create(
        folder: &Path,
        d_in: usize,
        d_sae: usize,
        optional: Optional,
    ) -> Result<WeightSlices, Error> {
        let path = folder.join(WEIGHTS_FILE);
        let layout = Layout::new(&path, d_in, d_sae, optional)?;
        let create = || -> io::Result<File> {
            let file = File::create_new(&path)?;
            file.set_len(layout.bytes())?;
            file.write_all_at(&layout.header, 0)?;
            Ok(file)
        };
        let file = create().map_err(Error::io("write", &path))?;
        Ok(WeightSlices { path, file, features: d_sae, layout })
    }

    /// Opens what another writer [has created](WeightSlices::create) for the same sizes.
    ///
    /// # Errors
    /// Those of the disk; a file of another length.
    pub fn open(folder: &Path, d_in: usize, d_sae: usize, optional: Optional) -> Result<WeightSlices, Error> {
        let path = folder.join(WEIGHTS_FILE);
        let layout = Layout::new(&path, d_in, d_sae, optional)?;
        let open = || -> io::Result<File> {
            let file = File::options().write(true).open(&path)?;
            let (found, expected) = (file.metadata()?.len(), layout.bytes());
            if found != expected {
                let told = format!("it has {found} bytes, and {expected} were expected");
                return Err(io::Error::other(told));
            }
            Ok(file)
        };
        let file = open().map_err(Error::io("write", &path))?;
        Ok(WeightSlices { path, file, features: d_sae, layout })
    }

    /// Writes `weights` of the features from `first` on. The slice with feature 0 also brings what belongs to no feature.
    ///
    /// # Errors
    /// Weights whose shapes do not fit together; those of the disk.
    ///
    /// # Panics
    /// If there are fewer features, or tensors that the file does not have.
    pub fn write(&self, first: usize, weights: &Weights) -> Result<(), Error> {
        weights.check_shapes()?;
        let own = weights.d_sae();
        assert!(first + own <= self.features, "there are {} features", self.features);
        for (name, tensor) in weights.tensors() {
            let whole = tensor.len();
            // Numbers that lie one after another, from one such piece to the next, and before the first.
            let (piece, stride, before) = match name {
                "b_dec" | "W_skip" if first > 0 => continue,
                "b_dec" | "W_skip" => (whole, whole, 0),
                "W_enc" if own == self.features => (whole, whole, 0),
                "W_enc" => (own, self.features, first),
                "W_dec" => (whole, whole, first * weights.d_in()),
                _ => (whole, whole, first),
            };
            let tensor = tensor.as_standard_layout();
            let numbers = tensor.as_slice().expect("the layout is row-major");
            let start = self.layout.start_of(name);
            for (at, numbers) in numbers.chunks(piece.max(1)).enumerate() {
                let byte = start + NUMBER * (at * stride + before);
                let written = self.file.write_all_at(bytemuck::cast_slice(numbers), byte as u64);
                written.map_err(Error::io("write", &self.path))?;
            }
        }
        Ok(())
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// Those of the disk, also of earlier writes.
    pub fn finish(self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("write", self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ndarray::{Array1, Array2, s};

    use super::*;
    use crate::write_tensors;

    const WIDTH: usize = 5;
    const FEATURES: usize = 23;

    /// Every number is another one.
    fn weights(optional: Optional) -> Weights {
        let mut next = 0.0;
        Weights::from_numbers(WIDTH, FEATURES, optional, |_, shape| {
            let numbers = (0..shape.iter().product()).map(|_| {
                next += 0.5;
                next
            });
            Ok::<_, ()>(numbers.collect())
        })
        .unwrap()
    }

    fn slice(weights: &Weights, first: usize, end: usize) -> Weights {
        Weights {
            // Not row-major.
            w_enc: weights.w_enc.slice(s![.., first..end]).t().to_owned().reversed_axes(),
            b_enc: weights.b_enc.slice(s![first..end]).to_owned(),
            w_dec: weights.w_dec.slice(s![first..end, ..]).to_owned(),
            b_dec: weights.b_dec.clone(),
            threshold: weights.threshold.as_ref().map(|all| all.slice(s![first..end]).to_owned()),
            skip: weights.skip.clone().filter(|_| first == 0),
        }
    }

    #[test]
    fn slices_in_any_order_make_the_file_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        for (thresholds, skip) in [(false, false), (true, false), (false, true), (true, true)] {
            let optional = Optional { thresholds, skip };
            let weights = weights(optional);
            write_tensors(&whole, &weights.tensors()).unwrap();
            let expected = fs::read(&whole).unwrap();
            for ends in [&[FEATURES][..], &[1, FEATURES], &[4, 5, 16, FEATURES]] {
                let first = WeightSlices::create(folder.path(), WIDTH, FEATURES, optional).unwrap();
                let starts = [0].iter().chain(ends);
                let mut slices: Vec<_> = starts.zip(ends).collect();
                slices.reverse();
                for (start, end) in slices {
                    let slice = slice(&weights, *start, *end);
                    match *start {
                        0 => first.write(0, &slice).unwrap(),
                        start => {
                            let open = WeightSlices::open(folder.path(), WIDTH, FEATURES, optional);
                            let open = open.unwrap();
                            open.write(start, &slice).unwrap();
                            open.finish().unwrap();
                        }
                    }
                }
                first.finish().unwrap();
                let path = folder.path().join(WEIGHTS_FILE);
                assert!(fs::read(&path).unwrap() == expected, "{optional:?}, slices up to {ends:?}");
                fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn the_file_of_other_sizes_is_not_written_into() {
        let folder = tempfile::tempdir().unwrap();
        let optional = Optional::default();
        assert!(WeightSlices::open(folder.path(), WIDTH, FEATURES, optional).is_err());
        WeightSlices::create(folder.path(), WIDTH, FEATURES, optional).unwrap();
        let told = WeightSlices::open(folder.path(), WIDTH, FEATURES + 1, optional).unwrap_err();
        assert!(told.to_string().ends_with(WEIGHTS_FILE), "{told}");
        // A file that is there was written by somebody else.
        assert!(WeightSlices::create(folder.path(), WIDTH, FEATURES, optional).is_err());
    }

    #[test]
    fn weights_that_do_not_fit_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = WeightSlices::create(folder.path(), WIDTH, FEATURES, Optional::default()).unwrap();
        let mut wrong = weights(Optional::default());
        wrong.b_enc = Array1::zeros(3);
        assert!(matches!(file.write(0, &wrong), Err(Error::Misfit { .. })));
        wrong.w_enc = Array2::zeros((WIDTH, 3));
        assert!(matches!(file.write(0, &wrong), Err(Error::Misfit { array: "W_dec", .. })));
    }
}
