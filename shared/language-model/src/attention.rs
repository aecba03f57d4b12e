//! What the families' attention layers share: contexts, positions, causal attention over heads.

use crate::ModelConfig;
use crate::graph::{Graph, INPUT, Value, int};

/// How rows divide into contexts. Everything but attention works on rows `[contexts * length, …]`.
pub(crate) struct Contexts {
    /// `[contexts, length]`, the shape of the input.
    pub(crate) shape: Value,
    /// Positions 0, 1, … of a context, int64 `[length]`.
    pub(crate) positions: Value,
}

impl Contexts {
    pub(crate) fn new(g: &mut Graph<'_>) -> Contexts {
        let shape = g.op("Shape", &[INPUT], &[]);
        let length = g.op("Shape", &[INPUT], &[int("start", 1)]);
        let length = g.op("Squeeze", &[&length], &[]);
        let (zero, one) = (g.int(0), g.int(1));
        let positions = g.op("Range", &[&zero, &length, &one], &[]);
        Contexts { shape, positions }
    }

    /// Rows `[contexts * length, product of parts]` as `[contexts, length, parts...]`.
    pub(crate) fn split(&self, g: &mut Graph<'_>, rows: &str, parts: &[usize]) -> Value {
        let parts = g.sizes(parts);
        let shape = g.op("Concat", &[&self.shape, &parts], &[int("axis", 0)]);
        g.op("Reshape", &[rows, &shape], &[])
    }

    /// Causal attention, softmax(q·kᵀ / sqrt(head_dim))·v over the positions up to its own, in every
    /// head. Query head `h` reads key and value head `h / (heads / kv_heads)`.
    ///
    /// `q` and the result are rows `[contexts * length, heads * head_dim]`, `k` and `v` are rows
    /// `[contexts * length, kv_heads * head_dim]`.
    ///
    /// One `Attention` node rather than two products and a softmax: the same results to the bit on the
    /// CPU, where it is no slower, and fused kernels on CUDA.
    pub(crate) fn attend(&self, g: &mut Graph<'_>, config: &ModelConfig, q: &str, k: &str, v: &str) -> Value {
        let (width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let q = self.split(g, q, &[width]);
        let k = self.split(g, k, &[kv_width]);
        let v = self.split(g, v, &[kv_width]);
        let heads = [
            int("q_num_heads", config.heads as i64),
            int("kv_num_heads", config.kv_heads as i64),
            int("is_causal", 1),
        ];
        let z = g.op("Attention", &[&q, &k, &v], &heads);
        g.rows(&z, width)
    }
}
