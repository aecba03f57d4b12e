//! Runs optimizer steps on given weights and batches and writes the results, for comparison with other implementations.
//!
//!     engine_steps CASE.json INPUT.safetensors OUTPUT.safetensors [SPARSE_DENSITY]
//!
//! CASE.json: `{"spec": StepSpec, "schedule": [[lr, coefficient scale, epsilon scale], …]}`. INPUT: `W_enc`
//! [d,F], `b_enc` [F], `W_dec` [F,d], `b_dec` [d], for jump-relu `threshold` [F], with a skip connection
//! `W_skip` [d,d], `batches` [steps,B,d], and where the batches are not their own targets `targets` of the same shape, float32.
//! OUTPUT: the trained weights under the same names, the gradients of the first step as `gradient/W_enc` … (from Adam's first
//! moments), and the metrics of each step under the names that metrics.jsonl gives them, [steps].

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytemuck::cast_slice;
use kernels::batch::Batch;
use kernels::parameters::transposed;
use ndarray::{Array1, Array3, ArrayD, Axis};
use sae::{Optional, Weights};
use sae_trainer::engine::{CpuEngine, CpuOptions, Engine, Forward, Schedule, StepReport, StepSpec};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

#[derive(serde::Deserialize)]
struct Case {
    spec: StepSpec,
    schedule: Vec<(f64, f64, f64)>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!(
        (3..=4).contains(&arguments.len()),
        "usage: engine_steps CASE.json INPUT.safetensors OUTPUT.safetensors [SPARSE_DENSITY]"
    );
    let case: Case = serde_json::from_slice(&read(&arguments[0])?)?;
    let input = read(&arguments[1])?;
    let input = SafeTensors::deserialize(&input)?;
    let (d, f) = (case.spec.width, case.spec.features);
    let optional = Optional { thresholds: case.spec.activation.has_thresholds(), skip: case.spec.skip };
    let weights = Weights::from_numbers(d, f, optional, |name, _| numbers(&input, name))?;
    // Whoever compares asks for float32's precision; products of bfloat16 parts are of another class.
    let mut options = CpuOptions { split_products: false, ..CpuOptions::default() };
    if let Some(density) = arguments.get(3) {
        options.sparse_density = density.parse()?;
    }
    let mut engine = CpuEngine::new(case.spec, &weights, options)?;

    let mut output = BTreeMap::new();
    let mut curves: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    let rows = |name| {
        let shape = (case.schedule.len(), case.spec.batch, d);
        anyhow::Ok(Array3::from_shape_vec(shape, numbers(&input, name)?)?)
    };
    let batches = rows("batches")?;
    let targets = if input.tensor("targets").is_ok() { Some(rows("targets")?) } else { None };
    for (step, (input, now)) in batches.outer_iter().zip(&case.schedule).enumerate() {
        let batch = match &targets {
            Some(targets) => Batch { input, target: targets.index_axis(Axis(0), step) },
            None => input.into(),
        };
        let (lr, coefficient_scale, epsilon_scale) = *now;
        let report = engine.step(batch, &Schedule { lr, coefficient_scale, epsilon_scale })?;
        for (name, value) in metrics(&report) {
            curves.entry(name).or_default().push(value as f32);
        }
        if step == 0 {
            let moments = engine.state()?.first_moments;
            let scale = (1.0 / (1.0 - case.spec.adam.beta1)) as f32;
            output.insert("gradient/W_enc", scaled(transposed(moments.encoder.view()).into_dyn(), scale));
            output.insert("gradient/b_enc", scaled(moments.encoder_bias.into_dyn(), scale));
            output.insert("gradient/W_dec", scaled(moments.decoder.into_dyn(), scale));
            output.insert("gradient/b_dec", scaled(moments.decoder_bias.into_dyn(), scale));
            let threshold = moments.threshold.map(|threshold| scaled(threshold.into_dyn(), scale));
            output.extend(threshold.map(|threshold| ("gradient/threshold", threshold)));
            let skip = moments.skip.map(|skip| scaled(skip.into_dyn(), scale));
            output.extend(skip.map(|skip| ("gradient/W_skip", skip)));
        }
    }
    let weights = engine.weights()?;
    output.extend(weights.tensors().into_iter().map(|(name, tensor)| (name, tensor.to_owned())));
    output.extend(curves.into_iter().map(|(name, curve)| (name, Array1::from(curve).into_dyn())));
    let views = output
        .iter()
        .map(|(name, tensor)| {
            let numbers = cast_slice(tensor.as_slice().context("not row-major")?);
            Ok((*name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), numbers)?))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, Path::new(&arguments[2]))?;
    Ok(())
}

fn scaled(tensor: ArrayD<f32>, by: f32) -> ArrayD<f32> {
    tensor * by
}

fn metrics(report: &StepReport) -> [(&'static str, f64); 14] {
    let (terms, sums) = (&report.terms, &report.sums);
    [
        ("loss", terms.loss()),
        ("mse", terms.mse),
        ("penalty", terms.penalty),
        ("min_sparsity", terms.min_sparsity),
        ("l0", sums.l0()),
        ("l0_std", sums.l0_std()),
        ("l1", sums.l1()),
        ("mse_sum", sums.mse_sum()),
        ("mse_centered", sums.mse_centered()),
        ("mse_uncentered", sums.mse_uncentered()),
        ("explained_variance", sums.explained_variance()),
        ("explained_variance_uncentered", sums.explained_variance_uncentered()),
        ("cosine_similarity", sums.cosine_similarity()),
        ("l2_ratio", sums.l2_ratio()),
    ]
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read {path}"))
}

fn numbers(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let view = file.tensor(name).with_context(|| format!("no tensor {name} in the input"))?;
    ensure!(view.dtype() == Dtype::F32, "{name} is {:?}, not float32", view.dtype());
    Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
