//! Files that `torch.save` wrote of a state dict: a zip archive, not compressed, of a pickle and a file of numbers for each storage.

mod pickle;
mod write;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use ndarray::{ArrayView, IxDyn, ShapeBuilder};
use zip::{CompressionMethod, ZipArchive};

pub(super) use write::{Content, write};

use crate::error::TorchError;
use pickle::Tensor;

/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";
/// The first bytes of a pickle; torch before version 1.6 wrote several of them.
const PICKLE: u8 = 0x80;

/// Whether a file that begins so is one of torch, of any version.
pub(super) fn begins_like_torch(head: &[u8]) -> bool {
    head.starts_with(ZIP) || head.first() == Some(&PICKLE)
}

/// The tensors of a file, which is in memory.
#[derive(Debug)]
pub(super) struct StateDict<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    /// What all names in the archive begin with.
    folder: String,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> StateDict<'a> {
    /// Reads which tensors there are.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<StateDict<'a>, TorchError> {
        if bytes.first() == Some(&PICKLE) {
            return Err(TorchError::Legacy);
        }
        let mut archive = ZipArchive::new(Cursor::new(bytes))?;
        let pickle = {
            let mut names = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned()));
            names.find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        };
        let pickle = pickle.ok_or(TorchError::MissingEntry { name: "data.pkl".into() })?;
        let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let order = format!("{folder}byteorder");
        if archive.index_for_name(&order).is_some() && entry(&mut archive, &order)? != b"little" {
            return Err(TorchError::ByteOrder);
        }
        let tensors = pickle::tensors(&entry(&mut archive, &pickle)?)?;
        Ok(StateDict { archive, folder, tensors })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &*tensor.shape)
    }

    /// The numbers of the tensor `name`, row-major, rounded to float32.
    pub(super) fn numbers(&mut self, name: &str) -> Result<Vec<f32>, TorchError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(TorchError::MissingEntry { name: name.to_owned() });
        };
        let stored = entry(&mut self.archive, &format!("{}data/{}", self.folder, tensor.storage.key))?;
        let stored = tensor.storage.element.widen(&stored);
        let outside = || TorchError::OutsideStorage {
            tensor: name.to_owned(),
            shape: tensor.shape.clone(),
            stored: stored.len(),
        };
        let count = tensor.shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        // A tensor of torch may repeat its numbers without end, by a stride of 0; weights do not.
        count.filter(|count| *count <= stored.len()).ok_or_else(outside)?;
        let from = stored.get(tensor.offset..).ok_or_else(outside)?;
        if tensor.strides.len() != tensor.shape.len() {
            return Err(outside());
        }
        let layout = IxDyn(&tensor.shape).strides(IxDyn(&tensor.strides));
        let view = ArrayView::from_shape(layout, from).map_err(|_| outside())?;
        Ok(view.iter().copied().collect())
    }
}

/// The file `name` of the archive. Since it is not compressed, it is no longer than the archive.
fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<Vec<u8>, TorchError> {
    let Some(index) = archive.index_for_name(name) else {
        return Err(TorchError::MissingEntry { name: name.to_owned() });
    };
    let mut file = archive.by_index(index)?;
    if file.compression() != CompressionMethod::Stored {
        return Err(TorchError::Compressed { name: name.to_owned() });
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(|source| TorchError::Entry { name: name.to_owned(), source })?;
    Ok(content)
}
