//! Nodes of our own operators ([`crate::operators`]) in a graph.

use crate::graph::{Graph, Value, int, ints, string};
use crate::operators::{
    CAUSAL_ATTENTION, DOMAIN, Form, Function, MOST_WEIGHTS, Place, name_attribute, operator,
};
use crate::{Activation, Error, ModelConfig};

/// A weight of a product: its name, its shape, and the name of its bias.
pub(crate) type Weight<'n> = (&'n str, [usize; 2], Option<&'n str>);

impl Graph<'_> {
    /// x·weight, or x·weightᵀ if they are `transposed`, plus a bias, with several tensors of the checkpoint: products beside each
    /// other.
    pub(crate) fn own_product(
        &mut self,
        x: &str,
        weights: &[Weight<'_>],
        transposed: bool,
    ) -> Result<Value, Error> {
        self.own_products(x, weights, transposed, Form::Beside, None)
    }

    /// f(x·weight + bias), or None if f or the graph is left to ONNX Runtime.
    pub(crate) fn own_active_product(
        &mut self,
        x: &str,
        weight: Weight<'_>,
        transposed: bool,
        activation: Activation,
    ) -> Result<Option<Value>, Error> {
        let Some(function) = Function::of(activation).filter(|_| self.own_operators()) else {
            return Ok(None);
        };
        self.own_products(x, &[weight], transposed, Form::Beside, Some(function)).map(Some)
    }

    /// f(x·gateᵀ)·(x·upᵀ), or None if f or the graph is left to ONNX Runtime, or the two weights are stored in different types.
    pub(crate) fn own_gated_product(
        &mut self,
        x: &str,
        [gate, up]: [&str; 2],
        shape: [usize; 2],
        activation: Activation,
    ) -> Result<Option<Value>, Error> {
        let Some(function) = Function::of(activation).filter(|_| self.own_operators()) else {
            return Ok(None);
        };
        let (names, biases) = self.linear_names(&[gate, up]);
        if !self.same_type(&names, &[shape; 2])? {
            return Ok(None);
        }
        let weights =
            [(names[0].as_str(), shape, biases[0].as_deref()), (&names[1], shape, biases[1].as_deref())];
        self.own_products(x, &weights, true, Form::Gated, Some(function)).map(Some)
    }

    /// x·weightᵀ with the tensors `name.weight`, `[out, in]`, plus `name.bias` if the checkpoint has it, beside each other; None
    /// if the graph is left to ONNX Runtime or the weights are stored in different types.
    pub(crate) fn own_linears<const N: usize>(
        &mut self,
        names: [&str; N],
        x: &str,
        shapes: [[usize; 2]; N],
    ) -> Result<Option<Value>, Error> {
        const { assert!(N <= MOST_WEIGHTS) };
        if !self.own_operators() {
            return Ok(None);
        }
        let (names, biases) = self.linear_names(&names);
        if !self.same_type(&names, &shapes)? {
            return Ok(None);
        }
        let weights: Vec<Weight<'_>> =
            (0..N).map(|i| (names[i].as_str(), shapes[i], biases[i].as_deref())).collect();
        self.own_product(x, &weights, true).map(Some)
    }

    /// Causal attention of queries, keys and values `[contexts * length, …]`, whose heads lie at `place` and are turned by `angles`,
    /// cosines and sines. `shape` is `[contexts, length]`.
    pub(crate) fn own_attention(
        &mut self,
        config: &ModelConfig,
        qkv: [&str; 3],
        shape: &str,
        place: Place,
        angles: Option<[&str; 2]>,
    ) -> Value {
        let mut inputs = qkv.to_vec();
        inputs.push(shape);
        inputs.extend(angles.into_iter().flatten());
        let attributes = [
            int("heads", config.heads as i64),
            int("kv_heads", config.kv_heads as i64),
            int("head_dim", config.head_dim as i64),
            ints("first", &place.first.map(|first| first as i64)),
            int("stride", place.stride as i64),
        ];
        self.own_op(CAUSAL_ATTENTION, &inputs, &attributes)
    }

    fn own_products(
        &mut self,
        x: &str,
        weights: &[Weight<'_>],
        transposed: bool,
        form: Form,
        function: Option<Function>,
    ) -> Result<Value, Error> {
        let mut inputs = vec![x.to_string()];
        for (weight, shape, bias) in weights {
            let width = if transposed { shape[0] } else { shape[1] };
            // The operator splits the weights as they are stored; a copy in float32 would stay in memory.
            inputs.push(self.stored_weight(weight, shape)?);
            // A bias that there is not has the empty name.
            inputs.push(bias.map(|bias| self.weight(bias, &[width])).transpose()?.unwrap_or_default());
        }
        if inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        let operator = operator(self.stored_type(&inputs[1]));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut attributes = vec![string("form", form.name())];
        attributes
            .extend((0..).zip(weights).map(|(index, (weight, ..))| string(&name_attribute(index), weight)));
        attributes.extend(transposed.then(|| int("transB", 1)));
        attributes.extend(function.map(|function| string("function", function.name())));
        Ok(self.own_op(operator, &inputs, &attributes))
    }

    fn own_op(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[crate::onnx::AttributeProto],
    ) -> Value {
        let value = self.op(operator, inputs, attributes);
        self.last_is_of(DOMAIN);
        value
    }

    /// The tensors of linear layers, and their biases where the checkpoint has them.
    fn linear_names(&self, names: &[&str]) -> (Vec<String>, Vec<Option<String>>) {
        let weights = names.iter().map(|name| format!("{name}.weight")).collect();
        let biases = names
            .iter()
            .map(|name| format!("{name}.bias"))
            .map(|bias| self.has_tensor(&bias).then_some(bias));
        (weights, biases.collect())
    }

    /// Whether tensors are stored in one type, as one operator needs them.
    fn same_type(&mut self, names: &[String], shapes: &[[usize; 2]]) -> Result<bool, Error> {
        for (name, shape) in names.iter().zip(shapes) {
            self.stored_weight(name, shape)?;
        }
        Ok(names.iter().all(|name| self.stored_type(name) == self.stored_type(&names[0])))
    }
}
