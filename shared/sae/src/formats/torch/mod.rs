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
    if archive.by_index_raw(index)?.compression() != CompressionMethod::Stored {
        return Err(TorchError::Compressed { name: name.to_owned() });
    }
    let mut file = archive.by_index(index)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(|source| TorchError::Entry { name: name.to_owned(), source })?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ndarray::array;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// An archive of these files.
    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, content) in files {
            zip.start_file(format!("ae/{name}"), options).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// `{"w": tensor}`; `tuples` are shape and strides, in pickle's instructions.
    fn pickle(key: &str, offset: u8, tuples: &[u8]) -> Vec<u8> {
        let mut pickle = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        pickle.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n");
        pickle.extend([b"X", &(key.len() as u32).to_le_bytes()[..], key.as_bytes()].concat());
        pickle.extend(b"X\x03\x00\x00\x00cpuK\x06tQ");
        pickle.extend([b'K', offset]);
        pickle.extend(tuples);
        pickle.extend(b"\x89NtRs.");
        pickle
    }

    const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

    /// The tensor `w` of such a pickle over six numbers.
    fn read(pickle: &[u8]) -> Result<Vec<f32>, String> {
        let numbers: Vec<u8> = SIX.iter().flat_map(|number| number.to_le_bytes()).collect();
        let bytes = archive(&[("data.pkl", pickle), ("data/0", &numbers)]);
        StateDict::parse(&bytes).and_then(|mut parsed| parsed.numbers("w")).map_err(|error| error.to_string())
    }

    #[test]
    fn strides_and_offsets_say_where_the_numbers_are() {
        assert_eq!(read(&pickle("0", 0, b"K\x02K\x03\x86K\x03K\x01\x86")).unwrap(), SIX);
        assert_eq!(
            read(&pickle("0", 0, b"K\x03K\x02\x86K\x01K\x03\x86")).unwrap(),
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
        assert_eq!(read(&pickle("0", 4, b"K\x02\x85K\x01\x85")).unwrap(), [4.0, 5.0]);
        assert_eq!(read(&pickle("0", 5, b"))")).unwrap(), [5.0]);
        assert_eq!(read(&pickle("0", 6, b"K\x00\x85K\x01\x85")).unwrap(), [0.0; 0]);
    }

    #[test]
    fn a_tensor_beyond_its_storage_is_refused() {
        let cases: [(u8, &[u8]); 6] = [
            (0, b"K\x07\x85K\x01\x85"),
            (5, b"K\x02\x85K\x01\x85"),
            (7, b"))"),
            (0, b"K\x02\x85K\x06\x85"),
            (0, b"K\x02\x85)"),
            // A million million numbers that are all the first one.
            (0, b"J\x40\x42\x0f\x00J\x40\x42\x0f\x00\x86K\x00K\x00\x86"),
        ];
        for (offset, tuples) in cases {
            let told = read(&pickle("0", offset, tuples)).unwrap_err();
            assert!(told.contains("does not fit in the 6 numbers"), "{told}");
        }
        let huge = [&b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"[..], b"K\x03\x86K\x01K\x01\x86"].concat();
        assert!(read(&pickle("0", 0, &huge)).unwrap_err().contains("does not fit"));
    }

    #[test]
    fn a_storage_is_looked_for_in_the_archive_alone() {
        let told = read(&pickle("../../../../../etc/passwd", 0, b"))")).unwrap_err();
        assert!(told.contains("the archive has no `ae/data/../../"), "{told}");
        assert!(read(&pickle("/etc/passwd", 0, b"))")).unwrap_err().contains("has no"));
    }

    #[test]
    fn compressed_and_big_endian_files_are_refused() {
        let sound = pickle("0", 0, b"))");
        let mut bytes = archive(&[("data.pkl", &sound), ("data/0", &[0; 24])]);
        let headers: Vec<usize> =
            (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"PK\x01\x02")).collect();
        // The method, of deflate: what unpacks to any length.
        headers.iter().for_each(|at| bytes[at + 10] = 8);
        let told = StateDict::parse(&bytes).unwrap_err().to_string();
        assert!(told.contains("compressed"), "{told}");
        let bytes = archive(&[("data.pkl", &sound), ("byteorder", b"big")]);
        assert!(matches!(StateDict::parse(&bytes), Err(TorchError::ByteOrder)));
    }

    #[test]
    fn what_is_written_is_read() {
        let tensor = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let bytes = write(&[
            ("w", Content::Floats(tensor.t().into_dyn())),
            ("k", Content::Integer(-7)),
            ("sizes", Content::Longs(vec![1, 2])),
        ]);
        let mut parsed = StateDict::parse(&bytes).unwrap();
        assert_eq!(parsed.names().collect::<Vec<_>>(), ["k", "sizes", "w"]);
        assert_eq!((parsed.shape("w").unwrap(), parsed.shape("k").unwrap()), (&[3, 2][..], &[][..]));
        assert_eq!(parsed.numbers("w").unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(
            (parsed.numbers("k").unwrap(), parsed.numbers("sizes").unwrap()),
            (vec![-7.0], vec![1.0, 2.0])
        );
    }
}
