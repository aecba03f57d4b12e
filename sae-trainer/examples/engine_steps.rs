//! Runs optimizer steps on given weights and batches and writes the results, for comparison with other implementations.
//!
//!     engine_steps CASE.json INPUT.safetensors OUTPUT.safetensors [SPARSE_DENSITY]
//!
//! CASE.json: `{"spec": StepSpec, "schedule": [[lr, coefficient scale, epsilon scale], …]}`. INPUT: `W_enc`
//! [d,F], `b_enc` [F], `W_dec` [F,d], `b_dec` [d] and `batches` [steps,B,d], float32. OUTPUT: the trained
//! weights under the same names, the gradients of the first step as `gradient/W_enc` … (from Adam's first
//! moments), and the metrics of each step under the names that metrics.jsonl gives them, [steps].

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytemuck::cast_slice;
use kernels::cpu::transposed;
use sae::Weights;
use sae_trainer::engine::{CpuEngine, CpuOptions, Engine, Schedule, StepSpec, StepStats};
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
    let weights = Weights {
        d_in: d,
        d_sae: f,
        w_enc: numbers(&input, "W_enc")?,
        b_enc: numbers(&input, "b_enc")?,
        w_dec: numbers(&input, "W_dec")?,
        b_dec: numbers(&input, "b_dec")?,
    };
    let mut options = CpuOptions::default();
    if let Some(density) = arguments.get(3) {
        options.sparse_density = density.parse()?;
    }
    let mut engine = CpuEngine::new(case.spec, &weights, options)?;

    let mut output = BTreeMap::new();
    let mut curves: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    let batches = numbers(&input, "batches")?;
    for (step, (batch, now)) in batches.chunks_exact(case.spec.batch * d).zip(&case.schedule).enumerate() {
        let (lr, coefficient_scale, epsilon_scale) = *now;
        let stats = engine.step(batch, &Schedule { lr, coefficient_scale, epsilon_scale })?;
        for (name, value) in metrics(&stats) {
            curves.entry(name).or_default().push(value as f32);
        }
        if step == 0 {
            let moments = engine.state()?.first_moments;
            let scale = (1.0 / (1.0 - case.spec.adam.beta1)) as f32;
            let gradient = |moment: Vec<f32>| moment.into_iter().map(|m| m * scale).collect();
            let encoder = transposed(&moments.encoder, f, d);
            output.insert("gradient/W_enc", (vec![d, f], gradient(encoder)));
            output.insert("gradient/b_enc", (vec![f], gradient(moments.encoder_bias)));
            output.insert("gradient/W_dec", (vec![f, d], gradient(moments.decoder)));
            output.insert("gradient/b_dec", (vec![d], gradient(moments.decoder_bias)));
        }
    }
    let weights = engine.weights()?;
    output.insert("W_enc", (vec![d, f], weights.w_enc));
    output.insert("b_enc", (vec![f], weights.b_enc));
    output.insert("W_dec", (vec![f, d], weights.w_dec));
    output.insert("b_dec", (vec![d], weights.b_dec));
    output.extend(curves.into_iter().map(|(name, curve)| (name, (vec![curve.len()], curve))));
    let views = output
        .iter()
        .map(|(name, (shape, data))| {
            Ok((*name, TensorView::new(Dtype::F32, shape.clone(), cast_slice(data))?))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, Path::new(&arguments[2]))?;
    Ok(())
}

fn metrics(stats: &StepStats) -> [(&'static str, f64); 14] {
    [
        ("loss", stats.loss),
        ("mse", stats.mse),
        ("penalty", stats.penalty),
        ("min_sparsity", stats.min_sparsity),
        ("l0", stats.l0),
        ("l0_std", stats.l0_std),
        ("l1", stats.l1),
        ("mse_sum", stats.mse_sum),
        ("mse_centered", stats.mse_centered),
        ("mse_uncentered", stats.mse_uncentered),
        ("explained_variance", stats.explained_variance),
        ("explained_variance_uncentered", stats.explained_variance_uncentered),
        ("cosine_similarity", stats.cosine_similarity),
        ("l2_ratio", stats.l2_ratio),
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
