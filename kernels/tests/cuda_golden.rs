//! The CUDA step, emulated, against PyTorch's autograd: 50 steps of every configuration in
//! `golden/steps.json` (every penalty, MSE, frequency term and decoder norm), on both paths.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use emulation::EmulatedDevice;
use kernels::cpu::{Parameters, transposed};
use kernels::cuda::plan::{Options, Path, Precision};
use kernels::cuda::step::CudaStep;
use kernels::step::{Schedule, StepSpec};
use safetensors::{Dtype, SafeTensors};

#[derive(serde::Deserialize)]
struct Case {
    spec: StepSpec,
    schedule: Vec<(f64, f64, f64)>,
}

fn golden(file: &str) -> Vec<u8> {
    let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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

fn single(numbers: Vec<f64>) -> Vec<f32> {
    numbers.into_iter().map(|v| v as f32).collect()
}

/// ‖got − expected‖ / ‖expected‖.
fn relative_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let squared: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (squared / expected.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

#[test]
fn fifty_steps_end_at_pytorchs_weights_in_every_configuration_on_both_paths() {
    let bytes = golden("steps.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let batches = single(tensor(&file, "batches"));
    let cases: BTreeMap<String, Case> = serde_json::from_slice(&golden("steps.json")).unwrap();
    let mut worst: (f64, String) = (0.0, String::new());
    for (name, Case { spec, schedule }) in &cases {
        let (d, f) = (spec.width, spec.features);
        let initial = Parameters {
            encoder: transposed(&single(tensor(&file, "initial/W_enc")), d, f),
            encoder_bias: single(tensor(&file, "initial/b_enc")),
            decoder: single(tensor(&file, "initial/W_dec")),
            decoder_bias: single(tensor(&file, "initial/b_dec")),
        };
        let losses = tensor(&file, &format!("{name}/loss"));
        for (path, precision) in [(Path::Sparse, Precision::Exact), (Path::Dense, Precision::Fp32)] {
            let sparse_density = if path == Path::Sparse { 1.0 } else { 0.0 };
            let mut device = EmulatedDevice::new();
            let options = Options { precision, sparse_density };
            let mut step = CudaStep::new(&mut device, *spec, options, &initial).unwrap();
            for ((batch, now), loss) in
                batches.chunks_exact(spec.batch * spec.width).zip(schedule).zip(&losses)
            {
                let (lr, coefficient_scale, epsilon_scale) = *now;
                let batch = device.holding(batch);
                let schedule = Schedule { lr, coefficient_scale, epsilon_scale };
                let stats = step.step(&mut device, &batch, &schedule).unwrap();
                assert_eq!(stats.path, path);
                let off = (stats.loss - loss).abs() / loss.abs();
                assert!(off < 1e-5, "{name} {path:?} step {}: {} {loss}", stats.step, stats.loss);
            }
            let weights = step.weights(&mut device).unwrap();
            let encoder = transposed(&weights.encoder, f, d);
            for (key, got) in [
                ("W_enc", &encoder),
                ("b_enc", &weights.encoder_bias),
                ("W_dec", &weights.decoder),
                ("b_dec", &weights.decoder_bias),
            ] {
                let expected = tensor(&file, &format!("{name}/weights/{key}"));
                let off = relative_difference(got, &expected);
                assert!(off < 1e-5, "{name} {path:?} {precision:?} {key}: {off:e}");
                if off > worst.0 {
                    worst = (off, format!("{name} {path:?} {key}"));
                }
            }
        }
    }
    println!("largest relative difference {:.1e} ({})", worst.0, worst.1);
}
