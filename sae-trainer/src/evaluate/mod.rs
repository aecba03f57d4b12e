//! Evaluates trained autoencoders on rows that training has not seen.

use anyhow::Result;
use terminal::Interrupt;

use crate::command::settings::Settings;
use crate::engine::{Engine, Evaluation};
use crate::report::progress;
use crate::runs::batches::Batches;
use crate::runs::input_scale::Scaler;
use crate::runs::team::Team;

/// For each engine the sums over the first `--eval-rows` rows of `batches`, in whole batches. Where there are fewer rows than a
/// batch has, each of them counts once. `None` if interrupted.
pub(crate) fn evaluate(
    engines: &mut [&mut dyn Engine],
    batches: &mut Batches,
    settings: &Settings,
    scaler: &mut Scaler,
    team: &Team,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Evaluation>>> {
    let (batch, available) = (settings.step.batch as u64, batches.rows_per_epoch());
    let count = (settings.eval_rows.min(available) / batch).max(1);
    let rows = batch.min(available) as usize;
    let bar = progress::rows("evaluating", count * rows as u64);
    let empty = |engine: &&mut dyn Engine| Evaluation::new(engine.spec().width, engine.spec().features);
    let mut evaluations: Vec<Evaluation> = engines.iter().map(empty).collect();
    batches.seek(0)?;
    for _ in 0..count {
        if team.asked(interrupt.requested())?.is_some() {
            return Ok(None);
        }
        let batch = scaler.apply(team.agree(batches.next())?).to_f32();
        let batch = batch.first(rows);
        for (engine, evaluation) in engines.iter_mut().zip(&mut evaluations) {
            evaluation.merge(&engine.evaluate(batch)?);
        }
        bar.inc(rows as u64);
    }
    bar.finish_and_clear();
    Ok(Some(evaluations))
}
