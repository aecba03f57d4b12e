//! The rest of a model behind a hook: what it predicts when something else stands there.

use std::sync::{Mutex, PoisonError};

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis, concatenate, s};
use ort::session::{OutputSelector, RunOptions, Session};
use ort::value::TensorRef;

use crate::attention::Contexts;
use crate::graph::{self, Graph, INPUT, fixed, int, symbol, tensor_info};
use crate::limits::Limits;
use crate::onnx::DataType;
use crate::prefix::{precision, use_cuda};
use crate::session::session;
use crate::{
    Checkpoint, Error, HookPoint, ModelPrecision, Products, Runtime, SessionOptions, Site, cuda, families,
};

/// The graph's inputs: token ids int64 `[contexts, length]`, and what stands at the hook, float32 `[variants, contexts * length,
/// d_model]`.
const IDS: &str = "context_ids";
const SPLICED: &str = "spliced";
/// Log-probabilities that the first variant is compared with too, float32 `[fixed, vocabulary]`.
const FIXED: &str = "fixed";
/// Its outputs: float32 `[variants, contexts * length]`, `[fixed, contexts * length]`, and `[variants * contexts * length,
/// vocabulary]`.
const LOSS: &str = "loss";
const KL: &str = "kl";
const KL_FIXED: &str = "kl_fixed";
const LOGITS: &str = "logits";
/// Numbers of an array of logits that a run on the CPU makes at most; there are several of that size.
const LARGEST_LOGITS: usize = 1 << 25;

/// A model of which what stands at one hook is given from outside, ready to run.
///
/// Several variants of it run side by side on the same contexts. The first is what the others are compared with.
#[derive(Debug)]
pub struct SuffixModel {
    session: Mutex<Session>,
    hook: HookPoint,
    width: usize,
    vocabulary: usize,
    limits: Limits,
    cuda: bool,
}

/// What a model predicts with each variant at the hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Cross-entropy of the next token in nats, `[variants + fixed, contexts, length - 1]`: the last position has none.
    pub loss: Array3<f32>,
    /// KL divergence of the prediction from the first variant's in nats, KL(first ‖ other), `[variants + fixed, contexts,
    /// length]`. Of the first it is 0.
    pub kl: Array3<f32>,
}

impl SuffixModel {
    /// Builds the graph of `checkpoint` with `hook` as an input and opens a session on it. What `hook` does not replace is
    /// computed from the tokens: all of the model up to an `attn_out`, nothing of it up to a residual stream.
    ///
    /// # Errors
    /// When the hook's layer is out of range, the checkpoint lacks a tensor (one without a language-model head predicts
    /// nothing) or has one of another shape, the device is not there, or ONNX Runtime refuses the graph.
    pub fn load(
        runtime: &Runtime,
        checkpoint: &Checkpoint,
        hook: HookPoint,
        options: &SessionOptions,
    ) -> Result<SuffixModel, Error> {
        let cuda = use_cuda(runtime, options.device)?;
        let graph = suffix_graph(checkpoint, hook, precision(options, cuda))?;
        let session = session(runtime, &graph, checkpoint.weights_folder(), options.threads, cuda, None)?;
        let config = checkpoint.config();
        Ok(SuffixModel {
            session: Mutex::new(session),
            hook,
            width: config.d_model,
            vocabulary: config.vocabulary,
            limits: Limits {
                vocabulary: Some(config.vocabulary),
                positions: Some(config.max_positions),
                ..Limits::default()
            },
            cuda,
        })
    }

    /// The hook whose value is given.
    pub fn hook(&self) -> HookPoint {
        self.hook
    }

    /// Tokens that it predicts.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// How many contexts of `length` tokens with this many variants to give to one [`SuffixModel::run`]: as many as keep an
    /// array of all logits below 128 MiB on the CPU, below a sixteenth of the free memory on CUDA; at least one.
    pub fn suggested_contexts(&self, variants: usize, length: usize) -> usize {
        let most = match cuda::free_memory().filter(|_| self.cuda) {
            Some(free) => usize::try_from(free / 64).unwrap_or(usize::MAX),
            None => LARGEST_LOGITS,
        };
        (most / (variants * length * self.vocabulary).max(1)).max(1)
    }

    /// What the model predicts where a row of `rows`, `[n, d_model]`, stands at every position of the hook: log-probabilities of the
    /// next token, `[n, vocabulary]`, the same at each position of any context. Attention over equal rows gives what one of them
    /// does, whatever their positions, so a context of one token tells. `None` at a hook that leaves something to the tokens: all
    /// but residual streams.
    ///
    /// # Errors
    /// Those of [`SuffixModel::run`].
    pub fn everywhere(&self, rows: ArrayView2<'_, f32>) -> Result<Option<Array2<f32>>, Error> {
        if !matches!(self.hook.site, Site::ResidPre | Site::ResidMid | Site::ResidPost) {
            return Ok(None);
        }
        let mut found = self.logits(Array2::zeros((rows.nrows(), 1)).view(), rows)?;
        for mut logits in found.rows_mut() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            logits.mapv_inplace(|logit| (f64::from(logit - largest) - sum.ln()) as f32);
        }
        Ok(Some(found))
    }

    /// What the model predicts of the token ids `[contexts, length]` with each of `rows`, `[variants, contexts * length,
    /// d_model]`, at the hook.
    ///
    /// # Errors
    /// When there is no id, no variant, an id outside the vocabulary or rows of another shape, a context is longer than the
    /// model's positions, or ONNX Runtime fails.
    pub fn run(&self, ids: ArrayView2<'_, i64>, rows: ArrayView3<'_, f32>) -> Result<Predictions, Error> {
        self.run_beside(ids, rows, Array2::zeros((0, self.vocabulary)).view())
    }

    /// The same, and after the variants how good predictions are that are the same everywhere: `fixed`, log-probabilities `[fixed,
    /// vocabulary]`, as [`SuffixModel::everywhere`] makes them.
    ///
    /// # Errors
    /// Those of [`SuffixModel::run`], and when `fixed` is not as wide as the vocabulary.
    pub fn run_beside(
        &self,
        ids: ArrayView2<'_, i64>,
        rows: ArrayView3<'_, f32>,
        fixed: ArrayView2<'_, f32>,
    ) -> Result<Predictions, Error> {
        let (contexts, length) = ids.dim();
        let [loss, kl, kl_fixed] = self.outputs(ids, rows, fixed, [LOSS, KL, KL_FIXED])?;
        let grid = |numbers: Vec<f32>| {
            Array3::from_shape_vec((numbers.len() / ids.len(), contexts, length), numbers)
                .map_err(|error| Error::Onnx { doing: RUNNING, message: error.to_string() })
        };
        let loss = grid(loss)?;
        let fixed_loss =
            Array3::from_shape_fn((fixed.nrows(), contexts, length - 1), |(at, context, position)| {
                -fixed[[at, ids[[context, position + 1]] as usize]]
            });
        Ok(Predictions {
            loss: both(loss.slice(s![.., .., ..length - 1]), fixed_loss.view()),
            kl: both(grid(kl)?.view(), grid(kl_fixed)?.view()),
        })
    }

    /// The logits of the token ids `[contexts, length]` with `rows`, `[contexts * length, d_model]`, at the hook:
    /// `[contexts * length, vocabulary]`.
    ///
    /// # Errors
    /// Those of [`SuffixModel::run`].
    pub fn logits(&self, ids: ArrayView2<'_, i64>, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        let none = Array2::zeros((0, self.vocabulary));
        let [logits] = self.outputs(ids, rows.insert_axis(Axis(0)), none.view(), [LOGITS])?;
        Array2::from_shape_vec((ids.len(), self.vocabulary), logits)
            .map_err(|error| Error::Onnx { doing: RUNNING, message: error.to_string() })
    }

    fn outputs<const N: usize>(
        &self,
        ids: ArrayView2<'_, i64>,
        rows: ArrayView3<'_, f32>,
        fixed: ArrayView2<'_, f32>,
        names: [&str; N],
    ) -> Result<[Vec<f32>; N], Error> {
        self.limits.check(ids)?;
        let (variants, count, width) = rows.dim();
        if variants == 0 || (count, width) != (ids.len(), self.width) {
            return Err(Error::Input(format!(
                "{} takes rows [variants, {}, {}] for these tokens, not [{variants}, {count}, {width}]",
                self.hook,
                ids.len(),
                self.width
            )));
        }
        if fixed.ncols() != self.vocabulary {
            return Err(Error::Input(format!(
                "fixed predictions are [.., {}] for this model, not {:?}",
                self.vocabulary,
                fixed.dim()
            )));
        }
        let (ids, rows, fixed) =
            (ids.as_standard_layout(), rows.as_standard_layout(), fixed.as_standard_layout());
        let tensor = |error| Error::onnx("preparing the inputs")(error);
        let inputs = ort::inputs![
            IDS => TensorRef::from_array_view(ids.view()).map_err(tensor)?,
            SPLICED => TensorRef::from_array_view(rows.view()).map_err(tensor)?,
            FIXED => TensorRef::from_array_view(fixed.view()).map_err(tensor)?,
        ];
        let selected = names.iter().fold(OutputSelector::no_default(), |selected, name| selected.with(*name));
        let options = RunOptions::new().map_err(Error::onnx(RUNNING))?.with_outputs(selected);
        // A run that panicked leaves no state behind.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run_with_options(inputs, &options).map_err(Error::onnx(RUNNING))?;
        let mut found = [const { Vec::new() }; N];
        for (found, name) in found.iter_mut().zip(names) {
            *found = outputs[name].try_extract_tensor::<f32>().map_err(Error::onnx(RUNNING))?.1.to_vec();
        }
        Ok(found)
    }
}

/// The numbers of both, one after the other.
fn both(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> Array3<f32> {
    concatenate(Axis(0), &[a, b]).expect("both are of the same contexts")
}

const RUNNING: &str = "running the rest of the model";

/// The ONNX graph of `checkpoint` behind `hook`, serialized. Inputs: `context_ids` int64 `[contexts, length]`, `spliced` float32
/// `[variants, contexts * length, d_model]` and `fixed` float32 `[fixed, vocabulary]`. Outputs, float32: `loss` and `kl` `[variants,
/// contexts * length]`, `kl_fixed` `[fixed, contexts * length]` and `logits` `[variants * contexts * length, vocabulary]`. The loss of
/// a context's last position is that of its first token and means nothing.
/// This is what [`SuffixModel::load`] runs, for use elsewhere.
///
/// # Errors
/// When the hook's layer is out of range or the model has nothing there, or the checkpoint lacks a tensor or has one of another
/// shape or type.
pub fn suffix_graph(
    checkpoint: &Checkpoint,
    hook: HookPoint,
    precision: ModelPrecision,
) -> Result<Vec<u8>, Error> {
    let config = checkpoint.config();
    graph::check_layer(hook, config.layers)?;
    let mut g = Graph::new(checkpoint, precision, Products::Exact);
    let variants = g.op("Shape", &[SPLICED], &[int("start", 0), int("end", 1)]);
    let one = g.sizes(&[1]);
    let repeats = g.op("Concat", &[&variants, &one], &[int("axis", 0)]);
    let ids = g.op("Tile", &[IDS, &repeats], &[]);
    let ids = g.named(&ids, INPUT);
    let spliced = g.rows(SPLICED, config.d_model);
    g.splice(hook, spliced);

    let contexts = Contexts::new(&mut g);
    let resid = families::blocks(&mut g, checkpoint, &contexts, config.layers - 1)?;
    if !g.has(hook) {
        return Err(Error::NoSuchSite { hook: hook.to_string() });
    }
    let logits = families::head(checkpoint).logits(&mut g, checkpoint, &resid)?;
    let logits = g.named_copy(&logits, LOGITS);
    let log_probabilities = g.op("LogSoftmax", &[&logits], &[int("axis", -1)]);
    loss(&mut g, &ids, &log_probabilities, &variants);
    divergences(&mut g, &log_probabilities, &variants, config.vocabulary);

    let vocabulary = || fixed(config.vocabulary as i64);
    let grid = || vec![symbol("variants"), symbol("rows")];
    let inputs = vec![
        tensor_info(IDS, DataType::Int64, vec![symbol("contexts"), symbol("length")]),
        tensor_info(
            SPLICED,
            DataType::Float,
            vec![symbol("variants"), symbol("rows"), fixed(config.d_model as i64)],
        ),
        tensor_info(FIXED, DataType::Float, vec![symbol("fixed"), vocabulary()]),
    ];
    let outputs = vec![
        tensor_info(LOSS, DataType::Float, grid()),
        tensor_info(KL, DataType::Float, grid()),
        tensor_info(KL_FIXED, DataType::Float, vec![symbol("fixed"), symbol("rows")]),
        tensor_info(LOGITS, DataType::Float, vec![symbol("all_rows"), vocabulary()]),
    ];
    Ok(g.serialized("suffix", inputs, outputs))
}

/// `loss`, -log p(next token), where a context's last position is followed by its first.
fn loss(g: &mut Graph<'_>, ids: &str, log_probabilities: &str, variants: &str) {
    let [zero, one, end, column, minus_one] = [0, 1, i64::MAX, 1, -1].map(|number| g.integers(&[number]));
    let rest = g.op("Slice", &[ids, &one, &end, &one], &[]);
    let first = g.op("Slice", &[ids, &zero, &one, &one], &[]);
    let next = g.op("Concat", &[&rest, &first], &[int("axis", 1)]);
    let shape = g.op("Concat", &[&minus_one, &column], &[int("axis", 0)]);
    let next = g.op("Reshape", &[&next, &shape], &[]);
    let found = g.op("GatherElements", &[log_probabilities, &next], &[int("axis", 1)]);
    let negative = g.op("Neg", &[&found], &[]);
    let shape = g.op("Concat", &[variants, &minus_one], &[int("axis", 0)]);
    let loss = g.op("Reshape", &[&negative, &shape], &[]);
    g.named(&loss, LOSS);
}

/// `kl` and `kl_fixed`, Σ p₁ (log p₁ - log p) over the vocabulary, where p₁ is the first variant's.
fn divergences(g: &mut Graph<'_>, log_probabilities: &str, variants: &str, vocabulary: usize) {
    let rest = g.integers(&[-1, vocabulary as i64]);
    let shape = g.op("Concat", &[variants, &rest], &[int("axis", 0)]);
    let all = g.op("Reshape", &[log_probabilities, &shape], &[]);
    let [zero, one, last] = [0, 1, -1].map(|number| g.integers(&[number]));
    let first = g.op("Slice", &[&all, &zero, &one, &zero], &[]);
    let probabilities = g.op("Exp", &[&first], &[]);
    let differences = g.op("Sub", &[&first, &all], &[]);
    let weighted = g.op("Mul", &[&probabilities, &differences], &[]);
    let kl = g.op("ReduceSum", &[&weighted, &last], &[int("keepdims", 0)]);
    g.named(&kl, KL);

    // Each fixed prediction is one row: Σ p₁ log p is a matrix product.
    let own = g.op("Mul", &[&probabilities, &first], &[]);
    let own = g.op("ReduceSum", &[&own, &last], &[int("keepdims", 0)]);
    let probabilities = g.op("Reshape", &[&probabilities, &rest], &[]);
    let fixed = g.op("Transpose", &[FIXED], &[]);
    let cross = g.op("MatMul", &[&probabilities, &fixed], &[]);
    let cross = g.op("Transpose", &[&cross], &[]);
    let kl = g.op("Sub", &[&own, &cross], &[]);
    g.named(&kl, KL_FIXED);
}
