//! A model folder: its configuration, and where each tensor's bytes lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use terminal::foreign;

use crate::{Error, ModelConfig, hash, inside};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The longest header that the safetensors format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// A Hugging Face model folder, opened: configuration read, weight files checked, nothing loaded.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    /// Weight files in name order, links resolved.
    files: Vec<PathBuf>,
    tensors: HashMap<String, Tensor>,
}

/// Where a tensor's bytes lie, and what they are.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// The weight file, links resolved.
    pub(crate) file: PathBuf,
    /// From the beginning of the file, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl Checkpoint {
    /// The weights of the model in `folder`, of which `config.json` says `config`.
    ///
    /// # Errors
    /// When a file is missing, or one is truncated or damaged (its header is checked against its length).
    pub(crate) fn with_config(folder: &Path, config: ModelConfig) -> Result<Checkpoint, Error> {
        let mut files = Vec::new();
        let mut tensors = HashMap::new();
        for name in weight_files(folder)? {
            // Links are resolved: the hub's cache holds links into a folder of blobs, and ONNX Runtime refuses external
            // data that a link leads out of its folder.
            let file = match name.as_str() {
                // The name is ours and not a file's: its owner may link it to wherever the weights are.
                SINGLE => folder.join(SINGLE).canonicalize().map_err(Error::io(folder.join(SINGLE)))?,
                _ => inside::resolve(folder, &name).map_err(|problem| Error::NotAModel {
                    path: folder.into(),
                    problem: format!("{INDEX} names `{}`: {problem}", foreign(&name)),
                })?,
            };
            read_header(&file, &mut tensors)?;
            files.push(file);
        }
        Ok(Checkpoint { folder: folder.to_path_buf(), config, files, tensors })
    }

    /// The folder the checkpoint was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sizes and kinds of the model's parts.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// SHA-256 of the weights, in hexadecimal: of `model.safetensors`, or, for a checkpoint in
    /// several files, of the files' own hashes one after another. Reads every byte.
    ///
    /// # Errors
    /// When a weight file cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        hash::files(&self.files)
    }

    /// The tensor called `name`, which must have this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor, Error> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::MissingTensor { path: self.folder.clone(), tensor: name.to_string() })?;
        if tensor.shape != shape {
            return Err(Error::WrongShape {
                path: tensor.file.clone(),
                tensor: name.to_string(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::WrongType {
                path: tensor.file.clone(),
                tensor: name.to_string(),
                found: format!("{:?}", tensor.dtype),
            });
        }
        Ok(tensor)
    }

    /// The numbers of the tensor called `name`, which must have this shape, row-major as float32.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`], and those of the disk.
    pub(crate) fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name, shape)?;
        let mut bytes = vec![0; tensor.length as usize];
        let read = File::open(&tensor.file).and_then(|file| file.read_exact_at(&mut bytes, tensor.offset));
        read.map_err(Error::io(&tensor.file))?;
        Ok(match tensor.dtype {
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        })
    }

    /// Whether there is a tensor called `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The deepest folder that holds every weight file. External data in an ONNX graph is named
    /// relative to it.
    pub fn weights_folder(&self) -> &Path {
        common_folder(&self.files)
    }
}

/// The deepest folder that holds all of `files`, which are absolute and at least one.
pub(crate) fn common_folder(files: &[PathBuf]) -> &Path {
    let mut common = files[0].parent().unwrap_or(Path::new("/"));
    while !files.iter().all(|file| file.starts_with(common)) {
        common = common.parent().unwrap_or(Path::new("/"));
    }
    common
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

/// Names of the weight files in `folder`, sorted.
fn weight_files(folder: &Path) -> Result<Vec<String>, Error> {
    if folder.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_string()]);
    }
    let path = folder.join(INDEX);
    if !path.exists() {
        let problem = format!("it has neither {SINGLE} nor {INDEX}");
        return Err(Error::NotAModel { path: folder.to_path_buf(), problem });
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let index: ShardIndex = serde_json::from_str(&text)
        .map_err(|e| Error::Safetensors { path: path.clone(), problem: e.to_string() })?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(Error::Safetensors { path, problem: "the index names no weight file".to_string() });
    }
    Ok(names)
}

/// Reads the header of a safetensors file and checks it against the file's length.
fn read_header(path: &Path, tensors: &mut HashMap<String, Tensor>) -> Result<(), Error> {
    let damaged = |problem: String| Error::Safetensors { path: path.to_path_buf(), problem };
    let mut file = File::open(path).map_err(Error::io(path))?;
    let file_length = file.metadata().map_err(Error::io(path))?.len();

    // Layout: u64 length of the header, the header in JSON, the tensors' bytes.
    let mut length = [0; 8];
    if file_length < 8 {
        return Err(damaged(format!("the file is {file_length} bytes long, too short for a header")));
    }
    file.read_exact(&mut length).map_err(Error::io(path))?;
    let header_length = u64::from_le_bytes(length);
    if header_length > (file_length - 8).min(MAX_HEADER) {
        return Err(damaged(format!(
            "the header should be {header_length} bytes long in a file of {file_length} (truncated or damaged)"
        )));
    }
    let header_length = usize::try_from(header_length).map_err(|e| damaged(e.to_string()))?;
    let mut header = vec![0; header_length];
    file.read_exact(&mut header).map_err(Error::io(path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("the header is damaged: {e}")))?;

    let start = 8 + header_length as u64;
    let data_length = metadata.data_len() as u64;
    if file_length - start != data_length {
        return Err(damaged(format!(
            "the header describes {data_length} bytes of tensors, but the file holds {} (truncated or damaged)",
            file_length - start
        )));
    }
    for (name, info) in metadata.tensors() {
        let (begin, end) = info.data_offsets;
        let tensor = Tensor {
            file: path.to_path_buf(),
            offset: start + begin as u64,
            length: (end - begin) as u64,
            dtype: info.dtype,
            shape: info.shape.clone(),
        };
        tensors.insert(name, tensor);
    }
    Ok(())
}
