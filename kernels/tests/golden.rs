//! The float64 definition against PyTorch's autograd: 50 steps of every configuration in [`Golden`].

use example_steps::Golden;
use kernels::reference::{
    Parameters, Trainer, clip_gradient, forward, frequency_slopes, gradients, project_decoder_gradient,
};
use kernels::spec::StepSpec;

fn parameters(golden: &Golden, prefix: &str, spec: &StepSpec) -> Parameters {
    let threshold = || golden.tensor(&format!("{prefix}/threshold")).to_vec();
    Parameters {
        w_enc: golden.tensor(&format!("{prefix}/W_enc")).to_vec(),
        b_enc: golden.tensor(&format!("{prefix}/b_enc")).to_vec(),
        w_dec: golden.tensor(&format!("{prefix}/W_dec")).to_vec(),
        b_dec: golden.tensor(&format!("{prefix}/b_dec")).to_vec(),
        threshold: spec.activation.has_thresholds().then(threshold).unwrap_or_default(),
        skip: Vec::new(),
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
    let golden = Golden::read();
    let batches = golden.tensor("batches");
    for (name, case) in &golden.cases {
        let spec = case.spec;
        let initial = parameters(&golden, "initial", &spec);
        let x = &batches[..spec.batch * spec.width];
        let pass = forward(&spec, &initial, x);
        let frequencies: Vec<f64> = (0..spec.features)
            .map(|j| (0..spec.batch).filter(|i| pass.activations[i * spec.features + j] > 0.0).count())
            .map(|count| count as f64 / spec.batch as f64)
            .collect();
        // The batch holds a feature that is always on, some that never are, and some in between.
        let between = frequencies.iter().filter(|s| **s > 0.0 && **s < 1.0).count();
        assert!(frequencies.contains(&1.0) && frequencies.contains(&0.0), "{name}");
        assert!(between > if spec.activation.is_relu() { 5 } else { 0 }, "{name}");
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        let schedule = case.schedule().next().unwrap();
        let mut got = gradients(&spec, &schedule, &initial, x.into(), &pass, &slopes);
        project_decoder_gradient(&spec, &initial, &mut got);
        clip_gradient(&spec, &mut got);
        let worst = difference(&got, &parameters(&golden, &format!("{name}/gradients"), &spec));
        assert!(worst < 1e-10, "{name}: {worst:e}");
    }
}

#[test]
fn fifty_steps_end_at_the_weights_that_pytorch_reaches() {
    let golden = Golden::read();
    let batches = golden.tensor("batches");
    for (name, case) in &golden.cases {
        let spec = case.spec;
        let initial = parameters(&golden, "initial", &spec);
        let mut trainer = Trainer::new(spec, initial.clone());
        let losses = golden.tensor(&format!("{name}/loss"));
        for ((batch, now), expected) in
            batches.chunks_exact(spec.batch * spec.width).zip(case.schedule()).zip(losses)
        {
            let loss = trainer.step(batch, &now).total();
            assert!((loss - expected).abs() < 1e-9 * expected.abs(), "{name}: {loss} {expected}");
        }
        assert_eq!(trainer.steps, losses.len() as u64);
        assert!(losses.len() >= 5);
        let worst = difference(&trainer.weights, &parameters(&golden, &format!("{name}/weights"), &spec));
        assert!(worst < 1e-9, "{name}: {worst:e}");
        assert!(difference(&trainer.weights, &initial) > 1e-2, "{name}: the weights did not move");
    }
}
