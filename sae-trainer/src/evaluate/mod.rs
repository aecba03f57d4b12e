//! Evaluates trained autoencoders on rows of the store.

use activation_store::{BatchStream, Store, StreamOptions};
use anyhow::Result;
use terminal::Interrupt;

use crate::command::settings::Settings;
use crate::engine::{Engine, Evaluation};
use crate::report::progress;
use crate::runs::input_scale::Scaler;

/// The order of evaluation is the same for every run on a store, whatever its seed.
const SEED: u64 = 0x6576_616c;

/// For each engine the sums over the first `--eval-rows` rows of a shuffled pass over the store, in whole batches; and
/// the rows of one pass. Training saw these rows too: no part of the store is set aside.
/// `None` if interrupted.
pub(crate) fn evaluate(
    engines: &mut [&mut dyn Engine],
    stores: &[Store],
    settings: &Settings,
    scaler: &mut Scaler,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Option<(Vec<Evaluation>, u64)>> {
    let options = StreamOptions { seed: SEED, ..stream_options(settings, threads) };
    let mut stream = BatchStream::new(stores.to_vec(), options)?;
    let rows = settings.eval_rows.min(stream.rows_per_epoch());
    let batch = settings.step.batch as u64;
    let batches = (rows / batch).max(1);
    let bar = progress::evaluation(batches * batch);
    let empty = |engine: &&mut dyn Engine| Evaluation::new(engine.spec().width, engine.spec().features);
    let mut evaluations: Vec<Evaluation> = engines.iter().map(empty).collect();
    for _ in 0..batches {
        if interrupt.requested().is_some() {
            return Ok(None);
        }
        let rows = scaler.apply(stream.next_batch()?.into());
        for (engine, evaluation) in engines.iter_mut().zip(&mut evaluations) {
            evaluation.merge(&engine.evaluate(rows.to_f32().view().into())?);
        }
        bar.inc(batch);
    }
    bar.finish_and_clear();
    Ok(Some((evaluations, stream.rows_per_epoch())))
}

/// The batches that training reads.
pub(crate) fn stream_options(settings: &Settings, threads: usize) -> StreamOptions {
    StreamOptions {
        batch: settings.step.batch,
        seed: settings.seed,
        mixing_chunks: settings.mixing_chunks,
        drop_bos: settings.drop_bos,
        threads,
        ..StreamOptions::default()
    }
}
