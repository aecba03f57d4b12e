//! Causal self-attention over heads, shared by the families.

use crate::ModelConfig;
use crate::graph::{Graph, INPUT, Value, int, ints};

/// Values that every block's attention shares.
pub(crate) struct Context {
    /// Additive causal mask `[length, length]`: 0 where row may see column, else -inf.
    mask: Value,
    /// Positions 0, 1, … as int64 `[length]`.
    pub(crate) positions: Value,
    /// `[contexts, length]`, the shape of the input.
    shape: Value,
}

impl Context {
    pub(crate) fn new(g: &mut Graph<'_>) -> Context {
        let shape = g.op("Shape", &[INPUT], &[]);
        let length = g.op("Shape", &[INPUT], &[int("start", 1)]);
        let axis = g.ints(&[0]);
        let scalar_length = g.op("Squeeze", &[&length, &axis], &[]);
        let zero = g.int(0);
        let one = g.int(1);
        let positions = g.op("Range", &[&zero, &scalar_length, &one], &[]);
        let last = g.ints(&[1]);
        let row = g.op("Unsqueeze", &[&positions, &last], &[]);
        let visible = g.op("LessOrEqual", &[&positions, &row], &[]);
        let shown = g.float(0.0);
        let hidden = g.float(f32::NEG_INFINITY);
        let mask = g.op("Where", &[&visible, &shown, &hidden], &[]);
        Context { mask, positions, shape }
    }
}

/// Causal attention of every head: softmax(q·kᵀ / sqrt(head_dim) + mask)·v.
///
/// `q` is `[rows, heads * head_dim]`, `k` and `v` are `[rows, kv_heads * head_dim]`; so is the
/// result, `[rows, heads * head_dim]`. Query head `h` reads key/value head
/// `h / (heads / kv_heads)`.
pub(crate) fn attend(
    g: &mut Graph<'_>,
    context: &Context,
    config: &ModelConfig,
    q: &str,
    k: &str,
    v: &str,
) -> Value {
    let (kv_heads, head_dim) = (config.kv_heads as i64, config.head_dim as i64);
    let group = (config.heads / config.kv_heads) as i64;
    // Query heads of a group lie side by side; keys and values are broadcast over the group.
    let q = context.split_heads(g, q, &[kv_heads, group, head_dim]);
    let k = context.split_heads(g, k, &[kv_heads, 1, head_dim]);
    let v = context.split_heads(g, v, &[kv_heads, 1, head_dim]);
    let q = g.op("Transpose", &[&q], &[ints("perm", &[0, 2, 3, 1, 4])]);
    let k = g.op("Transpose", &[&k], &[ints("perm", &[0, 2, 3, 4, 1])]);
    let v = g.op("Transpose", &[&v], &[ints("perm", &[0, 2, 3, 1, 4])]);

    let scale = g.float(1.0 / (config.head_dim as f32).sqrt());
    let scores = g.op("MatMul", &[&q, &k], &[]);
    let scores = g.op("Mul", &[&scores, &scale], &[]);
    let scores = g.op("Add", &[&scores, &context.mask], &[]);
    let weights = g.op("Softmax", &[&scores], &[int("axis", -1)]);
    let z = g.op("MatMul", &[&weights, &v], &[]);
    let z = g.op("Transpose", &[&z], &[ints("perm", &[0, 3, 1, 2, 4])]);
    let rows = g.ints(&[-1, (config.heads * config.head_dim) as i64]);
    g.op("Reshape", &[&z, &rows], &[])
}

impl Context {
    /// `[rows, product of parts]` as `[contexts, length, parts...]`.
    pub(crate) fn split_heads(&self, g: &mut Graph<'_>, x: &str, parts: &[i64]) -> Value {
        let parts = g.ints(parts);
        let shape = g.op("Concat", &[&self.shape, &parts], &[int("axis", 0)]);
        g.op("Reshape", &[x, &shape], &[])
    }
}
