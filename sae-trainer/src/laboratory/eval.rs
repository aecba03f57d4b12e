//! `sae-trainer eval`: trained autoencoders on rows that training has not seen, and in the language model that made them.

use std::path::PathBuf;

use activation_store::{Part, RowFilter, StreamOptions};
use anyhow::{Context, Result};
use kernels::parameters::transposed;
use serde::Serialize;
use terminal::{foreign, foreign_path};

use super::data::Data;
use super::in_model::{InModel, in_model};
use super::similarity::{mean_largest_with_another, unit_rows};
use super::sparsity::{self, CRITERIA, MEASURES, Sparsity};
use super::trained::Trained;
use crate::autoencoder::load;
use crate::command::arguments::EvalArguments;
use crate::engine::{CpuThreads, Evaluation};
use crate::report::progress;
use crate::report::table::{columns, grouped, number, share};
use crate::runs::batches::Batches;
use crate::runs::record::{Histogram, Metrics};
use crate::runs::streams::EVALUATION_SEED;

/// Rows that are encoded at once.
const BATCH: usize = 4096;

/// What is found of one autoencoder.
#[derive(Debug, Serialize)]
struct Evaluated {
    sae: PathBuf,
    architecture: String,
    width: usize,
    features: usize,
    decoder_norm_mean: f64,
    /// F² products, which the table does not show and does not wait for.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    crowding: Option<Crowding>,
    on_rows: OnRows,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_model: Option<InModel>,
}

/// How near features are to one another: means over the features of the largest cosine with another, under SAEBench's names.
#[derive(Debug, Serialize)]
struct Crowding {
    average_max_encoder_cosine_sim: f64,
    average_max_decoder_cosine_sim: f64,
}

/// The metrics on rows of a store.
#[derive(Debug, Serialize)]
struct OnRows {
    rows: u64,
    rows_available: u64,
    /// Of the contexts that runs on this store hold out, or of all.
    held_out: bool,
    #[serde(flatten)]
    metrics: Metrics,
    log10_frequency: Histogram,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparsity: Option<Sparsity>,
}

/// Evaluates each autoencoder and prints what is found.
pub(crate) fn eval(arguments: &EvalArguments) -> Result<()> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = arguments.threads.map_or_else(cores, usize::from);
    let threads = CpuThreads::new(count)?;
    let data = Data::open(arguments)?;
    let mut trained: Vec<Trained> =
        arguments.saes.iter().map(|folder| Trained::load(folder, &threads, BATCH)).collect::<Result<_>>()?;
    trained.iter().try_for_each(|sae| sae.check(&data.stores[0], data.targets.first()))?;

    let on_rows = on_rows(&mut trained, &data, arguments, count)?;
    let in_model = match &arguments.model {
        Some(model) => {
            in_model(&mut trained, &data, model, arguments, count)?.into_iter().map(Some).collect()
        }
        None => trained.iter().map(|_| None).collect::<Vec<_>>(),
    };
    let found = trained.iter().zip(on_rows.into_iter().zip(in_model));
    let found = found.map(|(sae, (on_rows, in_model))| {
        let (width, features) = sae.sizes();
        Ok(Evaluated {
            sae: sae.folder.clone(),
            architecture: sae.config.architecture.clone(),
            width,
            features,
            decoder_norm_mean: sae.decoder_norm_mean,
            crowding: if arguments.json { Some(Crowding::of(sae)?) } else { None },
            on_rows,
            in_model,
        })
    });
    let found = found.collect::<Result<Vec<_>>>()?;
    match arguments.json {
        true => terminal::report!("{}", serde_json::to_string(&found)?),
        false => terminal::report!("{}", text(&found).trim_end()),
    }
    Ok(())
}

fn on_rows(
    trained: &mut [Trained],
    data: &Data,
    arguments: &EvalArguments,
    threads: usize,
) -> Result<Vec<OnRows>> {
    let rows = RowFilter {
        drop_bos: arguments.drop_bos,
        drop_tokens: arguments.drop_tokens.clone(),
        part: data.part,
        mask: None,
    };
    let options =
        StreamOptions { batch: BATCH, seed: EVALUATION_SEED, rows, threads, ..StreamOptions::default() };
    let mut batches = Batches::new(&data.stores, &data.targets, options, false)
        .context("cannot read the rows to evaluate on; --held-out 0 takes all contexts")?;
    let available = batches.rows_per_epoch();
    let count = (arguments.rows.min(available) / BATCH as u64).max(1);
    let rows = available.min(BATCH as u64) as usize;
    let mut sums: Vec<Evaluation> =
        trained.iter().map(Trained::sizes).map(|(d, f)| Evaluation::new(d, f)).collect();
    let mut sparsity: Vec<sparsity::Sums> =
        trained.iter().map(|sae| sparsity::Sums::new(sae.sizes().1)).collect();
    let bar = progress::rows("evaluating", count * rows as u64);
    batches.seek(0)?;
    for _ in 0..count {
        let batch = batches.next()?.to_f32();
        let batch = batch.first(rows);
        for ((sae, sums), sparsity) in trained.iter_mut().zip(&mut sums).zip(&mut sparsity) {
            sums.merge(&sae.evaluate(batch)?);
            if arguments.sparsity_measures {
                sparsity.add(&sae.encode(batch.input)?);
            }
        }
        bar.inc(rows as u64);
    }
    bar.finish_and_clear();
    let found = sums.iter().zip(&sparsity).map(|(sums, sparsity)| OnRows {
        rows: sums.sums.rows,
        rows_available: available,
        held_out: data.part != Part::All,
        metrics: Metrics::of(sums),
        log10_frequency: Histogram::of(sums.feature_densities().into_iter()),
        sparsity: arguments.sparsity_measures.then(|| sparsity.sparsity()),
    });
    Ok(found.collect())
}

impl Crowding {
    fn of(sae: &Trained) -> Result<Crowding> {
        let weights = load(&sae.folder)?.weights;
        let mean = |rows| mean_largest_with_another(unit_rows(rows).view());
        Ok(Crowding {
            average_max_encoder_cosine_sim: mean(transposed(weights.w_enc.view())),
            average_max_decoder_cosine_sim: mean(weights.w_dec),
        })
    }
}

/// A table with a line for each autoencoder, and what was measured on.
fn text(found: &[Evaluated]) -> String {
    let mut head = vec![
        "autoencoder",
        "features",
        "L0",
        "MSE centered",
        "MSE sum",
        "explained variance",
        "dead",
        "over 10 %",
    ];
    let with_model = found.iter().any(|of| of.in_model.is_some());
    if with_model {
        head.extend(["cross-entropy", "CE score", "KL"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for of in found {
        let metrics = &of.on_rows.metrics;
        let mut row = vec![
            foreign_path(&of.sae).to_string(),
            grouped(of.features as u64),
            number(metrics.l0),
            number(metrics.mse_centered),
            number(metrics.mse_sum),
            share(metrics.explained_variance),
            grouped(metrics.dead_features as u64),
            grouped(metrics.features_over_10_percent as u64),
        ];
        if let Some(model) = &of.in_model {
            row.extend(
                [model.ce_loss_reconstructed, model.ce_score, model.kl_reconstructed]
                    .map(|mean| mean.to_string()),
            );
        }
        rows.push(row);
    }
    let mut text = columns(&rows);
    if let Some(first) = found.first() {
        let which = if first.on_rows.held_out { "held-out rows" } else { "rows" };
        text += &format!(
            "on {} of {} {which}; dead: silent in all of them\n",
            grouped(first.on_rows.rows),
            grouped(first.on_rows.rows_available)
        );
    }
    text += &sparsity_text(found);
    if let Some(model) = found.iter().find_map(|of| of.in_model.as_ref()) {
        text += &format!(
            "in {} at {}, on {} contexts of {} tokens: cross-entropy {} clean, {} with zeros, {} with the mean row (± standard error)\n",
            foreign(&model.model),
            foreign(&model.hook),
            grouped(model.contexts),
            model.context_length,
            model.ce_loss_clean,
            model.ce_loss_zero,
            model.ce_loss_mean
        );
    }
    text
}

/// A table with a line for each measure of sparsity and a column for each autoencoder, if they were asked for.
fn sparsity_text(found: &[Evaluated]) -> String {
    let mut head = vec!["sparsity".to_owned()];
    head.extend(CRITERIA.iter().map(|criterion| format!("{criterion:?}")));
    let mut rows = vec![head];
    rows.extend(MEASURES.iter().map(|measure| {
        let met = CRITERIA.iter().map(|criterion| if measure.meets.contains(criterion) { "x" } else { "" });
        [measure.name].into_iter().chain(met).map(str::to_owned).collect::<Vec<_>>()
    }));
    for (of, sparsity) in found.iter().filter_map(|of| Some((of, of.on_rows.sparsity.as_ref()?))) {
        let cells = [foreign_path(&of.sae).to_string()].into_iter().chain(sparsity.means().map(number));
        rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
    }
    match rows[0].len() > 1 + CRITERIA.len() {
        true => format!("\n{}\n", columns(&rows)),
        false => String::new(),
    }
}
