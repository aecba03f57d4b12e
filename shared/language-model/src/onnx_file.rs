//! An ONNX file from elsewhere: what it contains, and the part that some of its tensors depend on.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::Message;

use terminal::foreign;

use crate::checkpoint::common_folder;
use crate::onnx::{
    EXTERNAL, NodeHeader, NodeProto, OperatorSetIdProto, SparseTensorHeader, StringStringEntryProto,
    TensorHeader, ValueInfoProto,
};
use crate::wire::{self, Field};
use crate::{Error, hash, inside};

/// Field numbers of `onnx.proto`, by message.
mod number {
    pub(super) mod model {
        pub(crate) const GRAPH: u32 = 7;
        pub(crate) const OPSET_IMPORT: u32 = 8;
        pub(crate) const TRAINING_INFO: u32 = 20;
    }
    pub(super) mod graph {
        pub(crate) const NODE: u32 = 1;
        pub(crate) const INITIALIZER: u32 = 5;
        pub(crate) const INPUT: u32 = 11;
        pub(crate) const OUTPUT: u32 = 12;
        pub(crate) const VALUE_INFO: u32 = 13;
        pub(crate) const QUANTIZATION_ANNOTATION: u32 = 14;
        pub(crate) const SPARSE_INITIALIZER: u32 = 15;
    }
    pub(super) mod node {
        pub(crate) const ATTRIBUTE: u32 = 5;
    }
    pub(super) mod attribute {
        pub(crate) const GRAPH: u32 = 6;
        pub(crate) const GRAPHS: u32 = 11;
    }
    pub(super) mod tensor {
        pub(crate) const EXTERNAL_DATA: u32 = 13;
    }
}

/// An opened ONNX file: its graph is read and its external data located; nothing is loaded.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    path: PathBuf,
    /// The folder that the file is in, links resolved.
    folder: PathBuf,
    bytes: Vec<u8>,
    /// Where `ModelProto.graph` lies in `bytes`.
    graph: Range<usize>,
    nodes: Vec<Node>,
    initializers: HashMap<String, Initializer>,
    inputs: Vec<ValueInfoProto>,
    /// Version of the default operator set.
    opset: i64,
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    op_type: String,
    /// What it reads, its subgraphs' outer values included.
    reads: Vec<String>,
    makes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Initializer {
    /// The whole field.
    bytes: Range<usize>,
    /// Where the tensor lies in it.
    tensor: Range<usize>,
    dims: Vec<i64>,
    external: Option<External>,
}

/// Where an external tensor's bytes are.
#[derive(Clone, Debug)]
struct External {
    /// The file, links resolved.
    file: PathBuf,
    /// The file as it is written in the graph.
    location: String,
    entries: Vec<StringStringEntryProto>,
}

/// A part of an [`OnnxFile`], without outputs.
pub(crate) struct Part {
    /// Everything of the model but the graph, and the graph.
    model: Vec<u8>,
    graph: Vec<u8>,
    /// The folder that the locations of external data are relative to.
    pub(crate) weights_folder: PathBuf,
    /// The inputs that the part needs.
    pub(crate) inputs: Vec<ValueInfoProto>,
}

impl Part {
    /// The serialized model with these nodes behind the others and these outputs.
    pub(crate) fn model(&self, nodes: &[NodeProto], outputs: &[ValueInfoProto]) -> Vec<u8> {
        let mut graph = self.graph.clone();
        for node in nodes {
            wire::put(&mut graph, number::graph::NODE, &node.encode_to_vec());
        }
        for output in outputs {
            wire::put(&mut graph, number::graph::OUTPUT, &output.encode_to_vec());
        }
        let mut model = self.model.clone();
        wire::put(&mut model, number::model::GRAPH, &graph);
        model
    }
}

impl OnnxFile {
    /// Opens an ONNX file, with its external data next to it.
    ///
    /// # Errors
    /// When the file cannot be read, is no ONNX model, or its external data is missing or too short.
    pub fn open(path: &Path) -> Result<OnnxFile, Error> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let damaged = |problem: String| Error::OnnxFile {
            path: path.to_path_buf(),
            problem: format!("it is not an ONNX model, or damaged: {problem}"),
        };
        let (mut graph, mut opset) = (None, None);
        for field in wire::fields(&bytes).map_err(damaged)? {
            match field.number {
                number::model::GRAPH => graph = Some(range(&bytes, field.contents)),
                number::model::OPSET_IMPORT => {
                    let import: OperatorSetIdProto = decode(field.contents).map_err(damaged)?;
                    if matches!(import.domain.as_str(), "" | "ai.onnx") {
                        opset = Some(import.version);
                    }
                }
                _ => {}
            }
        }
        let graph = graph.ok_or_else(|| damaged("it has no graph".to_string()))?;
        let opset =
            opset.ok_or_else(|| damaged("it imports no version of ONNX's own operators".to_string()))?;
        let resolved = path.canonicalize().map_err(Error::io(path))?;
        let mut file = OnnxFile {
            path: path.to_path_buf(),
            folder: resolved.parent().unwrap_or(Path::new("/")).to_path_buf(),
            bytes: Vec::new(),
            graph: graph.clone(),
            nodes: Vec::new(),
            initializers: HashMap::new(),
            inputs: Vec::new(),
            opset,
        };
        for field in wire::fields(&bytes[graph]).map_err(damaged)? {
            file.read_graph_field(&bytes, field).map_err(damaged)?;
        }
        // Before IR version 4 weights were listed among the inputs, too.
        let OnnxFile { inputs, initializers, .. } = &mut file;
        inputs.retain(|input| !initializers.contains_key(&input.name));
        file.bytes = bytes;
        file.find_external_data()?;
        Ok(file)
    }

    fn read_graph_field(&mut self, bytes: &[u8], field: Field<'_>) -> Result<(), String> {
        let whole = range(bytes, field.whole);
        match field.number {
            number::graph::NODE => {
                let node: NodeHeader = decode(field.contents)?;
                let mut reads = node.input;
                add_captured(field.contents, &mut reads, 0)?;
                reads.retain(|name| !name.is_empty());
                let makes = node.output.into_iter().filter(|name| !name.is_empty()).collect();
                let node = Node { name: node.name, op_type: node.op_type, reads, makes };
                self.nodes.push(node);
            }
            number::graph::INITIALIZER | number::graph::SPARSE_INITIALIZER => {
                let header: TensorHeader = match field.number {
                    number::graph::INITIALIZER => decode(field.contents)?,
                    _ => decode::<SparseTensorHeader>(field.contents)?.values.unwrap_or_default(),
                };
                let external = (header.data_location == EXTERNAL).then(|| External {
                    file: PathBuf::new(),
                    location: entry(&header.external_data, "location").unwrap_or_default().to_string(),
                    entries: header.external_data,
                });
                let tensor = range(bytes, field.contents);
                let initializer = Initializer { bytes: whole, tensor, dims: header.dims, external };
                self.initializers.insert(header.name, initializer);
            }
            number::graph::INPUT => self.inputs.push(decode(field.contents)?),
            _ => {}
        }
        Ok(())
    }

    /// Resolves the files of external data and checks that they are long enough.
    fn find_external_data(&mut self) -> Result<(), Error> {
        let folder = self.path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut found: HashMap<String, (PathBuf, u64)> = HashMap::new();
        for (name, initializer) in &mut self.initializers {
            let Some(external) = &mut initializer.external else { continue };
            let problem = |problem: String| Error::OnnxFile {
                path: self.path.clone(),
                problem: format!(
                    "tensor `{}` is in `{}`: {problem}",
                    foreign(name),
                    foreign(&external.location)
                ),
            };
            if !found.contains_key(&external.location) {
                let resolved = inside::resolve(&folder, &external.location).map_err(problem)?;
                let length = resolved.metadata().map_err(Error::io(&resolved))?.len();
                found.insert(external.location.clone(), (resolved, length));
            }
            let (file, length) = &found[&external.location];
            let number = |key: &str| entry(&external.entries, key).and_then(|text| text.parse::<u64>().ok());
            let end = number("offset").unwrap_or(0).saturating_add(number("length").unwrap_or(0));
            if end > *length {
                return Err(problem(format!(
                    "it ends at byte {end} of a file of {length} bytes (truncated?)"
                )));
            }
            external.file = file.clone();
        }
        Ok(())
    }

    /// The file, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 in hexadecimal of the file, or, if it has external data, of the hashes of all its files one
    /// after another. Reads every byte.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        let mut files = vec![self.path.clone()];
        files.extend(self.external_files(|_| true));
        hash::files(&files)
    }

    /// Version of ONNX's own operators that the graph uses.
    pub(crate) fn opset(&self) -> i64 {
        self.opset
    }

    /// Rows of the table that `ids` is looked up in, if that table is a weight.
    pub(crate) fn vocabulary(&self, ids: &str) -> Option<usize> {
        let lookup = |node: &&Node| node.op_type == "Gather" && node.reads.len() == 2 && node.reads[1] == ids;
        let table = &self.nodes.iter().find(lookup)?.reads[0];
        usize::try_from(*self.initializers.get(table)?.dims.first()?).ok()
    }

    /// Every part of the graph that `tensors` depend on, and nothing else.
    ///
    /// # Errors
    /// When one of them is not in the graph, or is an input or a weight.
    pub(crate) fn ancestors(&self, tensors: &[&str]) -> Result<Part, Error> {
        let makers: HashMap<&str, usize> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.makes.iter().map(move |name| (name.as_str(), index)))
            .collect();
        for &tensor in tensors {
            if !makers.contains_key(tensor) {
                return Err(self.not_computed(tensor));
            }
        }
        let mut needed: HashSet<&str> = HashSet::new();
        let mut kept = vec![false; self.nodes.len()];
        let mut open: Vec<&str> = tensors.to_vec();
        while let Some(name) = open.pop() {
            if !needed.insert(name) {
                continue;
            }
            if let Some(&index) = makers.get(name)
                && !std::mem::replace(&mut kept[index], true)
            {
                open.extend(self.nodes[index].reads.iter().map(String::as_str));
            }
        }
        // A kept node's other outputs stay what they are.
        let made: HashSet<&str> = (self.nodes.iter().zip(&kept))
            .filter(|(_, kept)| **kept)
            .flat_map(|(node, _)| node.makes.iter().map(String::as_str))
            .collect();
        self.assemble(&needed, &made, &kept)
    }

    /// The part with these values and nodes. `made` are the values that the nodes make.
    fn assemble(&self, needed: &HashSet<&str>, made: &HashSet<&str>, kept: &[bool]) -> Result<Part, Error> {
        let read = |bytes| wire::fields(bytes).map_err(self.problem());
        let name_of = |bytes| decode::<ValueInfoProto>(bytes).map(|info| info.name).map_err(self.problem());
        let files = self.external_files(|name| needed.contains(name));
        let weights_folder = match files.as_slice() {
            [] => &self.folder,
            files => common_folder(files),
        };

        let mut graph = Vec::new();
        let mut nodes = self.nodes.iter().zip(kept);
        for field in read(&self.bytes[self.graph.clone()])? {
            let keep = match field.number {
                number::graph::NODE => nodes.next().is_some_and(|(_, kept)| *kept),
                number::graph::INITIALIZER | number::graph::SPARSE_INITIALIZER => false,
                number::graph::INPUT => needed.contains(name_of(field.contents)?.as_str()),
                number::graph::OUTPUT | number::graph::QUANTIZATION_ANNOTATION => false,
                number::graph::VALUE_INFO => {
                    let name = name_of(field.contents)?;
                    needed.contains(name.as_str()) || made.contains(name.as_str())
                }
                _ => true,
            };
            if keep {
                graph.extend_from_slice(field.whole);
            }
        }
        let mut initializers: Vec<_> =
            self.initializers.iter().filter(|(name, _)| needed.contains(name.as_str())).collect();
        initializers.sort_by_key(|(_, initializer)| initializer.bytes.start);
        for (_, initializer) in initializers {
            self.put_initializer(&mut graph, initializer, weights_folder)?;
        }

        let mut model = Vec::new();
        for field in read(&self.bytes)? {
            // Training information names parts of the graph that are gone.
            if !matches!(field.number, number::model::GRAPH | number::model::TRAINING_INFO) {
                model.extend_from_slice(field.whole);
            }
        }
        let inputs = self.inputs.iter().filter(|input| needed.contains(input.name.as_str()));
        Ok(Part {
            model,
            graph,
            weights_folder: weights_folder.to_path_buf(),
            inputs: inputs.cloned().collect(),
        })
    }

    /// Copies an initializer; one whose bytes are elsewhere gets their location relative to `folder`.
    fn put_initializer(
        &self,
        graph: &mut Vec<u8>,
        initializer: &Initializer,
        folder: &Path,
    ) -> Result<(), Error> {
        let whole = &self.bytes[initializer.bytes.clone()];
        let Some(external) = &initializer.external else {
            graph.extend_from_slice(whole);
            return Ok(());
        };
        let location = external.file.strip_prefix(folder).ok().and_then(Path::to_str);
        let location = location.ok_or_else(|| {
            self.problem()("ONNX Runtime needs the paths of external data in UTF-8".to_string())
        })?;
        let mut tensor = Vec::new();
        for field in wire::fields(&self.bytes[initializer.tensor.clone()]).map_err(self.problem())? {
            if field.number != number::tensor::EXTERNAL_DATA {
                tensor.extend_from_slice(field.whole);
            }
        }
        for entry in &external.entries {
            let value = if entry.key == "location" { location } else { &entry.value };
            let entry = StringStringEntryProto { key: entry.key.clone(), value: value.to_string() };
            wire::put(&mut tensor, number::tensor::EXTERNAL_DATA, &entry.encode_to_vec());
        }
        wire::put(graph, number::graph::INITIALIZER, &tensor);
        Ok(())
    }

    /// For `map_err` on what is wrong with the file.
    fn problem(&self) -> impl Fn(String) -> Error + Copy + '_ {
        |problem| Error::OnnxFile { path: self.path.clone(), problem }
    }

    /// Files of the external data of the initializers that `wanted` accepts, each once, sorted.
    fn external_files(&self, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let external = self.initializers.iter().filter(|(name, _)| wanted(name));
        let mut files: Vec<PathBuf> =
            external.filter_map(|(_, tensor)| Some(tensor.external.as_ref()?.file.clone())).collect();
        files.sort();
        files.dedup();
        files
    }

    /// Why `tensor` cannot be an output, and similar names.
    fn not_computed(&self, tensor: &str) -> Error {
        let path = self.path.clone();
        if self.initializers.contains_key(tensor) || self.inputs.iter().any(|input| input.name == tensor) {
            let problem =
                format!("tensor `{tensor}` is an input or a weight of the graph, not something it computes");
            return Error::OnnxFile { path, problem };
        }
        // Viewers show the names of nodes, too.
        let mut near: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| node.name == tensor)
            .flat_map(|node| node.makes.iter().cloned())
            .collect();
        let mut names: Vec<&str> =
            self.nodes.iter().flat_map(|node| node.makes.iter().map(String::as_str)).collect();
        let wanted = tensor.to_lowercase();
        let distance = |name: &str| {
            let name = name.to_lowercase();
            let inside = name.contains(&wanted) || wanted.contains(&name);
            (!inside, strsim::damerau_levenshtein(&name, &wanted))
        };
        names.sort_by_cached_key(|name| distance(name));
        near.extend(names.into_iter().map(str::to_string));
        near.truncate(5);
        Error::UnknownTensor { path, tensor: tensor.to_string(), near }
    }
}

/// Graphs that may lie within one another: bodies of loops and branches.
const MAX_DEPTH: usize = 64;

/// Adds the names that the subgraphs of `node` use, those from outside them among them. Names are unique
/// across a graph and its subgraphs, so a subgraph's own names do no harm.
fn add_captured(node: &[u8], names: &mut Vec<String>, depth: usize) -> Result<(), String> {
    if depth == MAX_DEPTH {
        return Err(format!("it has graphs within graphs, more than {MAX_DEPTH} deep"));
    }
    for attribute in wire::fields(node)? {
        if attribute.number != number::node::ATTRIBUTE {
            continue;
        }
        for field in wire::fields(attribute.contents)? {
            if matches!(field.number, number::attribute::GRAPH | number::attribute::GRAPHS) {
                add_used(field.contents, names, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn add_used(graph: &[u8], names: &mut Vec<String>, depth: usize) -> Result<(), String> {
    for field in wire::fields(graph)? {
        match field.number {
            number::graph::NODE => {
                names.extend(decode::<NodeHeader>(field.contents)?.input);
                add_captured(field.contents, names, depth)?;
            }
            number::graph::OUTPUT => names.push(decode::<ValueInfoProto>(field.contents)?.name),
            _ => {}
        }
    }
    Ok(())
}

fn entry<'e>(entries: &'e [StringStringEntryProto], key: &str) -> Option<&'e str> {
    entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|error| error.to_string())
}

/// Where `part`, a slice of `whole`, lies in it.
fn range(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
#[path = "onnx_file_tests.rs"]
mod tests;
