//! The text printed at the start and at the end of a run.

use std::path::Path;
use std::time::Duration;

use activation_store::{Store, StreamOptions};
use anyhow::Result;
use human_units::{format_count, format_duration};
use terminal::{foreign, foreign_path};

use crate::command::arguments::InputScaleChoice;
use crate::command::settings::{Cosine, Revive, Settings};
use crate::engine::compute::Compute;
use crate::engine::{Activation, DeadLoss, DeadLossKind, Penalty};
use crate::report::table::{columns, grouped, number, pairs, share};
use crate::runs::batches::Batches;
use crate::runs::folder::program;
use crate::runs::plan::RunPlan;
use crate::runs::record::{EvaluatedOn, EvaluatedRows, Summary};
use crate::runs::streams::Streams;

/// Prints what will be trained, on which data and on which hardware.
pub(crate) fn settings(plan: &RunPlan, streams: &Streams, compute: &Compute) -> Result<()> {
    let settings = plan.settings();
    let batches = &streams.training;
    let mut lines = data(plan, streams);
    lines.extend([
        ("autoencoder", autoencoder(settings)),
        ("loss", loss(settings)),
        ("training", format!("{}; lr {}", length(settings, batches), rate(settings))),
        ("engine", compute.describe(&[settings], stream_memory(plan, batches))?),
        ("run", format!("{}, seed {}", foreign_path(&plan.out), settings.seed)),
    ]);
    if let Some(path) = &settings.init_from {
        lines.push(("start", foreign_path(path).to_string()));
    }
    terminal::say!("{}\n{}", program(), pairs(&lines).trim_end());
    Ok(())
}

/// A setting in words.
type Describe = fn(&Settings) -> String;

/// The same for the points of the sweep in `out`: what they share, then how they differ.
pub(crate) fn sweep(out: &Path, plans: &[RunPlan], streams: &Streams, compute: &Compute) -> Result<()> {
    let (first, batches) = (&plans[0], &streams.training);
    let all: Vec<&Settings> = plans.iter().map(RunPlan::settings).collect();
    let descriptions: [(&str, Describe); 3] = [("autoencoder", autoencoder), ("loss", loss), ("lr", rate)];
    let (shared, differing): (Vec<_>, Vec<_>) = descriptions
        .into_iter()
        .partition(|(_, describe)| all.iter().all(|settings| describe(settings) == describe(all[0])));

    let mut lines = data(first, streams);
    lines.extend(shared.iter().map(|(name, describe)| (*name, describe(all[0]))));
    lines.push(("training", length(all[0], batches)));
    lines.push(("engine", compute.describe(&all, stream_memory(first, batches))?));
    let points = format!("{}: {} points at once, seed {}", foreign_path(out), plans.len(), all[0].seed);
    lines.push(("sweep", points));
    terminal::say!("{}\n{}", program(), pairs(&lines).trim_end());
    let rows: Vec<Vec<String>> = plans
        .iter()
        .map(|plan| {
            let name = plan.out.file_name().unwrap_or_default().to_string_lossy();
            let differences: Vec<String> =
                differing.iter().map(|(_, describe)| describe(plan.settings())).collect();
            vec![format!("    {name}"), differences.join("; ")]
        })
        .collect();
    terminal::say!("{}", columns(&rows).trim_end());
    Ok(())
}

/// The store, what is in it, and what becomes of its rows.
fn data(plan: &RunPlan, streams: &Streams) -> Vec<(&'static str, String)> {
    let provenance = plan.stores[0].provenance();
    let rows: u64 = plan.stores.iter().map(|store| store.rows()).sum();
    let centred = if provenance.centered { ", centred" } else { "" };
    let mut lines = vec![
        ("store", format!("{}: {} rows", paths(&plan.stores), grouped(rows))),
        ("activations", format!("{} of {}{centred}", foreign(&provenance.hook), foreign(&provenance.model))),
    ];
    if let Some(first) = plan.targets.first() {
        let hook = foreign(&first.provenance().hook);
        lines.push(("target", format!("{}: {hook}, for a transcoder", paths(&plan.targets))));
    }
    if let Some(left_out) = left_out(plan.settings()) {
        lines.push(("left out", left_out));
    }
    let EvaluatedRows { on, available } = streams.evaluated_rows();
    let available = grouped(available);
    let evaluation = match on {
        EvaluatedOn::HeldOutRows => format!("{available} rows, which are held out from training"),
        EvaluatedOn::OtherStores => format!("{available} rows of {}", paths(&plan.eval_stores)),
        EvaluatedOn::TrainingRows if plan.settings().rows.held_out > 0.0 => {
            "rows that training sees too: a store of one context is too small to hold any out".to_owned()
        }
        EvaluatedOn::TrainingRows => "rows that training sees too".to_owned(),
    };
    lines.push(("evaluation", evaluation));
    lines
}

fn paths(stores: &[Store]) -> String {
    let paths: Vec<String> = stores.iter().map(|store| foreign_path(store.path()).to_string()).collect();
    paths.join(", ")
}

/// `BOS, tokens 0 and 50256, norms over 10 times the median, 3012.5`
fn left_out(settings: &Settings) -> Option<String> {
    let rows = &settings.rows;
    let mut what = Vec::new();
    if settings.drop_bos {
        what.push("BOS".to_owned());
    }
    if !rows.drop_tokens.is_empty() {
        let tokens: Vec<String> = rows.drop_tokens.iter().map(u32::to_string).collect();
        what.push(format!("tokens {}", tokens.join(", ")));
    }
    if let (Some(times), Some(norm)) = (rows.max_norm, rows.largest_norm) {
        what.push(format!("norms over {norm:.4}, {times} times the median"));
    }
    (!what.is_empty()).then(|| format!("rows of {}", what.join("; ")))
}

/// `768 -> 24,576 features, decoder norm unit`
fn autoencoder(settings: &Settings) -> String {
    let step = &settings.step;
    let revival = match settings.revive {
        Revive::None => String::new(),
        Revive::Resample { every } => {
            format!(", dead features resampled every {} steps", grouped(every))
        }
    };
    let scale = match settings.input_scale {
        InputScaleChoice::None => "",
        InputScaleChoice::MeanNorm => ", rows scaled by their mean norm",
        InputScaleChoice::MeanSquare => ", rows scaled by their mean squared norm",
        InputScaleChoice::RowNorm => ", rows scaled each by its norm",
    };
    let activation = match step.activation {
        Activation::Relu => String::new(),
        Activation::TopK { k } => format!(", the {k} largest of a row"),
        Activation::BatchTopK { k, .. } => format!(", the {k} x rows largest of a batch"),
        Activation::JumpRelu { bandwidth, to_input } => {
            let input = if to_input { " and the encoder" } else { "" };
            format!(", thresholds trained{input} through a bandwidth of {}", short(short_f32(bandwidth)))
        }
    };
    let rank = if step.rank_by_decoder_norm { " by decoder norm" } else { "" };
    let prefixes = match step.prefixes.widths() {
        [] => String::new(),
        widths => {
            let widths: Vec<String> = widths.iter().map(|width| grouped(*width as u64)).collect();
            format!(", prefixes of {}", widths.join(", "))
        }
    };
    let panels = match step.panels {
        1 => String::new(),
        panels => format!(" in {panels} panels"),
    };
    format!(
        "{} -> {} features{panels}{activation}{rank}{prefixes}, decoder norm {}{}{scale}{revival}",
        step.width,
        grouped(step.features as u64),
        json_name(&step.decoder_norm),
        if step.pre_bias {
            ", pre-bias"
        } else if step.skip {
            ", skip connection"
        } else {
            ""
        }
    )
}

/// `4e-4`, or `4e-4 to 4e-5 along a cosine`.
fn rate(settings: &Settings) -> String {
    let lr = short(settings.lr);
    match settings.cosine {
        None => lr,
        Some(Cosine { end, cycles: 1 }) => format!("{lr} to {} along a cosine", short(end)),
        Some(Cosine { end, cycles }) => format!("{lr} to {} along {cycles} cosines", short(end)),
    }
}

/// How long training is, and how often it reads the store.
fn length(settings: &Settings, batches: &Batches) -> String {
    let tokens = settings.steps * settings.step.batch as u64;
    format!(
        "{} steps of {} rows = {} tokens, {} passes over the store",
        grouped(settings.steps),
        grouped(settings.step.batch as u64),
        format_count(tokens as f64),
        number(tokens as f64 / batches.rows_per_epoch() as f64)
    )
}

/// Bytes of memory for the rows read ahead: a block of chunks that is being mixed, the next one, and the
/// batches. (The pages of the store's files that the system keeps in memory are not counted; it takes them
/// back when it needs them.)
fn stream_memory(plan: &RunPlan, batches: &Batches) -> u64 {
    let chunk = |store: &Store| store.spec().layout.chunk_rows * store.width() * store.row_type().bytes();
    let largest = |stores: &[Store]| stores.iter().map(chunk).max().unwrap_or(0);
    let chunks = largest(&plan.stores) + largest(&plan.targets);
    let ahead = (StreamOptions::default().prefetch + 1) * batches.bytes();
    (2 * batches.mixing_chunks() * chunks + ahead) as u64
}

/// `approx-l0 7e-5 (epsilon 0.2), min-sparsity 1e-6 under 1e-5, centered MSE`
fn loss(settings: &Settings) -> String {
    let loss = &settings.step.loss;
    let parameter = match loss.penalty {
        Penalty::ApproxL0 { epsilon } | Penalty::Log { epsilon } => {
            let epsilons = settings.epsilon_scales.iter().map(|scale| short(scale * short_f32(epsilon)));
            format!(" (epsilon {})", epsilons.collect::<Vec<_>>().join(", "))
        }
        Penalty::Tanh { scale } => format!(" (scale {})", short(short_f32(scale))),
        Penalty::Quadratic { target } | Penalty::MeanQuadratic { target } => {
            format!(" (target L0 {})", short(short_f32(target)))
        }
        Penalty::L1 | Penalty::None | Penalty::Step => String::new(),
    };
    let mut text = match loss.penalty {
        Penalty::None => "none".to_owned(),
        _ => format!("{} {}{parameter}", settings.penalty_name(), short(loss.coefficient)),
    };
    if let Some(penalty) = &loss.min_sparsity {
        text += &format!(", min-sparsity {} under {}", short(penalty.coefficient), short(penalty.target));
    }
    if let Some(penalty) = &loss.max_sparsity {
        text += &format!(", max-sparsity {} over {}", short(penalty.coefficient), short(penalty.target));
    }
    for (name, coefficient) in [("mean density", loss.mean_density), ("log density", loss.log_density)] {
        if coefficient != 0.0 {
            text += &format!(", {name} {}", short(coefficient));
        }
    }
    if let Some(DeadLoss { after_steps, kind }) = settings.step.dead {
        let kind = match kind {
            DeadLossKind::AuxK { k, coefficient } => format!("aux-k {k} with {}", short(coefficient)),
            DeadLossKind::AuxKSum { k, coefficient } => {
                format!("aux-k {k} (sum) with {}", short(coefficient))
            }
            DeadLossKind::Ghost => "ghost gradients".to_owned(),
            DeadLossKind::PreActivation { coefficient } => format!("pre-activations {}", short(coefficient)),
        };
        text += &format!(", {kind} for features silent for {} steps", grouped(after_steps));
    }
    if let Some(clip) = settings.step.gradient_clip {
        text += &format!(", gradient at most {}", short(clip));
    }
    text + &format!(", {} MSE", json_name(&loss.mse))
}

/// As a person writes it: `7e-5`, `0.2`, `0.0004` as `4e-4`.
fn short(value: f64) -> String {
    if value != 0.0 && !(0.01..1e6).contains(&value.abs()) {
        format!("{value:e}")
    } else {
        format!("{value}")
    }
}

/// 0.2_f32 as 0.2, not as 0.20000000298.
fn short_f32(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The name that an enum has in files.
fn json_name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The result of a run in a few lines.
pub(crate) fn summary(summary: &Summary) -> String {
    let evaluation = &summary.evaluation;
    let metrics = &evaluation.metrics;
    let session = &summary.session;
    let lines = [
        (
            "L0",
            format!(
                "{} ± {} of {}",
                number(metrics.l0),
                number(metrics.l0_std),
                grouped(summary.features as u64)
            ),
        ),
        (
            "MSE",
            format!(
                "centered {}, uncentered {}, sum {}",
                number(metrics.mse_centered),
                number(metrics.mse_uncentered),
                number(metrics.mse_sum)
            ),
        ),
        (
            "explained variance",
            format!(
                "{}, uncentered {}",
                share(metrics.explained_variance),
                share(metrics.explained_variance_uncentered)
            ),
        ),
        ("dead features", format!("{} (silent in these rows)", grouped(metrics.dead_features as u64))),
        (
            "dense features",
            format!(
                "{} over 1 %, {} over 10 %, {} over 20 % of the rows",
                metrics.features_over_1_percent,
                metrics.features_over_10_percent,
                metrics.features_over_20_percent
            ),
        ),
        (
            "speed",
            format!(
                "{} tokens/s over {} steps in {}, {:.0} % of it waiting for the store",
                format_count(session.tokens_per_second.round()),
                grouped(session.steps),
                format_duration(Duration::from_secs_f64(session.seconds)),
                100.0 * session.waiting_seconds / session.seconds.max(1e-9)
            ),
        ),
        ("autoencoder", format!("{} (SAELens' format)", foreign_path(&summary.run.join("sae")))),
    ];
    let of = match evaluation.rows == evaluation.rows_available {
        true => format!("all {}", grouped(evaluation.rows)),
        false => format!("{} of {}", grouped(evaluation.rows), grouped(evaluation.rows_available)),
    };
    let subject = format!("{of} {}", evaluation.evaluated_on.words());
    // Without a penalty there is no coefficient to tell.
    let coefficient = match summary.coefficient {
        0.0 => String::new(),
        coefficient => format!(" {}", short(coefficient)),
    };
    format!(
        "{}{coefficient} after {} steps, on {subject}:\n{}",
        foreign(&summary.loss),
        grouped(summary.steps),
        pairs(&lines)
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn described(words: &[&str]) -> String {
        let line = ["sae-trainer", "--store", "s"].iter().chain(words);
        let arguments = crate::command::line::CommandLine::try_parse_from(line).unwrap().train.settings;
        loss(&Settings::resolve(&arguments, 768, None).unwrap())
    }

    #[test]
    fn a_loss_is_described_in_the_words_of_the_command_line() {
        assert_eq!(
            described(&[]),
            "approx-l0 7e-5 (epsilon 0.2), min-sparsity 1e-6 under 1e-5, centered MSE"
        );
        assert_eq!(described(&["--loss", "l1", "--mse", "sum"]), "l1 8e-5, sum MSE");
        assert_eq!(
            described(&["--epsilon", "0.2,0.1", "--min-sparsity-coefficient", "0"]),
            "approx-l0 7e-5 (epsilon 0.2, 0.1), centered MSE"
        );
        assert_eq!(
            described(&["--loss", "none", "--max-sparsity-coefficient", "2e-6"]),
            "none, max-sparsity 2e-6 over 0.1, centered MSE"
        );
    }
}
