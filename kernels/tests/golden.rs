//! The float64 definition against PyTorch's autograd: 50 steps of every configuration in `golden/steps.json`, which
//! `golden/make.py` made.

use std::collections::BTreeMap;
use std::path::Path;

use kernels::reference::{
    Parameters, Trainer, forward, frequency_slopes, gradients, project_decoder_gradient,
};
use kernels::spec::{Schedule, StepSpec};
use safetensors::{Dtype, SafeTensors};

#[derive(serde::Deserialize)]
struct Case {
    spec: StepSpec,
    schedule: Vec<(f64, f64, f64)>,
}

fn golden(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_slice(&golden("steps.json")).unwrap()
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => data
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect(),
        Dtype::F64 => {
            data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}

fn parameters(file: &SafeTensors<'_>, prefix: &str) -> Parameters {
    Parameters {
        w_enc: tensor(file, &format!("{prefix}/W_enc")),
        b_enc: tensor(file, &format!("{prefix}/b_enc")),
        w_dec: tensor(file, &format!("{prefix}/W_dec")),
        b_dec: tensor(file, &format!("{prefix}/b_dec")),
    }
}

/// The largest difference, relative to the largest number expected.
fn difference(got: &Parameters, expected: &Parameters) -> f64 {
    let pairs = got.tensors().into_iter().zip(expected.tensors());
    pairs
        .map(|(got, expected)| {
            assert_eq!(got.len(), expected.len());
            let scale = expected.iter().fold(1e-300, |most: f64, v| most.max(v.abs()));
            let worst = got.iter().zip(expected).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
            assert!(got.iter().all(|v| v.is_finite()));
            worst / scale
        })
        .fold(0.0, f64::max)
}

#[test]
fn gradients_equal_autograd_in_every_configuration() {
    let bytes = golden("steps.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let initial = parameters(&file, "initial");
    let batches = tensor(&file, "batches");
    for (name, Case { spec, schedule }) in cases() {
        let x = &batches[..spec.batch * spec.width];
        let pass = forward(&spec, &initial, x);
        let frequencies: Vec<f64> = (0..spec.features)
            .map(|j| (0..spec.batch).filter(|i| pass.activations[i * spec.features + j] > 0.0).count())
            .map(|count| count as f64 / spec.batch as f64)
            .collect();
        // The batch holds a feature that is always on, some that never are, and some in between.
        assert!(frequencies.contains(&1.0) && frequencies.contains(&0.0));
        assert!(frequencies.iter().filter(|s| **s > 0.0 && **s < 1.0).count() > 5);
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        let (lr, coefficient_scale, epsilon_scale) = schedule[0];
        let schedule = Schedule { lr, coefficient_scale, epsilon_scale };
        let mut got = gradients(&spec, &schedule, &initial, x, &pass, &slopes);
        project_decoder_gradient(&spec, &initial, &mut got);
        let worst = difference(&got, &parameters(&file, &format!("{name}/gradients")));
        assert!(worst < 1e-10, "{name}: {worst:e}");
    }
}

#[test]
fn fifty_steps_end_at_the_weights_that_pytorch_reaches() {
    let bytes = golden("steps.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let initial = parameters(&file, "initial");
    let batches = tensor(&file, "batches");
    for (name, Case { spec, schedule }) in cases() {
        let mut trainer = Trainer::new(spec, initial.clone());
        let losses = tensor(&file, &format!("{name}/loss"));
        for ((batch, now), expected) in
            batches.chunks_exact(spec.batch * spec.width).zip(schedule).zip(&losses)
        {
            let (lr, coefficient_scale, epsilon_scale) = now;
            let loss = trainer.step(batch, &Schedule { lr, coefficient_scale, epsilon_scale }).total();
            assert!((loss - expected).abs() < 1e-9 * expected.abs(), "{name}: {loss} {expected}");
        }
        assert_eq!(trainer.steps, 50);
        let worst = difference(&trainer.weights, &parameters(&file, &format!("{name}/weights")));
        assert!(worst < 1e-9, "{name}: {worst:e}");
        assert!(difference(&trainer.weights, &initial) > 1e-2, "{name}: the weights did not move");
    }
}
