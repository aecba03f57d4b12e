//! The rows that runs train on, and those that they are evaluated on.

use std::sync::Arc;

use activation_store::{Part, RowFilter, RowMask, Store, StreamOptions};
use anyhow::{Context, Result};
use terminal::foreign_path;

use crate::command::settings::Settings;
use crate::report::progress;
use crate::report::table::grouped;
use crate::runs::batches::Batches;
use crate::runs::plan::RunPlan;
use crate::runs::record::{EvaluatedOn, EvaluatedRows};

/// The order of evaluation is the same for every run on a store, whatever its seed.
pub(crate) const EVALUATION_SEED: u64 = 0x6576_616c;

/// The batches of runs that train on the same ones.
pub(crate) struct Streams {
    pub(crate) training: Batches,
    pub(crate) evaluation: Batches,
    on: EvaluatedOn,
}

impl Streams {
    /// Opens the streams of a run. Training reads batches `as_stored`, if that is half precision.
    pub(crate) fn open(plan: &RunPlan, threads: usize, as_stored: bool) -> Result<Streams> {
        let settings = plan.settings();
        let (held_out, on) = (settings.rows.held_out, plan.evaluated_on());
        let mask = mask(&plan.stores, settings)?;
        let open = |stores: &[Store], targets: &[Store], part, mask, seed, as_stored| {
            let rows = RowFilter {
                drop_bos: settings.drop_bos,
                drop_tokens: settings.rows.drop_tokens.clone(),
                part,
                mask,
            };
            let options = StreamOptions {
                batch: settings.step.batch,
                seed,
                mixing_chunks: settings.mixing_chunks,
                rows,
                threads,
                ..StreamOptions::default()
            };
            Batches::new(stores, targets, options, as_stored)
        };
        let part = Part::Training { held_out };
        // The rows of a pair are left out together, for what the input is.
        let training = open(&plan.stores, &plan.targets, part, mask.clone(), settings.seed, as_stored)
            .context("cannot read the store in batches")?;
        let (stores, targets, part, mask) = match on {
            EvaluatedOn::TrainingRows => (&plan.stores[..], &plan.targets[..], Part::All, mask),
            EvaluatedOn::HeldOutRows => {
                (&plan.stores[..], &plan.targets[..], Part::HeldOut { held_out }, mask)
            }
            EvaluatedOn::OtherStores => {
                (&plan.eval_stores[..], &[][..], Part::All, self::mask(&plan.eval_stores, settings)?)
            }
        };
        let evaluation =
            open(stores, targets, part, mask, EVALUATION_SEED, false).with_context(|| match on {
                EvaluatedOn::HeldOutRows => {
                    "cannot evaluate on the held-out rows; hold out more with --held-out"
                }
                _ => "cannot read the rows to evaluate on",
            })?;
        Ok(Streams { training, evaluation, on })
    }

    /// The rows of the evaluation.
    pub(crate) fn evaluated_rows(&self) -> EvaluatedRows {
        EvaluatedRows { on: self.on, available: self.evaluation.rows_per_epoch() }
    }
}

/// The rows of `stores` within the largest norm, if there is one: every row is read for it.
fn mask(stores: &[Store], settings: &Settings) -> Result<Option<Arc<RowMask>>> {
    let Some(limit) = settings.rows.largest_norm else { return Ok(None) };
    let rows = stores.iter().map(Store::rows).sum();
    let bar = progress::rows("looking for large norms", rows);
    let mask = RowMask::within_norm(stores, limit, |rows| bar.inc(rows))?;
    bar.finish_and_clear();
    let paths: Vec<String> = stores.iter().map(|store| foreign_path(store.path()).to_string()).collect();
    terminal::say!(
        "{} of the {} rows of {} have a norm over {limit:.4} and are left out",
        grouped(mask.left_out()),
        grouped(rows),
        paths.join(", ")
    );
    Ok(Some(Arc::new(mask)))
}
