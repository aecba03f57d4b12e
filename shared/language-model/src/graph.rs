//! Builds an ONNX graph whose weights stay in the checkpoint's files.

use std::collections::{HashMap, HashSet};

use prost::Message;
use safetensors::tensor::Dtype;

use crate::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, EXTERNAL, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto,
    ValueInfoProto,
};
use crate::operators::DOMAIN;
use crate::{Activation, Checkpoint, Error, HookPoint, ModelPrecision, Products, Site};

/// The graph's input, token ids int64 `[contexts, length]`.
pub(crate) const INPUT: &str = "ids";

/// The graph's output for the hook with this index, `[contexts * length, d_model]`.
pub(crate) fn output_name(index: usize) -> String {
    format!("hook_{index}")
}

/// The name of a value in the graph.
pub(crate) type Value = String;

/// An ONNX graph under construction.
pub(crate) struct Graph<'c> {
    checkpoint: &'c Checkpoint,
    precision: ModelPrecision,
    products: Products,
    nodes: Vec<NodeProto>,
    initializers: HashMap<Value, TensorProto>,
    hooks: HashMap<HookPoint, Value>,
    /// What the model goes on with behind a hook, in place of its own value.
    splice: Option<(HookPoint, Value)>,
}

impl<'c> Graph<'c> {
    /// An empty graph. In half precision the factors and results of matrix products, and what is between
    /// them, are float16; the residual stream and the norms stay float32, so that nothing rounds or
    /// overflows there. Families say where that is with [`Graph::product_input`] and [`Graph::residual`].
    pub(crate) fn new(
        checkpoint: &'c Checkpoint,
        precision: ModelPrecision,
        products: Products,
    ) -> Graph<'c> {
        let (nodes, initializers, hooks) = (Vec::new(), HashMap::new(), HashMap::new());
        Graph { checkpoint, precision, products, nodes, initializers, hooks, splice: None }
    }

    /// Lets the model go on behind `hook` with `value`, float32 `[rows, d_model]`, in place of its own.
    pub(crate) fn splice(&mut self, hook: HookPoint, value: Value) {
        self.splice = Some((hook, value));
    }

    /// The tensor `name` of the checkpoint as float32, whatever it is stored in.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let stored = self.stored_weight(name, shape)?;
        Ok(self.cast(stored, self.stored_type(name), DataType::Float))
    }

    /// The tensor `name` in the precision of products, whatever it is stored in.
    fn product_weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let stored = self.stored_weight(name, shape)?;
        Ok(self.cast(stored, self.stored_type(name), self.product_type()))
    }

    /// A float32 value in the precision of products.
    pub(crate) fn product_input(&mut self, value: Value) -> Value {
        self.cast(value, DataType::Float, self.product_type())
    }

    /// A value in the precision of products as float32.
    pub(crate) fn residual(&mut self, value: Value) -> Value {
        self.cast(value, self.product_type(), DataType::Float)
    }

    /// Rows `indices` of the matrix `name`, as float32. Only those rows are converted.
    pub(crate) fn embedding(&mut self, name: &str, shape: &[usize], indices: &str) -> Result<Value, Error> {
        let table = self.stored_weight(name, shape)?;
        let rows = self.op("Gather", &[&table, indices], &[]);
        Ok(self.cast(rows, self.stored_type(name), DataType::Float))
    }

    /// Adds a node with one output and returns it.
    pub(crate) fn op(&mut self, op_type: &str, inputs: &[&str], attributes: &[AttributeProto]) -> Value {
        let [output] = self.op_n(op_type, inputs, attributes);
        output
    }

    /// Adds a node with `N` outputs and returns them.
    pub(crate) fn op_n<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
    ) -> [Value; N] {
        let name = format!("{op_type}_{}", self.nodes.len());
        let outputs: [Value; N] =
            std::array::from_fn(|index| if N == 1 { name.clone() } else { format!("{name}_{index}") });
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: outputs.to_vec(),
            name,
            op_type: op_type.to_string(),
            attribute: attributes.to_vec(),
            domain: String::new(),
        });
        outputs
    }

    /// x·weightᵀ with the tensor `name.weight`, `[out, in]`, plus `name.bias` if the checkpoint has it.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        x: &str,
        [rows, columns]: [usize; 2],
    ) -> Result<Value, Error> {
        let bias = format!("{name}.bias");
        let bias = self.checkpoint.has(&bias).then_some(bias);
        self.product(x, &format!("{name}.weight"), [rows, columns], bias.as_deref(), true)
    }

    /// x·weight, or x·weightᵀ if it is `transposed`, plus a bias, with tensors of the checkpoint.
    pub(crate) fn product(
        &mut self,
        x: &str,
        weight: &str,
        shape: [usize; 2],
        bias: Option<&str>,
        transposed: bool,
    ) -> Result<Value, Error> {
        if self.own_operators() {
            return self.own_product(x, &[(weight, shape, bias)], transposed);
        }
        let width = if transposed { shape[0] } else { shape[1] };
        let attributes = if transposed { &[int("transB", 1)][..] } else { &[] };
        let matrix = self.product_weight(weight, &shape)?;
        let bias = bias.map(|bias| self.product_weight(bias, &[width])).transpose()?;
        let mut inputs = vec![x, matrix.as_str()];
        inputs.extend(bias.as_deref());
        Ok(self.op("Gemm", &inputs, attributes))
    }

    /// Whether the graph is for sessions that know our own operators.
    pub(crate) fn own_operators(&self) -> bool {
        self.products == Products::MatrixUnits
    }

    /// Says of which domain the operator of the last node is.
    pub(crate) fn last_is_of(&mut self, domain: &str) {
        if let Some(node) = self.nodes.last_mut() {
            node.domain = domain.to_string();
        }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// A configuration that a family's own reader never produces.
    pub(crate) fn impossible(&self, problem: &str) -> Error {
        Error::Config { path: self.checkpoint.folder().join("config.json"), problem: problem.to_string() }
    }

    /// A constant list of sizes, int64.
    pub(crate) fn sizes(&mut self, values: &[usize]) -> Value {
        let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
        self.integers(&values)
    }

    /// A constant int64 number.
    pub(crate) fn int(&mut self, value: i64) -> Value {
        self.constant(DataType::Int64, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A constant float32 vector.
    pub(crate) fn floats(&mut self, values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Float, vec![values.len() as i64], bytes)
    }

    /// `x` as rows of `width` components, whatever its dimensions were.
    pub(crate) fn rows(&mut self, x: &str, width: usize) -> Value {
        let shape = self.integers(&[-1, width as i64]);
        self.op("Reshape", &[x, &shape], &[])
    }

    /// The MLP's non-linearity, element by element.
    pub(crate) fn activation(&mut self, kind: Activation, x: &str) -> Value {
        match kind {
            Activation::GeluTanh => self.op("Gelu", &[x], &[string("approximate", "tanh")]),
            Activation::Gelu => self.op("Gelu", &[x], &[string("approximate", "none")]),
            Activation::Relu => self.op("Relu", &[x], &[]),
            Activation::Silu => {
                let gate = self.op("Sigmoid", &[x], &[]);
                self.op("Mul", &[x, &gate], &[])
            }
        }
    }

    /// Names `value` as what is seen at a hook, and returns what the model goes on with.
    pub(crate) fn hook(&mut self, layer: usize, site: Site, value: Value) -> Value {
        let hook = HookPoint { layer, site };
        self.hooks.insert(hook, value.clone());
        match &self.splice {
            Some((at, spliced)) if *at == hook => spliced.clone(),
            _ => value,
        }
    }

    /// Calls `value` `name` from here on; nothing may read it yet under its old name.
    pub(crate) fn named(&mut self, value: &str, name: &str) -> Value {
        self.rename(value, name);
        name.to_string()
    }

    /// A copy of `value` called `name`, for an output that is read in the graph too.
    pub(crate) fn named_copy(&mut self, value: &str, name: &str) -> Value {
        let copy = self.op("Identity", &[value], &[]);
        self.named(&copy, name)
    }

    /// Whether the model has something at `hook`.
    pub(crate) fn has(&self, hook: HookPoint) -> bool {
        self.hooks.contains_key(&hook)
    }

    /// The serialized model with `hooks` as its outputs and only what they depend on.
    ///
    /// # Errors
    /// When the model has nothing at one of them.
    pub(crate) fn finish(mut self, hooks: &[HookPoint], center: bool) -> Result<Vec<u8>, Error> {
        let mut taken = HashSet::new();
        let mut outputs = Vec::new();
        for (index, hook) in hooks.iter().enumerate() {
            let value = self.hooks.get(hook).cloned();
            let value = value.ok_or_else(|| Error::NoSuchSite { hook: hook.to_string() })?;
            let value = if center { self.centered(&value) } else { value };
            // Half precision also halves what is copied from a device.
            let value = self.product_input(value);
            // One value can be at two hooks (a block's end is the next one's beginning), but an
            // output needs a name of its own.
            let value = if taken.insert(value.clone()) { value } else { self.op("Identity", &[&value], &[]) };
            self.rename(&value, &output_name(index));
            // The value keeps its old name for hooks that come later.
            for other in self.hooks.values_mut().filter(|other| **other == value) {
                *other = output_name(index);
                taken.insert(output_name(index));
            }
            outputs.push(output_name(index));
        }
        let d_model = fixed(self.checkpoint.config().d_model as i64);
        let inputs = vec![tensor_info(INPUT, DataType::Int64, vec![symbol("contexts"), symbol("length")])];
        let element = self.precision.output_type();
        let info = |name: &Value| tensor_info(name, element, vec![symbol("rows"), d_model.clone()]);
        Ok(self.serialized("prefix", inputs, outputs.iter().map(info).collect()))
    }

    /// The serialized model with these inputs and outputs and only what the outputs depend on.
    pub(crate) fn serialized(
        mut self,
        name: &str,
        inputs: Vec<ValueInfoProto>,
        outputs: Vec<ValueInfoProto>,
    ) -> Vec<u8> {
        let names: Vec<Value> = outputs.iter().map(|output| output.name.clone()).collect();
        self.keep_ancestors(&names);
        let mut initializers: Vec<TensorProto> = self.initializers.into_values().collect();
        initializers.sort_by(|a, b| a.name.cmp(&b.name));
        let graph = GraphProto {
            node: self.nodes,
            name: name.to_string(),
            initializer: initializers,
            input: inputs,
            output: outputs,
        };
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
        if self.products == Products::MatrixUnits {
            opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_string(), version: 1 });
        }
        let model = ModelProto {
            ir_version: 10,
            producer_name: env!("CARGO_PKG_NAME").to_string(),
            graph: Some(graph),
            opset_import,
        };
        model.encode_to_vec()
    }

    /// x minus its mean over the components.
    fn centered(&mut self, x: &str) -> Value {
        let axis = self.integers(&[-1]);
        let mean = self.op("ReduceMean", &[x, &axis], &[int("keepdims", 1)]);
        self.op("Sub", &[x, &mean], &[])
    }

    /// A constant int64 vector.
    pub(crate) fn integers(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Int64, vec![values.len() as i64], bytes)
    }

    fn cast(&mut self, value: Value, from: DataType, to: DataType) -> Value {
        if from == to { value } else { self.op("Cast", &[&value], &[int("to", to as i64)]) }
    }

    fn product_type(&self) -> DataType {
        match self.precision {
            ModelPrecision::Full => DataType::Float,
            ModelPrecision::Half => DataType::Float16,
        }
    }

    /// The type of a tensor that [`Graph::stored_weight`] has brought into the graph.
    pub(crate) fn stored_type(&self, name: &str) -> DataType {
        DataType::try_from(self.initializers[name].data_type).unwrap_or(DataType::Undefined)
    }

    /// Brings a tensor into the graph as it is stored.
    pub(crate) fn stored_weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        let folder = self.checkpoint.weights_folder();
        let location = tensor.file.strip_prefix(folder).ok().and_then(|path| path.to_str());
        let location = location.ok_or_else(|| Error::NotAModel {
            path: tensor.file.clone(),
            problem: "ONNX Runtime needs a path in UTF-8".to_string(),
        })?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_string(), value };
        let data_type = match tensor.dtype {
            Dtype::F16 => DataType::Float16,
            Dtype::BF16 => DataType::Bfloat16,
            _ => DataType::Float,
        };
        let initializer = TensorProto {
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: data_type as i32,
            name: name.to_string(),
            raw_data: None,
            external_data: vec![
                entry("location", location.to_string()),
                entry("offset", tensor.offset.to_string()),
                entry("length", tensor.length.to_string()),
            ],
            data_location: EXTERNAL,
        };
        self.initializers.insert(name.to_string(), initializer);
        Ok(name.to_string())
    }

    fn constant(&mut self, data_type: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        let name = format!("constant_{}", self.initializers.len());
        let initializer = TensorProto {
            dims,
            data_type: data_type as i32,
            name: name.clone(),
            raw_data: Some(bytes),
            external_data: Vec::new(),
            data_location: 0,
        };
        self.initializers.insert(name.clone(), initializer);
        name
    }

    fn rename(&mut self, from: &str, to: &str) {
        for name in self.nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
            if name == from {
                *name = to.to_string();
            }
        }
    }

    /// Drops every node and initializer that no output depends on.
    fn keep_ancestors(&mut self, outputs: &[Value]) {
        let mut needed: HashSet<Value> = outputs.iter().cloned().collect();
        // Nodes stand after what they read, so one walk from the end finds every ancestor.
        let mut kept: Vec<NodeProto> = Vec::new();
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            if node.output.iter().any(|output| needed.contains(output)) {
                needed.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.initializers.retain(|name, _| needed.contains(name));
    }
}

/// Nodes behind `tensors` of a file whose operators have version `opset`, and the outputs that they make:
/// converted to the type of `precision` and, if asked for, centred in float32.
pub(crate) fn file_outputs(
    tensors: &[&str],
    center: bool,
    precision: ModelPrecision,
    opset: i64,
) -> (Vec<NodeProto>, Vec<ValueInfoProto>) {
    let mut nodes = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let own = |part: &str| file_output_name(index, part);
        let mut node = |op_type: &str, inputs: &[&str], output: String, attributes: &[AttributeProto]| {
            nodes.push(NodeProto {
                input: inputs.iter().map(|input| input.to_string()).collect(),
                output: vec![output.clone()],
                name: output.clone(),
                op_type: op_type.to_string(),
                attribute: attributes.to_vec(),
                domain: String::new(),
            });
            output
        };
        let to = |kind: DataType| int("to", kind as i64);
        let mut last = tensor.to_string();
        if center {
            last = node("Cast", &[&last], own("float"), &[to(DataType::Float)]);
            // Since version 18 the axes are an input, which the whole last part of the graph may be without.
            let axes = ints("axes", &[-1]);
            let mean = match opset {
                ..18 => node("ReduceMean", &[&last], own("mean"), &[axes, int("keepdims", 1)]),
                _ => {
                    let axes = node("Constant", &[], own("axes"), &[ints("value_ints", &[-1])]);
                    node("ReduceMean", &[&last, &axes], own("mean"), &[int("keepdims", 1)])
                }
            };
            last = node("Sub", &[&last, &mean], own("centred"), &[]);
        }
        node("Cast", &[&last], own("output"), &[to(precision.output_type())]);
    }
    let output = |index: usize| ValueInfoProto {
        name: file_output_name(index, "output"),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorType { elem_type: precision.output_type() as i32, shape: None }),
        }),
    };
    (nodes, (0..tensors.len()).map(output).collect())
}

/// The unique name of what is added to a file's graph for the output with this index.
fn file_output_name(index: usize, part: &str) -> String {
    format!("language-model.{index}.{part}")
}

/// Refuses a hook of a block that a model of `layers` blocks does not have.
pub(crate) fn check_layer(hook: HookPoint, layers: usize) -> Result<(), Error> {
    if hook.layer < layers {
        return Ok(());
    }
    Err(Error::LayerOutOfRange { hook: hook.to_string(), layer: hook.layer, last: layers - 1 })
}

/// Opset of the standard operators: 20 brought `Gelu`, 23 `Attention`.
const OPSET: i64 = 23;

/// An integer attribute.
pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// A floating-point attribute.
pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// An attribute of several integers.
pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// A string attribute.
pub(crate) fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_string(), r#type: kind as i32, ..AttributeProto::default() }
}

/// An input or output: its name, type and dimensions.
pub(crate) fn tensor_info(name: &str, data_type: DataType, dim: Vec<Dimension>) -> ValueInfoProto {
    let tensor = TensorType { elem_type: data_type as i32, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_string(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// A dimension of this size.
pub(crate) fn fixed(size: i64) -> Dimension {
    Dimension { dim_value: Some(size), dim_param: None }
}

/// A dimension of any size.
pub(crate) fn symbol(name: &str) -> Dimension {
    Dimension { dim_value: None, dim_param: Some(name.to_string()) }
}
