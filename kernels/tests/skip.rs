//! Transcoders with a skip connection: the CPU step against the float64 definition.

use example_steps::{batch, relative_difference, rows, spec, weights, wide};
use kernels::activation::Activation;
use kernels::batch::Batch;
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::parameters::{Parameters, transposed};
use kernels::prefixes::Prefixes;
use kernels::reference;
use kernels::spec::{Schedule, StepSpec};

fn definition(weights: &Parameters) -> reference::Parameters {
    let numbers = |tensor: ndarray::ArrayViewD<'_, f32>| wide(tensor.as_slice().unwrap());
    reference::Parameters {
        w_enc: numbers(transposed(weights.encoder.view()).view().into_dyn()),
        b_enc: numbers(weights.encoder_bias.view().into_dyn()),
        w_dec: numbers(weights.decoder.view().into_dyn()),
        b_dec: numbers(weights.decoder_bias.view().into_dyn()),
        threshold: weights.threshold.iter().flat_map(|tensor| numbers(tensor.view().into_dyn())).collect(),
        skip: weights.skip.iter().flat_map(|tensor| numbers(tensor.view().into_dyn())).collect(),
    }
}

#[test]
fn a_skip_connection_is_trained_as_the_definition_says() {
    // Wider than one task's rows of W_skip, and no multiple of it.
    let plain = StepSpec { skip: true, ..spec(70, 120, 90) };
    let prefixes = Prefixes::new(&[9, 50], 0.5).unwrap();
    for spec in [
        plain,
        StepSpec { pre_bias: false, gradient_clip: Some(1e-2), ..plain },
        StepSpec { prefixes, ..plain },
        StepSpec { activation: Activation::TopK { k: 5 }, prefixes, gradient_clip: Some(1e-2), ..plain },
    ] {
        for sparse_density in [1.0, -1.0] {
            let initial = weights(&spec, 1.0);
            let options = CpuOptions { sparse_density, ..CpuOptions::default() };
            let mut step = CpuStep::new(spec, options, initial.clone()).unwrap();
            let mut expected = reference::Trainer::new(spec, definition(&initial));
            for at in 0..6 {
                let (input, target) = (batch(&spec, at), rows(spec.batch, spec.width, 200 + at));
                let now = Schedule::constant(1e-3);
                let report = step.step(Batch { input: input.view(), target: target.view() }, &now).unwrap();
                let (x, y) = (wide(input.as_slice().unwrap()), wide(target.as_slice().unwrap()));
                let loss = expected.step(reference::Batch { input: &x, target: &y }, &now).total();
                let off = (report.terms.loss() - loss).abs() / loss.abs();
                assert!(off < 1e-5, "{spec:?} step {at}: {} {loss}", report.terms.loss());
            }
            let got = step.weights().unwrap();
            let skip = got.skip.as_ref().unwrap();
            let moved = relative_difference(skip.as_slice().unwrap(), &definition(&initial).skip);
            assert!(moved > 1e-3, "{spec:?}: W_skip did not move");
            let got = definition(&got);
            for (got, expected) in got.tensors().into_iter().zip(expected.weights.tensors()) {
                let got: Vec<f32> = got.iter().map(|v| *v as f32).collect();
                let off = relative_difference(&got, expected);
                assert!(off < 1e-5, "{spec:?} density {sparse_density}: {off:e}");
            }
        }
    }
}

#[test]
fn a_skip_connection_alone_reconstructs_what_is_linear() {
    let plain = spec(6, 4, 20);
    let spec = StepSpec { skip: true, pre_bias: false, ..plain };
    let mut initial = weights(&spec, 100.0).zeros_like();
    initial.encoder_bias.fill(-1.0);
    initial.skip = Some(rows(6, 6, 3));
    let mut step = CpuStep::new(spec, CpuOptions::default(), initial.clone()).unwrap();
    let x = rows(11, 6, 4);
    let expected = x.dot(&initial.skip.unwrap().t());
    let off = step.reconstruct(x.view()).unwrap() - expected;
    assert!(off.iter().all(|off| off.abs() < 1e-6), "{off}");
}
