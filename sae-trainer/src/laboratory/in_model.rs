//! Reconstructions in place of what stands at a hook of the language model, and what the model predicts from them.

use std::collections::HashSet;

use activation_store::Store;
use anyhow::{Context, Result, bail, ensure};
use language_model::{
    Checkpoint, HookPoint, ModelPrecision, PrefixModel, Runtime, SessionOptions, SuffixModel, hub,
};
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis, concatenate, s, stack};
use serde::Serialize;
use terminal::{foreign, foreign_path};

use super::data::Data;
use super::predictions::{Mean, Sums};
use super::sae_bench::{Core, CoreSums};
use super::trained::Trained;
use crate::command::arguments::{EvalArguments, SpecialTokens};
use crate::report::progress;

/// Contexts of a batch: SAEBench's number, on which some of its metrics depend.
const GROUP: usize = 16;
/// The predictions that are compared: the model's own, then those through each autoencoder, then the [`Ablations`].
const CLEAN: usize = 0;

/// What a model predicts through one autoencoder.
#[derive(Debug, Serialize)]
pub(super) struct InModel {
    pub(super) model: String,
    pub(super) hook: String,
    pub(super) contexts: u64,
    pub(super) context_length: usize,
    /// Predictions that count: those made at tokens that are not special.
    predictions: u64,
    special_tokens: SpecialTokens,
    /// Cross-entropy of the next token in nats: of the model itself, with reconstructions at the hook, with zeros, and with the
    /// store's mean row.
    pub(super) ce_loss_clean: Mean,
    pub(super) ce_loss_reconstructed: Mean,
    pub(super) ce_loss_zero: Mean,
    pub(super) ce_loss_mean: Mean,
    /// (zero - reconstructed) / (zero - clean).
    pub(super) ce_score: Mean,
    /// KL(clean ‖ other) in nats.
    pub(super) kl_reconstructed: Mean,
    kl_zero: Mean,
    kl_mean: Mean,
    /// The same and more under the names of SAEBench's core evaluation.
    sae_bench: Core,
}

/// The model, divided at the hooks.
struct Divided {
    prefix: PrefixModel,
    suffix: SuffixModel,
    /// Where the autoencoder reads, and where its reconstruction goes, among the prefix' hooks.
    input: usize,
    output: usize,
}

/// What stands at the hook in place of a reconstruction: the store's mean row, and zeros.
struct Ablations {
    mean_row: Array1<f32>,
    /// What the model predicts of those that are the same row everywhere, `[0 to 2, vocabulary]`: of both, of the zeros alone, or of
    /// none. The others run as variants.
    fixed: Array2<f32>,
}

/// Runs `model` on contexts of the stores with each autoencoder at its hook, all on the same contexts.
pub(super) fn in_model(
    trained: &mut [Trained],
    data: &Data,
    model: &str,
    arguments: &EvalArguments,
    threads: usize,
) -> Result<Vec<InModel>> {
    let (from, to) = (&data.stores[0], data.targets.first().unwrap_or(&data.stores[0]));
    let length = from.context_length();
    ensure!(length > 1, "contexts of one token predict nothing");
    for store in &data.stores {
        store.check_tokens_known()?;
        ensure!(
            store.spec().padding.is_none(),
            "the contexts of {} have different lengths, and the model runs on whole ones alone; leave --model out",
            foreign_path(store.path())
        );
    }
    let mut divided = Divided::load(model, from, to, threads)?;
    let contexts = chosen(data, arguments.contexts);
    ensure!(!contexts.is_empty(), "no context is held out; --held-out 0 takes all");
    let special: HashSet<u32> =
        arguments.drop_tokens.iter().copied().chain([from.spec().bos_token]).collect();
    let keep: Vec<SpecialTokens> = trained.iter().map(|sae| special_tokens(sae, arguments)).collect();

    let ablations = Ablations::new(to, &divided.suffix)?;
    let (mean, zero) = (1 + trained.len(), 2 + trained.len());
    let (mut losses, mut divergences) = (Sums::new(zero + 1), Sums::new(zero + 1));
    let mut cores: Vec<CoreSums> =
        trained.iter().map(|sae| CoreSums::new(sae.sizes().0, sae.sizes().1)).collect();
    let bar = progress::rows("predicting", (contexts.len() * length) as u64);
    for group in contexts.chunks(GROUP) {
        let tokens = tokens(data, group)?;
        let counted = tokens.mapv(|token| !special.contains(&token));
        let ids = tokens.mapv(i64::from);
        let (own, input) = divided.rows(ids.view())?;
        let centred = |rows: &Array2<f32>, store: &Store| match store.provenance().centered {
            true => rows - &means(rows),
            false => rows.clone(),
        };
        let (x, y) = (centred(&input, from), centred(&own, to));
        let residual = if to.provenance().centered { means(&own) } else { Array2::zeros((own.nrows(), 1)) };
        let kept: Vec<usize> = (0..x.nrows()).filter(|row| counted[[row / length, row % length]]).collect();

        let mut spliced = vec![own.clone()];
        for ((sae, keep), core) in trained.iter_mut().zip(&keep).zip(&mut cores) {
            let reconstruction = sae.reconstruct(x.view())?;
            let active = sae.encode(x.select(Axis(0), &kept).view())?;
            core.add(y.select(Axis(0), &kept).view(), reconstruction.select(Axis(0), &kept).view(), &active);
            let mut rows = reconstruction + &residual;
            if *keep == SpecialTokens::Keep {
                for row in (0..x.nrows()).filter(|row| !counted[[row / length, row % length]]) {
                    rows.row_mut(row).assign(&own.row(row));
                }
            }
            spliced.push(rows);
        }
        spliced.extend(ablations.variants(&residual));
        let views: Vec<_> = spliced.iter().map(|rows| rows.view().insert_axis(Axis(0))).collect();
        let spliced: Array3<f32> = concatenate(Axis(0), &views)?;
        let at_once = divided.suffix.suggested_contexts(spliced.dim().0, length);
        for first in (0..group.len()).step_by(at_once) {
            let part = first..(first + at_once).min(group.len());
            let rows = spliced.slice(s![.., part.start * length..part.end * length, ..]);
            let found =
                divided.suffix.run_beside(ids.slice(s![part.clone(), ..]), rows, ablations.fixed.view())?;
            let counted = counted.slice(s![part.clone(), ..]);
            losses.add(&found.loss, counted);
            divergences.add(&found.kl, counted);
            bar.inc((part.len() * length) as u64);
        }
    }
    bar.finish_and_clear();
    let found = keep.iter().zip(&cores).enumerate().map(|(index, (special_tokens, core))| {
        let own = 1 + index;
        let (loss, kl) = (|variant| losses.mean(variant), |variant| divergences.mean(variant));
        let ce_score = losses.score([CLEAN, zero, own]);
        InModel {
            model: model.to_owned(),
            hook: to.provenance().hook.clone(),
            contexts: contexts.len() as u64,
            context_length: length,
            predictions: losses.positions() as u64,
            special_tokens: *special_tokens,
            ce_loss_clean: loss(CLEAN),
            ce_loss_reconstructed: loss(own),
            ce_loss_zero: loss(zero),
            ce_loss_mean: loss(mean),
            ce_score,
            kl_reconstructed: kl(own),
            kl_zero: kl(zero),
            kl_mean: kl(mean),
            sae_bench: core.metrics(
                [loss(CLEAN), loss(zero), loss(own)],
                [kl(zero), kl(own)],
                contexts.len() * length,
            ),
        }
    });
    Ok(found.collect())
}

/// Whether the rows of special tokens are reconstructed: as asked for, or else as the autoencoder was trained.
fn special_tokens(sae: &Trained, arguments: &EvalArguments) -> SpecialTokens {
    arguments.special_tokens.unwrap_or(match sae.excludes_special_tokens() {
        true => SpecialTokens::Keep,
        false => SpecialTokens::Reconstruct,
    })
}

impl Divided {
    fn load(model: &str, from: &Store, to: &Store, threads: usize) -> Result<Divided> {
        let checkpoint = Checkpoint::open(&hub::model(model)?)?;
        let (known, found) = (&from.provenance().model_hash, checkpoint.hash()?);
        if !known.is_empty() && *known != found {
            bail!(
                "{} is not the model of {}, which is {} with weights of SHA-256 {}; these have {found}",
                foreign(model),
                foreign_path(from.path()),
                foreign(&from.provenance().model),
                foreign(known)
            );
        }
        let hook = |store: &Store| -> Result<HookPoint> {
            let name = &store.provenance().hook;
            name.parse().with_context(|| {
                format!(
                    "{} holds the tensor {} of an ONNX file, which has no rest to run",
                    foreign_path(store.path()),
                    foreign(name)
                )
            })
        };
        let (input, output) = (hook(from)?, hook(to)?);
        let hooks = if input == output { vec![output] } else { vec![output, input] };
        let runtime = Runtime::load(None)?;
        // Float32 on every device: differences of a thousandth of a nat matter here.
        let options =
            SessionOptions { threads, precision: Some(ModelPrecision::Full), ..SessionOptions::default() };
        Ok(Divided {
            prefix: PrefixModel::load(&runtime, &checkpoint, &hooks, &options)?,
            suffix: SuffixModel::load(&runtime, &checkpoint, output, &options)?,
            output: 0,
            input: hooks.len() - 1,
        })
    }

    /// The model's own rows, [contexts * length, d]: those that an autoencoder's replace, and those that it reads.
    fn rows(&mut self, ids: ArrayView2<'_, i64>) -> Result<(Array2<f32>, Array2<f32>)> {
        let found = self.prefix.run(ids)?;
        let rows = |hook: usize| -> Result<Array2<f32>> {
            let rows = found.rows(hook);
            let (contexts, length, width) = rows.dim();
            Ok(rows.to_owned().into_shape_with_order((contexts * length, width))?)
        };
        Ok((rows(self.output)?, rows(self.input)?))
    }
}

impl Ablations {
    fn new(store: &Store, suffix: &SuffixModel) -> Result<Ablations> {
        let mean_row: Array1<f32> = store.stats().mean.iter().map(|x| *x as f32).collect();
        let zeros = Array1::zeros(mean_row.len());
        // To the mean row of centred rows each position adds a mean of its own.
        let same: &[ArrayView1<'_, f32>] = match store.provenance().centered {
            true => &[zeros.view()],
            false => &[mean_row.view(), zeros.view()],
        };
        let fixed = suffix.everywhere(stack(Axis(0), same)?.view())?;
        let fixed = fixed.unwrap_or_else(|| Array2::zeros((0, suffix.vocabulary())));
        Ok(Ablations { mean_row, fixed })
    }

    /// The rows of those that are not fixed, each [n, d], where `residual` [n, 1] is what centring took off.
    fn variants(&self, residual: &Array2<f32>) -> Vec<Array2<f32>> {
        let mean = residual + &self.mean_row;
        let zeros = Array2::zeros(mean.dim());
        let mut all = vec![mean, zeros];
        all.truncate(2 - self.fixed.nrows());
        all
    }
}

/// So many contexts of the part that is evaluated on, evenly spread over the stores: numbers of stores and contexts.
fn chosen(data: &Data, count: u64) -> Vec<(usize, u64)> {
    let all: Vec<(usize, u64)> = data
        .stores
        .iter()
        .enumerate()
        .flat_map(|(number, store)| {
            data.part.contexts(store).into_iter().map(move |context| (number, context))
        })
        .collect();
    let count = usize::try_from(count).unwrap_or(all.len()).min(all.len());
    (0..count).map(|at| all[at * all.len() / count]).collect()
}

/// The tokens of contexts, [contexts, length].
fn tokens(data: &Data, contexts: &[(usize, u64)]) -> Result<Array2<u32>> {
    let mut tokens = Array2::zeros((0, data.stores[0].context_length()));
    for (store, context) in contexts {
        tokens.append(Axis(0), data.stores[*store].context_tokens(*context..context + 1)?.view())?;
    }
    Ok(tokens)
}

/// The mean of each row, [n, 1].
fn means(rows: &Array2<f32>) -> Array2<f32> {
    let mean = |row: ndarray::ArrayView1<'_, f32>| {
        (row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64) as f32
    };
    Array1::from_iter(rows.rows().into_iter().map(mean)).insert_axis(Axis(1))
}
