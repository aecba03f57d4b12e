//! Small ONNX files, parsed and run.

use std::fs;

use ndarray::{arr3, aview2};

use crate::graph::int;
use crate::onnx::{
    AttributeProto, DataType, Dimension, GraphProto, ModelProto, TensorProto, TensorShapeProto, TensorType,
    TypeProto,
};
use crate::{PrefixModel, Runtime, SessionOptions};

use super::*;

const VOCABULARY: usize = 7;
const WIDTH: usize = 3;

fn node(op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|input| input.to_string()).collect(),
        output: vec![output.to_string()],
        name: format!("node of {output}"),
        op_type: op_type.to_string(),
        attribute,
        domain: String::new(),
    }
}

fn value(name: &str, element: DataType, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = dims.iter().enumerate().map(|(axis, size)| Dimension {
        dim_value: *size,
        dim_param: size.is_none().then(|| format!("axis{axis}")),
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor_type = Some(TensorType { elem_type: element as i32, shape });
    ValueInfoProto { name: name.to_string(), r#type: Some(TypeProto { tensor_type }) }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        name: name.to_string(),
        raw_data: Some(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        external_data: Vec::new(),
        data_location: 0,
    }
}

fn table() -> Vec<f32> {
    (0..VOCABULARY * WIDTH).map(|i| i as f32).collect()
}

/// ids → table → embedded [c, t, 3] → + 100 → `later`, which also reads the weight `bias`.
fn model() -> ModelProto {
    let int64 = DataType::Int64;
    ModelProto {
        ir_version: 10,
        producer_name: "a test".to_string(),
        graph: Some(GraphProto {
            name: "g".to_string(),
            node: vec![
                node("Gather", &["table", "input_ids"], "embedded", vec![]),
                node("Add", &["embedded", "bias"], "later", vec![]),
            ],
            initializer: vec![
                tensor("table", &[VOCABULARY as i64, WIDTH as i64], &table()),
                tensor("bias", &[1], &[100.0]),
            ],
            input: vec![value("input_ids", int64, &[None, None])],
            output: vec![value("later", DataType::Float, &[None, None, Some(3)])],
        }),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
    }
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

struct Saved {
    folder: tempfile::TempDir,
}

impl Saved {
    fn new(bytes: &[u8]) -> Saved {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.onnx"), bytes).unwrap();
        Saved { folder }
    }

    fn open(&self) -> Result<OnnxFile, Error> {
        OnnxFile::open(&self.folder.path().join("model.onnx"))
    }
}

fn save(model: &ModelProto) -> Saved {
    Saved::new(&model.encode_to_vec())
}

fn load(file: &OnnxFile, tensors: &[&str]) -> Result<PrefixModel, Error> {
    let options = SessionOptions { device: crate::Device::Cpu, threads: 1, ..SessionOptions::default() };
    PrefixModel::from_onnx(&Runtime::load(None).unwrap(), file, tensors, &options)
}

/// What `tensor` is for the ids 4, 2.
fn rows(file: &OnnxFile, tensor: &str) -> Vec<f32> {
    load(file, &[tensor]).unwrap().run(aview2(&[[4, 2]])).unwrap().rows(0).iter().copied().collect()
}

fn assert_says(error: impl std::fmt::Display, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

const EMBEDDED: [f32; 6] = [12.0, 13.0, 14.0, 6.0, 7.0, 8.0];

#[test]
fn a_tensor_in_the_middle_is_returned_and_later_nodes_dropped() {
    let file = save(&model()).open().unwrap();
    assert_eq!(rows(&file, "embedded"), EMBEDDED);
    assert_eq!(rows(&file, "later"), EMBEDDED.map(|x| x + 100.0));
    let part = file.ancestors(&["embedded"]).unwrap().model(&[], &[]);
    let pruned = ModelProto::decode(&part[..]).unwrap();
    let graph = pruned.graph.unwrap();
    assert_eq!(graph.node.len(), 1);
    assert_eq!(graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["table"]);
    assert!(graph.output.is_empty());
    assert_eq!(pruned.producer_name, "a test");
}

#[test]
fn several_tensors_come_in_the_order_asked_for() {
    let file = save(&model()).open().unwrap();
    let model = load(&file, &["later", "embedded", "later"]).unwrap();
    assert_eq!(model.names(), ["later", "embedded", "later"]);
    assert_eq!((model.width(0), model.vocabulary(), model.max_length()), (WIDTH, Some(VOCABULARY), None));
    let found = model.run(aview2(&[[4], [2]])).unwrap();
    assert_eq!(found.rows(1), arr3(&[[[12.0, 13.0, 14.0]], [[6.0, 7.0, 8.0]]]));
    assert_eq!(found.rows(0), found.rows(2));
    assert_says(model.run(aview2(&[[4], [7]])).unwrap_err(), &["token id 7", "vocabulary of 7"]);
}

#[test]
fn centring_takes_the_mean_in_old_and_new_operator_versions() {
    let runtime = Runtime::load(None).unwrap();
    for version in [13, 17, 18, 22] {
        let mut model = model();
        model.opset_import[0].version = version;
        let options = SessionOptions { center: true, threads: 1, ..SessionOptions::default() };
        let file = save(&model).open().unwrap();
        let model = PrefixModel::from_onnx(&runtime, &file, &["embedded"], &options).unwrap();
        let expected = arr3(&[[[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]]);
        assert_eq!(model.run(aview2(&[[4, 2]])).unwrap().rows(0), expected, "opset {version}");
    }
}

#[test]
fn unknown_fields_are_kept_with_their_owner() {
    let mut bytes = Vec::new();
    let mut plain = model();
    let graph_proto = plain.graph.take().unwrap();
    bytes.extend(plain.encode_to_vec());
    wire::put(&mut bytes, 14, b"metadata of the model");
    wire::put(&mut bytes, 20, b""); // training information
    let mut graph = Vec::new();
    for (index, node) in graph_proto.node.iter().enumerate() {
        let mut node = node.encode_to_vec();
        wire::put(&mut node, 6, format!("words about node {index}").as_bytes());
        wire::put(&mut graph, number::graph::NODE, &node);
    }
    for initializer in &graph_proto.initializer {
        let mut tensor = initializer.encode_to_vec();
        wire::put(&mut tensor, 12, format!("words about {}", initializer.name).as_bytes());
        wire::put(&mut graph, number::graph::INITIALIZER, &tensor);
    }
    wire::put(&mut graph, number::graph::INPUT, &graph_proto.input[0].encode_to_vec());
    let info = value("later", DataType::Float, &[None, None, Some(3)]).encode_to_vec();
    wire::put(&mut graph, number::graph::VALUE_INFO, &info);
    wire::put(&mut bytes, number::model::GRAPH, &graph);

    let saved = Saved::new(&bytes);
    let part = saved.open().unwrap().ancestors(&["embedded"]).unwrap().model(&[], &[]);
    let has = |text: &str| part.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("metadata of the model") && has("words about node 0") && has("words about table"));
    assert!(!has("words about node 1") && !has("words about bias") && !has("later"));
    assert!(wire::fields(&part).unwrap().iter().all(|field| field.number != number::model::TRAINING_INFO));
}

#[test]
fn what_a_subgraph_takes_from_outside_is_an_ancestor() {
    // If(yes) then Identity(shifted) else Identity(embedded): both come from outside the branches.
    let mut model = model();
    let branch = |outer: &str, name: &str| GraphProto {
        name: name.to_string(),
        node: vec![node("Identity", &[outer], &format!("{name} result"), vec![])],
        output: vec![value(&format!("{name} result"), DataType::Float, &[None, None, Some(3)])],
        ..GraphProto::default()
    };
    let mut choice = node("If", &["yes"], "chosen", vec![]).encode_to_vec();
    for (name, graph) in
        [("then_branch", branch("shifted", "then")), ("else_branch", branch("embedded", "else"))]
    {
        let mut attribute = Vec::new();
        wire::put(&mut attribute, 1, name.as_bytes());
        wire::put(&mut attribute, number::attribute::GRAPH, &graph.encode_to_vec());
        attribute.extend([0xa0, 1, 5]); // field 20, type: GRAPH
        wire::put(&mut choice, number::node::ATTRIBUTE, &attribute);
    }
    let graph_proto = graph(&mut model);
    graph_proto.node.push(node("Sub", &["embedded", "bias"], "shifted", vec![]));
    graph_proto.initializer.push(TensorProto {
        data_type: DataType::Bool as i32,
        raw_data: Some(vec![1]),
        ..tensor("yes", &[], &[])
    });
    graph_proto.output.clear();
    let mut bytes = ModelProto { graph: None, ..model.clone() }.encode_to_vec();
    let mut graph_bytes = model.graph.unwrap().encode_to_vec();
    wire::put(&mut graph_bytes, number::graph::NODE, &choice);
    wire::put(&mut bytes, number::model::GRAPH, &graph_bytes);
    let file = Saved::new(&bytes).open().unwrap();
    assert_eq!(rows(&file, "chosen"), EMBEDDED.map(|x| x - 100.0));
}

#[test]
fn masks_positions_and_an_empty_cache_are_filled_in() {
    let mut model = model();
    let graph = graph(&mut model);
    let float = |input: &str, output: &str| node("Cast", &[input], output, vec![int("to", 1)]);
    graph.input.extend([
        value("attention_mask", DataType::Int64, &[None, None]),
        value("position_ids", DataType::Int32, &[None, None]),
        value("past_key_values.0.key", DataType::Float, &[None, Some(2), None, Some(5)]),
    ]);
    graph.initializer.push(TensorProto {
        data_type: DataType::Int64 as i32,
        raw_data: Some(2_i64.to_le_bytes().to_vec()),
        ..tensor("last", &[1], &[])
    });
    graph.node.extend([
        float("attention_mask", "mask"),
        float("position_ids", "position"),
        node("Add", &["mask", "position"], "both", vec![]),
        node("Unsqueeze", &["both", "last"], "column", vec![]),
        // The cache is empty: the sum over its elements is 0.
        node("ReduceSum", &["past_key_values.0.key"], "past", vec![int("keepdims", 0)]),
        node("Add", &["embedded", "column"], "placed", vec![]),
        node("Add", &["placed", "past"], "filled", vec![]),
    ]);
    let file = save(&model).open().unwrap();
    let model = load(&file, &["filled"]).unwrap();
    let found = model.run(aview2(&[[4, 2], [2, 4]])).unwrap();
    let expected = arr3(&[[[13.0, 14.0, 15.0], [8.0, 9.0, 10.0]], [[7.0, 8.0, 9.0], [14.0, 15.0, 16.0]]]);
    assert_eq!(found.rows(0), expected);
}

#[test]
fn an_unfillable_input_matters_only_where_it_is_needed() {
    let mut model = model();
    let graph = graph(&mut model);
    graph.input.push(value("pixel_values", DataType::Float, &[None, Some(8), Some(8)]));
    graph.node.push(node("ReduceSum", &["pixel_values"], "sum", vec![int("keepdims", 0)]));
    graph.node.push(node("Add", &["embedded", "sum"], "pictured", vec![]));
    let file = save(&model).open().unwrap();
    assert_eq!(rows(&file, "embedded"), EMBEDDED);
    let error = load(&file, &["pictured"]).unwrap_err();
    assert_says(error, &["model.onnx", "`pixel_values`", "f32 [?, 8, 8]", "attention_mask"]);
    assert_says(load(&file, &["sum"]).unwrap_err(), &["pixel_values"]);
}

#[test]
fn a_file_for_one_batch_size_says_so() {
    let mut model = model();
    graph(&mut model).input[0] = value("input_ids", DataType::Int64, &[Some(1), Some(2)]);
    graph(&mut model).output.clear();
    let file = save(&model).open().unwrap();
    let model = load(&file, &["embedded"]).unwrap();
    assert_eq!((model.fixed_contexts(), model.max_length()), (Some(1), Some(2)));
    assert!(model.run(aview2(&[[4, 2]])).unwrap().rows(0).iter().eq(&EMBEDDED));
    assert_says(model.run(aview2(&[[4, 2], [4, 2]])).unwrap_err(), &["1 contexts at a time only, not 2"]);
    assert_says(model.run(aview2(&[[4]])).unwrap_err(), &["2 tokens only, not of 1"]);
}

#[test]
fn a_tensor_that_is_not_there_is_refused_with_those_near_it() {
    let file = save(&model()).open().unwrap();
    assert_says(load(&file, &["embeded"]).unwrap_err(), &["no tensor `embeded`", "near it are embedded"]);
    // The names of nodes lead to what they make.
    assert_says(load(&file, &["node of later"]).unwrap_err(), &["near it are later"]);
    for name in ["table", "input_ids"] {
        assert_says(load(&file, &[name]).unwrap_err(), &[name, "an input or a weight"]);
    }
    assert!(matches!(load(&file, &[]), Err(Error::NoHooks)));
}

#[test]
fn a_tensor_of_another_shape_is_refused_with_its_shape() {
    let mut model = model();
    let transposed = AttributeProto {
        ints: vec![0, 2, 1],
        name: "perm".to_string(),
        r#type: 7,
        ..AttributeProto::default()
    };
    graph(&mut model).node.push(node("Transpose", &["embedded"], "turned", vec![transposed]));
    let file = save(&model).open().unwrap();
    assert_says(load(&file, &["turned"]).unwrap_err(), &["`turned`", "[3, 3, 2]", "3 contexts of 2"]);
}

/// The model with its table in `weights/table.bin`, from byte 8 on.
fn with_external_table() -> (ModelProto, Vec<u8>) {
    let mut model = model();
    let table = &mut graph(&mut model).initializer[0];
    let bytes = [vec![0xee; 8], table.raw_data.take().unwrap()].concat();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    table.data_location = EXTERNAL;
    table.external_data =
        vec![entry("location", "weights/table.bin"), entry("offset", "8"), entry("length", "84")];
    (model, bytes)
}

#[test]
fn external_data_lies_beside_the_file_and_enters_its_hash() {
    let (model, bytes) = with_external_table();
    let saved = save(&model);
    assert_says(saved.open().unwrap_err(), &["`table`", "weights/table.bin", "is missing; put it there"]);
    let data = saved.folder.path().join("weights/table.bin");
    fs::create_dir(data.parent().unwrap()).unwrap();
    fs::write(&data, &bytes[..bytes.len() - 1]).unwrap();
    assert_says(saved.open().unwrap_err(), &["ends at byte 92 of a file of 91 bytes"]);

    fs::write(&data, &bytes).unwrap();
    let file = saved.open().unwrap();
    assert_eq!(rows(&file, "embedded"), EMBEDDED);
    let hash = file.hash().unwrap();
    assert_eq!(hash.len(), 64);
    assert_eq!(saved.open().unwrap().hash().unwrap(), hash);
    fs::write(&data, bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
    assert_ne!(saved.open().unwrap().hash().unwrap(), hash);
}

#[test]
fn external_data_is_found_through_links_as_in_the_hub_cache() {
    let (model, bytes) = with_external_table();
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/main"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(snapshot.join("weights")).unwrap();
    fs::write(blobs.join("a"), model.encode_to_vec()).unwrap();
    fs::write(blobs.join("b"), bytes).unwrap();
    std::os::unix::fs::symlink("../../blobs/a", snapshot.join("model.onnx")).unwrap();
    std::os::unix::fs::symlink("../../../blobs/b", snapshot.join("weights/table.bin")).unwrap();
    let file = OnnxFile::open(&snapshot.join("model.onnx")).unwrap();
    assert_eq!(rows(&file, "embedded"), EMBEDDED);
}

#[test]
fn external_data_outside_the_files_folder_is_refused() {
    for location in ["../table.bin", "/etc/passwd", ""] {
        let (mut model, _) = with_external_table();
        graph(&mut model).initializer[0].external_data[0].value = location.to_string();
        assert_says(save(&model).open().unwrap_err(), &["`table`", "below the model's folder"]);
    }
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let whole = model().encode_to_vec();
    for bytes in [b"not a model at all, but text".as_slice(), b"", &whole[..whole.len() / 2]] {
        assert_says(Saved::new(bytes).open().unwrap_err(), &["model.onnx", "not an ONNX model, or damaged"]);
    }
    let missing = OnnxFile::open(Path::new("no/such.onnx")).unwrap_err();
    assert_says(missing, &["cannot read no/such.onnx"]);
}

#[test]
fn graphs_within_graphs_without_end_are_refused() {
    let mut node = Vec::new();
    for _ in 0..100 {
        let (mut graph, mut attribute) = (Vec::new(), Vec::new());
        wire::put(&mut graph, number::graph::NODE, &node);
        wire::put(&mut attribute, number::attribute::GRAPH, &graph);
        node.clear();
        wire::put(&mut node, number::node::ATTRIBUTE, &attribute);
    }
    assert!(add_captured(&node, &mut Vec::new(), 0).unwrap_err().contains("64 deep"));
}
