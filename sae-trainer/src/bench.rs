//! `sae-trainer bench`: the roofline of a training step on this machine.

use activation_store::{BatchStream, Store, StreamOptions};
use anyhow::{Context, Result, bail};
use ndarray::Array2;
use sae::{Sae, Weights};
use serde_json::json;
use terminal::foreign_path;

use crate::autoencoder::load_and_tell;
use crate::command::arguments::{ActivationChoice, BenchArguments};
use crate::command::selection::DEFAULT_BANDWIDTH;
use crate::engine::{
    self, Activation, BenchReport, Bound, Ceilings, CpuOptions, FrequencyPenalty, LossSpec, Mse, Penalty,
    StepSpec, ThresholdAverage,
};
use crate::report::table;

/// Times a step of the reference loss (approx-l0, min-sparsity, centered MSE, unit norm) and prints its parts.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let batch = usize::try_from(arguments.batch)?;
    let (spec, weights, rows) = match (&arguments.from, &arguments.store) {
        (Some(from), Some(store)) => {
            let Sae { weights, config, .. } = load_and_tell(from)?.folded();
            let activation = match (config.largest(), &weights.threshold) {
                (Some(k), _) => Activation::TopK { k },
                (None, Some(_)) => Activation::JumpRelu { bandwidth: DEFAULT_BANDWIDTH, to_input: false },
                (None, None) => Activation::Relu,
            };
            let spec = with_activation(reference_step(weights.d_in(), weights.d_sae(), batch), activation);
            spec.validate()?;
            let rows = first_batch(store, &spec)?;
            (spec, weights, rows)
        }
        _ => {
            let spec = reference_step(arguments.width, usize::try_from(arguments.features)?, batch);
            spec.validate()?;
            if !(0.0..=spec.features as f64).contains(&arguments.l0) {
                bail!("--l0 {}: a row has 0 to {} active features", arguments.l0, spec.features);
            }
            let (mut weights, rows) = engine::synthetic(&spec, arguments.l0, 0);
            let k = (arguments.l0.round() as usize).max(1);
            let activation = match arguments.activation {
                ActivationChoice::Relu => Activation::Relu,
                ActivationChoice::TopK => Activation::TopK { k },
                ActivationChoice::BatchTopK => {
                    Activation::BatchTopK { k, threshold: ThresholdAverage::default() }
                }
                ActivationChoice::JumpRelu => {
                    Activation::JumpRelu { bandwidth: engine::with_thresholds(&mut weights), to_input: false }
                }
            };
            if matches!(activation, Activation::TopK { .. } | Activation::BatchTopK { .. }) {
                // Which of them are active is not the bias' business.
                weights.b_enc.fill(0.0);
            }
            let spec = with_activation(spec, activation);
            spec.validate()?;
            (spec, weights, rows)
        }
    };
    let threads = arguments.threads.map_or(0, usize::from);
    let options = CpuOptions { threads, ..CpuOptions::default() };
    let report = engine::bench(&spec, &weights, rows.view(), options, usize::from(arguments.repeats))?;
    match arguments.json {
        true => terminal::report!("{}", serde_json::to_string_pretty(&as_json(&spec, &report))?),
        false => print(&spec, &weights, &report),
    }
    Ok(())
}

/// The step of the reference configuration at these sizes.
fn reference_step(width: usize, features: usize, batch: usize) -> StepSpec {
    let loss = LossSpec {
        penalty: Penalty::ApproxL0 { epsilon: 0.2 },
        coefficient: 7e-5,
        min_sparsity: Some(FrequencyPenalty { coefficient: 1e-6, target: 1e-5 }),
        ..LossSpec::reconstruction(Mse::Centered)
    };
    StepSpec::new(width, features, batch, loss)
}

/// The same with another activation, and the penalty that it has by default.
fn with_activation(spec: StepSpec, activation: Activation) -> StepSpec {
    let loss = match activation {
        Activation::Relu => spec.loss,
        Activation::TopK { .. } | Activation::BatchTopK { .. } => LossSpec::reconstruction(spec.loss.mse),
        Activation::JumpRelu { .. } => LossSpec { penalty: Penalty::Step, min_sparsity: None, ..spec.loss },
    };
    StepSpec { activation, loss, ..spec }
}

fn first_batch(store: &std::path::Path, spec: &StepSpec) -> Result<Array2<f32>> {
    let store = Store::open(store)?;
    if store.width() != spec.width {
        bail!(
            "{} has rows of {} numbers, the autoencoder takes {}",
            foreign_path(store.path()),
            store.width(),
            spec.width
        );
    }
    let options = StreamOptions { batch: spec.batch, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![store], options)?;
    Ok(stream.next_batch().context("reading a batch")?.to_owned())
}

/// The ceiling of products, where it is not that of all operations.
fn of_products(ceilings: &Ceilings) -> String {
    let own = ceilings.products != ceilings.operations;
    if own { format!(", {:.0} of products,", ceilings.products / 1e9) } else { String::new() }
}

fn print(spec: &StepSpec, weights: &Weights, report: &BenchReport) {
    terminal::report!(
        "B {}, d {}, F {}, L0 {:.1}; {} threads, {}; ceilings {:.0} GFLOP/s{} and {:.1} GB/s, measured",
        table::grouped(spec.batch as u64),
        weights.d_in(),
        table::grouped(weights.d_sae() as u64),
        report.l0,
        report.threads,
        report.isa,
        report.ceilings.operations / 1e9,
        of_products(&report.ceilings),
        report.ceilings.bytes / 1e9,
    );
    let mut rows =
        vec![["part", "ms", "GFLOP/s", "GB/s", "bound by", "share of it"].map(str::to_owned).to_vec()];
    rows.extend(report.rows.iter().map(|row| {
        vec![
            row.part.to_owned(),
            table::number(1e3 * row.seconds),
            format!("{:.1}", row.operation_rate() / 1e9),
            format!("{:.1}", row.byte_rate() / 1e9),
            bound(row.bound).to_owned(),
            format!("{:.0} %", 100.0 * row.share),
        ]
    }));
    terminal::report!("{}", table::columns(&rows).trim_end());
    terminal::report!(
        "{} path, {:.2} % of the pairs recomputed after screening; {} tokens/s",
        format!("{:?}", report.path).to_lowercase(),
        100.0 * report.rechecked,
        human_units::format_count(report.rows_per_second.round()),
    );
}

fn as_json(spec: &StepSpec, report: &BenchReport) -> serde_json::Value {
    let parts: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            json!({
                "part": row.part, "seconds": row.seconds, "operations": row.operations, "bytes": row.bytes,
                "bound": bound(row.bound), "share_of_bound": row.share,
            })
        })
        .collect();
    json!({
        "batch": spec.batch, "width": spec.width, "features": spec.features, "l0": report.l0,
        "threads": report.threads, "isa": report.isa, "path": format!("{:?}", report.path).to_lowercase(),
        "rechecked": report.rechecked, "operations_per_second_ceiling": report.ceilings.operations,
        "product_operations_per_second_ceiling": report.ceilings.products,
        "bytes_per_second_ceiling": report.ceilings.bytes, "tokens_per_second": report.rows_per_second,
        "parts": parts,
    })
}

fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::Arithmetic => "arithmetic",
        Bound::Memory => "memory",
    }
}
