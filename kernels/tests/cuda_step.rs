//! Whole steps on the emulated device: against the float64 definition, and the step's own promises.

use emulation::{Buffer, EmulatedDevice, EmulatedDriver, on_a_gpu, run_again_sanitized};
use example_steps::{batch, relative_difference, rows, spec, weights, wide};
use kernels::activation::{Activation, ThresholdAverage};
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::cuda::plan::DeviceOptions;
use kernels::cuda::step::{CudaStep, Outcome};
use kernels::dead::{DeadLoss, DeadLossKind};
use kernels::error::StepError;
use kernels::loss::{LossSpec, Mse, Penalty};
use kernels::outcome::StepReport;
use kernels::parameters::{Parameters, transposed};
use kernels::path::Path;
use kernels::precision::Precision;
use kernels::prefixes::Prefixes;
use kernels::reference;
use kernels::spec::{DecoderNorm, Schedule, StepSpec};
use kernels::state::State;
use ndarray::{Array, Array2, Dimension};

fn options(path: Path, precision: Precision) -> DeviceOptions {
    DeviceOptions { precision, sparse_density: if path == Path::Sparse { 1.0 } else { 0.0 } }
}

/// A CPU engine whose products are all float32's, as the emulation's are.
fn cpu_step(spec: StepSpec) -> CpuStep {
    let options = CpuOptions { split_products: false, ..CpuOptions::default() };
    CpuStep::new(spec, options, weights(&spec, 0.0)).unwrap()
}

/// An autoencoder on its own device.
struct Run {
    device: EmulatedDevice,
    step: CudaStep<EmulatedDevice>,
}

impl Run {
    fn new(spec: StepSpec, options: DeviceOptions, weights: &Parameters, order: u32) -> Run {
        let mut device = EmulatedDevice::in_order(order);
        let step = CudaStep::new(&mut device, spec, options, weights.clone()).unwrap();
        Run { device, step }
    }

    fn upload(&mut self, batch: &Array2<f32>) -> Buffer {
        self.device.holding(batch.as_slice().unwrap())
    }

    fn step(&mut self, batch: &Array2<f32>) -> Result<StepReport, StepError> {
        let batch = self.upload(batch);
        self.step.step(&mut self.device, &batch, &Schedule::constant(1e-3))
    }

    fn steps(&mut self, steps: std::ops::Range<u64>) -> Vec<StepReport> {
        let spec = *self.step.spec();
        steps.map(|step| self.step(&batch(&spec, step)).unwrap()).collect()
    }

    fn state(&mut self) -> State {
        self.step.state(&mut self.device).unwrap()
    }

    /// What a refused step must leave alone; what it says about paths to take is remembered.
    fn trained(&mut self) -> State {
        State { path_choice: None, ..self.state() }
    }
}

/// Trains a few steps and holds weights and moments against the float64 definition's.
fn follow_the_definition(spec: StepSpec, options: DeviceOptions, shift: f32, steps: u64, tolerance: f64) {
    println!("biases less {shift}");
    follow_the_definition_from(&weights(&spec, shift), spec, options, steps, tolerance);
}

fn follow_the_definition_from(
    initial: &Parameters,
    spec: StepSpec,
    options: DeviceOptions,
    steps: u64,
    tolerance: f64,
) {
    let mut run = Run::new(spec, options, initial, 0);
    let mut definition = reference::Trainer::new(
        spec,
        reference::Parameters {
            w_enc: wide(numbers(&transposed(initial.encoder.view()))),
            b_enc: wide(numbers(&initial.encoder_bias)),
            w_dec: wide(numbers(&initial.decoder)),
            b_dec: wide(numbers(&initial.decoder_bias)),
            threshold: initial.threshold.as_ref().map_or_else(Vec::new, |threshold| wide(numbers(threshold))),
            skip: Vec::new(),
        },
    );
    for step in 0..steps {
        let x = batch(&spec, step);
        let got = run.step(&x).unwrap().terms.loss();
        let loss = definition.step(&wide(numbers(&x))[..], &Schedule::constant(1e-3)).total();
        let off = (got - loss).abs() / loss.abs();
        assert!(off <= tolerance, "{spec:?} {options:?} step {step}: {got} {loss}");
    }
    let state = run.state();
    for (name, got, expected) in [
        ("weights", &state.weights, &definition.weights),
        ("first moments", &state.first_moments, &definition.first),
        ("second moments", &state.second_moments, &definition.second),
    ] {
        for (key, got, expected) in [
            ("encoder", numbers(&transposed(got.encoder.view())), &expected.w_enc),
            ("encoder bias", numbers(&got.encoder_bias), &expected.b_enc),
            ("decoder", numbers(&got.decoder), &expected.w_dec),
            ("decoder bias", numbers(&got.decoder_bias), &expected.b_dec),
            ("threshold", got.threshold.as_ref().map_or(&[], numbers), &expected.threshold),
        ] {
            let off = relative_difference(got, expected);
            assert!(off <= tolerance, "{spec:?} {options:?}: {name} of {key}: {off:e}");
        }
    }
}

/// An array's numbers, row by row.
fn numbers<D: Dimension>(array: &Array<f32, D>) -> &[f32] {
    array.as_slice().unwrap()
}

/// A shift of the biases that leaves no, some, many or all activations.
const SHIFTS: [f32; 4] = [1e3, 4.0, 0.0, -30.0];

#[test]
fn odd_sizes_follow_the_definition_with_any_share_of_activations() {
    for (d, f, b) in [(1, 1, 2), (3, 17, 5), (20, 40, 33), (65, 33, 131), (64, 30, 64)] {
        for shift in SHIFTS {
            for path in [Path::Sparse, Path::Dense] {
                // One component leaves nothing of a projected gradient but rounding, which Adam would follow.
                let decoder_norm = if d == 1 { DecoderNorm::Free } else { DecoderNorm::Tied };
                let spec = StepSpec { pre_bias: false, decoder_norm, ..spec(d, f, b) };
                follow_the_definition(spec, options(path, Precision::Fp32), shift, 2, 1e-5);
            }
        }
    }
}

/// A spec of thresholds with every part of their gradients; near pairs are about as many as active ones.
fn jump_spec(width: usize, features: usize, batch: usize) -> StepSpec {
    let spec = spec(width, features, batch);
    let penalty = Penalty::Quadratic { target: 3.0 };
    StepSpec {
        activation: Activation::JumpRelu { bandwidth: 1.5, to_input: true },
        loss: LossSpec { penalty, weight_by_decoder_norm: false, ..spec.loss },
        ..spec
    }
}

#[test]
fn thresholds_follow_the_definition_with_any_share_of_pairs() {
    for (d, f, b) in [(3, 17, 5), (20, 40, 33), (65, 33, 131)] {
        for shift in SHIFTS {
            for path in [Path::Sparse, Path::Dense] {
                follow_the_definition(jump_spec(d, f, b), options(path, Precision::Fp32), shift, 2, 2e-5);
            }
        }
    }
    // Penalties on the activations, of which near pairs have a part too.
    let of_values = |weighted| {
        let mut spec = StepSpec { decoder_norm: DecoderNorm::Free, ..jump_spec(20, 40, 33) };
        spec.loss.penalty = Penalty::Tanh { scale: 0.7 };
        spec.loss.weight_by_decoder_norm = weighted;
        spec
    };
    for (weighted, path) in [(false, Path::Sparse), (true, Path::Sparse), (true, Path::Dense)] {
        follow_the_definition(of_values(weighted), options(path, Precision::Exact), 1.0, 3, 2e-5);
    }
    // Segments, and rows too wide for four components a thread.
    follow_the_definition(jump_spec(20, 9, 300), options(Path::Sparse, Precision::Exact), -1.0, 2, 2e-5);
    for path in [Path::Sparse, Path::Dense] {
        let without = LossSpec { penalty: Penalty::Step, ..LossSpec::reconstruction(Mse::Centered) };
        let wide = StepSpec { loss: without, ..jump_spec(1025, 9, 5) };
        follow_the_definition(wide, options(path, Precision::Fp32), 0.0, 1, 2e-5);
    }
}

#[test]
fn screened_thresholds_equal_a_float32_run_bit_for_bit() {
    let run = |precision, order| {
        let spec = jump_spec(35, 150, 130);
        let mut run = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 2.0), order);
        let reports = run.steps(0..4);
        let same = |report: StepReport| StepReport { rechecked: 0.0, ..report };
        let rechecked: Vec<f64> = reports.iter().map(|report| report.rechecked).collect();
        (reports.into_iter().map(same).collect::<Vec<_>>(), run.state(), rechecked)
    };
    let (plain, screened) = (run(Precision::Fp32, 0), run(Precision::Exact, 0));
    assert!(plain.0 == screened.0 && plain.1 == screened.1);
    for ((exact, more), report) in plain.2.iter().zip(&screened.2).zip(&plain.0) {
        // Active and near pairs are the float32 run's candidates, the screen's are a few more.
        assert!(exact <= more && *more < 1.2 * exact && 1.1 * report.sums.density() < *exact);
    }
    for order in [1, 3, 12_345] {
        let other = run(Precision::Exact, order);
        assert!(other.0 == screened.0 && other.1 == screened.1, "order {order}");
    }
}

#[test]
fn thresholds_of_a_resumed_run_go_on_bit_for_bit() {
    let spec = jump_spec(20, 60, 40);
    for path in [Path::Sparse, Path::Dense] {
        let run = || Run::new(spec, options(path, Precision::Exact), &weights(&spec, 1.0), 0);
        let (mut whole, mut first, mut second) = (run(), run(), run());
        let all = whole.steps(0..5);
        first.steps(0..2);
        let state = first.state();
        assert!(state.weights.threshold != weights(&spec, 1.0).threshold);
        second.step.restore(&mut second.device, &state).unwrap();
        assert!(second.state() == state);
        assert_eq!(second.steps(2..5), all[2..]);
        assert!(second.state() == whole.state());
    }
}

#[test]
fn near_pairs_count_where_lists_are_chosen() {
    // Lists for the active pairs, but not for the near ones: what a dense step finds does not call for the sparse path.
    let spec = jump_spec(20, 60, 40);
    let mut sparse = Run::new(spec, options(Path::Sparse, Precision::Fp32), &weights(&spec, 3.0), 0);
    let report = sparse.step(&batch(&spec, 0)).unwrap();
    let (active, listed) = (report.sums.density(), report.rechecked);
    assert!(2.0 * active < listed, "{active} {listed}");
    let with_lists = |sparse_density| {
        let options = DeviceOptions { precision: Precision::Fp32, sparse_density };
        let mut run = Run::new(spec, options, &weights(&spec, 3.0), 0);
        run.steps(0..4).last().unwrap().path
    };
    assert_eq!((with_lists(1.5 * active), with_lists(4.0 * listed)), (Path::Dense, Path::Sparse));
}

fn top_k(k: usize, spec: StepSpec) -> StepSpec {
    StepSpec { activation: Activation::TopK { k }, ..spec }
}

#[test]
fn the_largest_of_each_row_follow_the_definition() {
    for ((d, f, b), k) in [((3, 17, 5), 4), ((20, 40, 33), 1), ((20, 40, 33), 40), ((65, 33, 131), 5)] {
        // More features above 0 than are selected, and fewer.
        for shift in [4.0, 0.0, -30.0] {
            for precision in [Precision::Exact, Precision::Fp32] {
                let options = options(Path::Dense, precision);
                follow_the_definition(top_k(k, spec(d, f, b)), options, shift, 2, 2e-5);
            }
        }
    }
    // Segments of features that are active in most rows, and a gradient that is clipped.
    let free = StepSpec { decoder_norm: DecoderNorm::Free, ..spec(20, 9, 300) };
    follow_the_definition(top_k(6, free), options(Path::Sparse, Precision::Exact), -3.0, 2, 1e-5);
    let clipped = StepSpec { gradient_clip: Some(0.01), ..spec(20, 40, 33) };
    follow_the_definition(top_k(7, clipped), options(Path::Sparse, Precision::Exact), 0.0, 2, 1e-5);
    follow_the_definition(top_k(7, spec(35, 60, 70)), options(Path::Sparse, Precision::Bf16), 0.5, 2, 5e-2);
}

#[test]
fn selections_from_rough_z_equal_a_float32_run_bit_for_bit() {
    let run = |precision, order| {
        let spec = top_k(9, spec(35, 150, 130));
        let mut run = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 0.0), order);
        (run.steps(0..4), run.state())
    };
    let expected = run(Precision::Fp32, 0);
    assert!(expected.0.iter().all(|report| report.path == Path::Sparse && report.sums.active == 9 * 130));
    for (precision, order) in [(Precision::Exact, 0), (Precision::Exact, 3), (Precision::Fp32, 12_345)] {
        assert!(run(precision, order) == expected, "{precision:?} in order {order}");
    }
    // Evaluations of a part of a batch select from it alone.
    let spec = top_k(9, spec(35, 150, 130));
    let mut run = Run::new(spec, options(Path::Sparse, Precision::Exact), &weights(&spec, 0.0), 0);
    let rows = run.upload(&batch(&spec, 0));
    let evaluation = run.step.evaluate(&mut run.device, &rows, 37).unwrap();
    assert_eq!((evaluation.sums.active, evaluation.sums.rows), (9 * 37, 37));
}

fn batch_top_k(k: usize, spec: StepSpec) -> StepSpec {
    let threshold = ThresholdAverage { rate: 0.25, skipped_steps: 1, from_zero: false };
    StepSpec { activation: Activation::BatchTopK { k, threshold }, ..spec }
}

#[test]
fn the_largest_of_each_batch_follow_the_definition() {
    for ((d, f, b), k) in [((3, 17, 5), 4), ((20, 40, 33), 1), ((20, 40, 33), 40), ((65, 33, 131), 5)] {
        // More pairs above 0 than are selected, and fewer.
        for shift in [4.0, 0.0, -30.0] {
            for precision in [Precision::Exact, Precision::Fp32] {
                let options = options(Path::Dense, precision);
                follow_the_definition(batch_top_k(k, spec(d, f, b)), options, shift, 2, 2e-5);
            }
        }
    }
    // Segments of features that are active in most rows, and a gradient that is clipped.
    let free = StepSpec { decoder_norm: DecoderNorm::Free, ..spec(20, 9, 300) };
    follow_the_definition(batch_top_k(6, free), options(Path::Sparse, Precision::Exact), -3.0, 2, 1e-5);
    let clipped = StepSpec { gradient_clip: Some(0.01), ..spec(20, 40, 33) };
    follow_the_definition(batch_top_k(7, clipped), options(Path::Sparse, Precision::Exact), 0.0, 2, 1e-5);
    let rounded = batch_top_k(7, spec(35, 60, 70));
    follow_the_definition(rounded, options(Path::Sparse, Precision::Bf16), 0.5, 2, 5e-2);
}

#[test]
fn selections_of_a_batch_from_rough_z_equal_a_float32_run() {
    let run = |precision, order| {
        let spec = batch_top_k(9, spec(35, 150, 130));
        let mut run = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 0.0), order);
        (run.steps(0..4), run.state())
    };
    let expected = run(Precision::Fp32, 0);
    assert!(expected.0.iter().all(|report| report.path == Path::Sparse && report.sums.active == 9 * 130));
    // Rows have what they have: the selection is one of the batch.
    assert!(expected.0.iter().all(|report| report.sums.active_squared > 81 * 130));
    assert!(expected.1.threshold.is_some());
    for (precision, order) in [(Precision::Exact, 0), (Precision::Exact, 3), (Precision::Fp32, 12_345)] {
        assert!(run(precision, order) == expected, "{precision:?} in order {order}");
    }
}

#[test]
fn the_threshold_of_a_batch_is_the_cpu_engines_and_evaluates() {
    let spec = batch_top_k(9, spec(35, 150, 130));
    for precision in [Precision::Exact, Precision::Fp32] {
        let mut run = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 0.0), 0);
        let mut cpu = cpu_step(spec);
        for step in 0..4 {
            // One threshold of 0 at first, at which more pairs are active than lists of a step hold; then what is learned.
            let others = batch(&spec, 100 + step);
            let expected = cpu.evaluate(others.view().into()).unwrap();
            let uploaded = run.upload(&others);
            let got = run.step.evaluate(&mut run.device, &uploaded, spec.batch).unwrap();
            assert_eq!((got.sums.active, &got.firings), (expected.sums.active, &expected.firings));
            let off = (got.sums.squared_error - expected.sums.squared_error).abs();
            assert!(off < 1e-5 * expected.sums.squared_error);
            assert_eq!(got.sums.active > 2 * 9 * 130, step < 2, "{}", got.sums.active);
            let encoded = run.step.encode(&mut run.device, &uploaded, 37).unwrap();
            let expected = cpu.encode(others.slice(ndarray::s![..37, ..])).unwrap();
            assert_eq!((encoded.row_starts, encoded.features), (expected.row_starts, expected.features));

            run.step(&batch(&spec, step)).unwrap();
            cpu.step(batch(&spec, step).view().into(), &Schedule::constant(1e-3)).unwrap();
            let (got, expected) = (run.step.threshold(), cpu.threshold());
            assert_eq!((got.is_some(), expected.is_some()), (step > 0, step > 0));
            for (got, expected) in got.into_iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5 * expected, "step {step}: {got} {expected}");
            }
        }
        // A step that is refused leaves it alone; a run that is resumed goes on with it.
        let (before, mut bad) = (run.trained(), batch(&spec, 5));
        bad[[3, 4]] = f32::NAN;
        assert!(matches!(run.step(&bad), Err(StepError::NonFiniteRow { row: 3 })));
        assert!(run.trained() == before);
        let mut resumed = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 3.0), 0);
        resumed.step.restore(&mut resumed.device, &run.state()).unwrap();
        assert_eq!(resumed.steps(5..7), run.steps(5..7));
        assert!(resumed.state() == run.state());
    }
}

/// A spec whose dead features have a loss; most features of a selection are dead after a few steps.
fn auxiliary(kind: DeadLossKind, spec: StepSpec) -> StepSpec {
    StepSpec { dead: Some(DeadLoss { after_steps: 1, kind }), ..spec }
}

const AUX_KINDS: [fn(usize) -> DeadLossKind; 2] =
    [|k| DeadLossKind::AuxK { k, coefficient: 0.3 }, |k| DeadLossKind::AuxKSum { k, coefficient: 0.3 }];

#[test]
fn an_auxiliary_loss_over_dead_features_follows_the_definition() {
    for kind in AUX_KINDS {
        let (exact, plain) = (Precision::Exact, Precision::Fp32);
        for ((d, f, b), k_aux, precision) in [
            ((3, 17, 5), 2, exact),
            ((20, 70, 33), 7, plain),
            ((20, 70, 33), 90, exact),
            ((65, 90, 131), 3, plain),
        ] {
            for spec in [top_k(2, spec(d, f, b)), batch_top_k(2, spec(d, f, b))] {
                let options = options(Path::Sparse, precision);
                follow_the_definition(auxiliary(kind(k_aux), spec), options, 0.0, 3, 3e-5);
            }
        }
        let options = options(Path::Sparse, Precision::Exact);
        // Segments, of pairs of both kinds; a gradient that is clipped; every MSE; weights of the penalty.
        for mse in [Mse::Sum, Mse::Centered, Mse::Uncentered] {
            let mut of_mse = StepSpec { decoder_norm: DecoderNorm::Free, ..top_k(2, spec(20, 12, 300)) };
            of_mse.loss.mse = mse;
            of_mse.loss.weight_by_decoder_norm = true;
            follow_the_definition(auxiliary(kind(5), of_mse), options, -3.0, 4, 3e-5);
        }
        let clipped = StepSpec { gradient_clip: Some(0.01), pre_bias: false, ..top_k(3, spec(20, 40, 33)) };
        follow_the_definition(auxiliary(kind(5), clipped), options, 0.0, 4, 3e-5);
        // Nothing is dead yet; and a batch of one row, whose error has no spread.
        let never = DeadLoss { after_steps: 100, kind: kind(5) };
        follow_the_definition(
            StepSpec { dead: Some(never), ..top_k(3, spec(20, 40, 33)) },
            options,
            0.0,
            3,
            2e-5,
        );
        let sum = LossSpec { mse: Mse::Sum, ..spec(20, 40, 1).loss };
        let one = StepSpec { loss: sum, ..top_k(3, spec(20, 40, 1)) };
        follow_the_definition(auxiliary(kind(5), one), options, 0.0, 4, 3e-5);
    }
}

#[test]
fn each_step_with_dead_features_is_the_cpu_engines() {
    for kind in AUX_KINDS {
        let nested = Prefixes::new(&[20, 90], 0.4).unwrap();
        let plain = auxiliary(kind(12), batch_top_k(3, spec(35, 150, 130)));
        for spec in [plain, StepSpec { prefixes: nested, rank_by_decoder_norm: true, ..plain }] {
            let mut run = Run::new(spec, options(Path::Sparse, Precision::Exact), &weights(&spec, 0.0), 0);
            let mut cpu = cpu_step(spec);
            for step in 0..5 {
                // From the same state: what differs is the arithmetic of one step.
                run.step.restore(&mut run.device, &cpu.state().unwrap()).unwrap();
                let got = run.step(&batch(&spec, step)).unwrap();
                let expected = cpu.step(batch(&spec, step).view().into(), &Schedule::constant(1e-3)).unwrap();
                assert_eq!((got.sums.active, got.terms.dead > 0.0), (expected.sums.active, step > 1));
                for (got, expected) in
                    [(got.terms.dead, expected.terms.dead), (got.terms.mse, expected.terms.mse)]
                {
                    assert!(
                        (got - expected).abs() <= 2e-6 * expected,
                        "step {step} of {:?}: {got} {expected}",
                        spec.dead
                    );
                }
                let (got, expected) = (run.state(), cpu.state().unwrap());
                assert_eq!(got.steps_since_fired, expected.steps_since_fired);
                let off = relative_difference(
                    numbers(&got.weights.encoder),
                    &wide(numbers(&expected.weights.encoder)),
                );
                assert!(off < 2e-6, "step {step}: {off:e}");
            }
        }
    }
}

#[test]
fn features_ranked_by_decoder_norms_follow_the_definition() {
    let ranked =
        |spec: StepSpec| StepSpec { rank_by_decoder_norm: true, decoder_norm: DecoderNorm::Free, ..spec };
    let everywhere: &[f32] = &[2.0, 0.0, -30.0];
    for ((d, f, b), shifts) in [((3, 17, 5), everywhere), ((20, 70, 33), everywhere), ((65, 90, 131), &[0.0])]
    {
        for &shift in shifts {
            for precision in [Precision::Exact, Precision::Fp32] {
                let options = options(Path::Sparse, precision);
                for spec in [top_k(3, spec(d, f, b)), batch_top_k(3, spec(d, f, b))] {
                    follow_the_definition(ranked(spec), options, shift, 3, 3e-5);
                    let auxiliary = auxiliary(AUX_KINDS[f % 2](4), spec);
                    follow_the_definition(ranked(auxiliary), options, shift, 4, 3e-5);
                }
            }
        }
    }
    follow_the_definition(
        ranked(batch_top_k(7, spec(35, 60, 70))),
        options(Path::Sparse, Precision::Bf16),
        0.5,
        2,
        5e-2,
    );
}

#[test]
fn prefixes_follow_the_definition() {
    let nested =
        |widths: &[usize], spec: StepSpec| StepSpec { prefixes: Prefixes::new(widths, 0.4).unwrap(), ..spec };
    for (d, f, b) in [(3, 17, 5), (20, 70, 33), (65, 90, 131)] {
        let of_widths = [(&[1][..], Precision::Exact), (&[2, 3, f / 2, f - 1], Precision::Fp32)];
        for (widths, precision) in of_widths {
            let options = options(Path::Sparse, precision);
            for spec in [top_k(3, spec(d, f, b)), batch_top_k(3, spec(d, f, b))] {
                follow_the_definition(nested(widths, spec), options, 0.0, 2, 3e-5);
            }
            let both = auxiliary(AUX_KINDS[f % 2](4), batch_top_k(2, spec(d, f, b)));
            let ranked = StepSpec { rank_by_decoder_norm: true, gradient_clip: Some(0.1), ..both };
            follow_the_definition(nested(widths, ranked), options, 0.0, 3, 3e-5);
        }
    }
    let options = |precision| options(Path::Sparse, precision);
    // Segments, every MSE, weights of the penalty, rows too wide for four components a thread.
    for mse in [Mse::Sum, Mse::Centered, Mse::Uncentered] {
        let mut spec = StepSpec { decoder_norm: DecoderNorm::Free, ..top_k(5, spec(20, 12, 300)) };
        spec.loss.mse = mse;
        spec.loss.weight_by_decoder_norm = true;
        follow_the_definition(nested(&[3, 8], spec), options(Precision::Exact), -3.0, 3, 3e-5);
    }
    let loss = LossSpec::reconstruction(Mse::Centered);
    let wide = StepSpec { loss, ..top_k(4, spec(1025, 9, 5)) };
    follow_the_definition(nested(&[2, 5], wide), options(Precision::Fp32), 0.0, 1, 2e-5);
    let rounded = nested(&[10, 30], top_k(7, spec(35, 60, 70)));
    follow_the_definition(rounded, options(Precision::Bf16), 0.5, 2, 5e-2);
}

#[test]
fn nested_selections_are_the_same_in_every_order() {
    let spec = auxiliary(AUX_KINDS[0](40), batch_top_k(4, spec(35, 150, 130)));
    let prefixes = Prefixes::new(&[10, 40, 149], 0.3).unwrap();
    let spec = StepSpec { prefixes, rank_by_decoder_norm: true, decoder_norm: DecoderNorm::Free, ..spec };
    let run = |precision, order| {
        let mut run = Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 0.0), order);
        (run.steps(0..5), run.state())
    };
    let expected = run(Precision::Exact, 0);
    assert!(expected.0[4].terms.dead > 0.0);
    for (precision, order) in [(Precision::Exact, 1), (Precision::Exact, 3), (Precision::Fp32, 12_345)] {
        assert!(run(precision, order) == expected, "{precision:?} in order {order}");
    }
    // What is not trained has one reconstruction, with the threshold of what features are ranked by.
    let mut run = Run::new(spec, options(Path::Sparse, Precision::Exact), &weights(&spec, 0.0), 0);
    let mut cpu = cpu_step(spec);
    run.steps(0..3);
    cpu.restore(run.state()).unwrap();
    let others = batch(&spec, 100);
    let uploaded = run.upload(&others);
    let got = run.step.evaluate(&mut run.device, &uploaded, spec.batch).unwrap();
    let expected = cpu.evaluate(others.view().into()).unwrap();
    assert_eq!(got.firings, expected.firings);
    for (got, expected) in [
        (got.sums.squared_error, expected.sums.squared_error),
        (got.sums.l1, expected.sums.l1),
        (got.sums.norm_ratio, expected.sums.norm_ratio),
    ] {
        assert!((got - expected).abs() < 1e-5 * expected, "{got} {expected}");
    }
}

#[test]
fn a_run_with_dead_features_is_the_same_in_every_order() {
    for kind in AUX_KINDS {
        let spec = auxiliary(kind(40), batch_top_k(4, spec(35, 150, 130)));
        let run =
            |precision, order| Run::new(spec, options(Path::Sparse, precision), &weights(&spec, 0.0), order);
        let (mut first, mut others) =
            (run(Precision::Exact, 0), [1, 3, 12_345].map(|o| run(Precision::Exact, o)));
        let reports = first.steps(0..5);
        assert!(reports[4].terms.dead > 0.0 && reports[0].terms.dead == 0.0, "{reports:?}");
        for other in &mut others {
            assert_eq!(other.steps(0..5), reports);
            assert!(other.state() == first.state());
        }
        // Resumed, and with products of another kind.
        let mut parts = run(Precision::Fp32, 0);
        assert_eq!(parts.steps(0..3), reports[..3]);
        let mut rest = run(Precision::Exact, 0);
        rest.step.restore(&mut rest.device, &parts.state()).unwrap();
        assert_eq!(rest.steps(3..5), reports[3..]);
        assert!(rest.state() == first.state());
    }
}

#[test]
fn a_clipped_gradient_follows_the_definition() {
    let clipped = |spec, most| StepSpec { gradient_clip: Some(most), ..spec };
    for (d, f, b) in [(3, 17, 5), (20, 40, 33), (65, 33, 131)] {
        for path in [Path::Sparse, Path::Dense] {
            // A norm that clips every step, and one that clips none.
            for most in [1e-2, 1e3] {
                let options = options(path, Precision::Fp32);
                follow_the_definition(clipped(spec(d, f, b), most), options, 0.0, 2, 2e-5);
                follow_the_definition(clipped(jump_spec(d, f, b), most), options, 0.0, 2, 2e-5);
            }
        }
    }
    // Without the pre-bias and with free norms; segments; rows too wide for four components a thread.
    let free = StepSpec { pre_bias: false, decoder_norm: DecoderNorm::Free, ..spec(20, 9, 300) };
    follow_the_definition(clipped(free, 0.1), options(Path::Sparse, Precision::Exact), -3.0, 2, 1e-5);
    let loss = LossSpec::reconstruction(Mse::Centered);
    let wide = StepSpec { loss, ..spec(2050, 9, 5) };
    follow_the_definition(clipped(wide, 0.1), options(Path::Sparse, Precision::Fp32), 0.0, 1, 2e-5);
}

#[test]
fn features_with_more_pairs_than_a_segment_follow_the_definition() {
    for batch in [64, 65, 128, 129, 300] {
        for weighted in [false, true] {
            let mut spec = StepSpec { decoder_norm: DecoderNorm::Free, ..spec(20, 9, batch) };
            spec.loss.weight_by_decoder_norm = weighted;
            follow_the_definition(spec, options(Path::Sparse, Precision::Exact), -3.0, 2, 1e-5);
        }
    }
}

/// Weights whose biases make feature j active in the share `density(j)` of the first batch's rows.
fn weights_of_density(spec: &StepSpec, density: impl Fn(usize) -> f64) -> Parameters {
    let mut weights = weights(spec, 0.0);
    let rows = batch(spec, 0);
    for feature in 0..spec.features {
        let w = weights.encoder.row(feature);
        let mut products: Vec<f32> = rows
            .rows()
            .into_iter()
            .map(|row| row.iter().zip(w).zip(&weights.decoder_bias).map(|((x, w), b)| (x - b) * w).sum())
            .collect();
        products.sort_by(|a, b| b.total_cmp(a));
        let active = (density(feature) * spec.batch as f64).round() as usize;
        // Half-way between the last row that is to be active and the next one.
        let next = products.get(active).copied().unwrap_or(products[spec.batch - 1] - 2.0);
        let last = active.checked_sub(1).map_or(next + 2.0, |at| products[at]);
        weights.encoder_bias[feature] = -(next + last) / 2.0;
    }
    weights
}

#[test]
fn features_of_very_unequal_densities_follow_the_definition() {
    // One active in nine rows of ten, 18 segments of it, then as in real data: the density of the j-th is about 1/j.
    let spec = StepSpec { decoder_norm: DecoderNorm::Free, ..spec(20, 60, 1200) };
    let density = |feature: usize| 0.9 / (feature + 1) as f64;
    let initial = weights_of_density(&spec, density);
    let options = options(Path::Sparse, Precision::Exact);
    follow_the_definition_from(&initial, spec, options, 2, 1e-5);
    // And the same bits whoever comes first.
    let run = |order| {
        let mut run = Run::new(spec, options, &initial, order);
        let stats = run.steps(0..2);
        let counted: usize = (0..60).map(|feature| (density(feature) * 1200.0).round() as usize).sum();
        let active = stats[0].sums.active;
        assert!((active as f64 - counted as f64).abs() < 3.0, "{active} {counted}");
        (stats, run.state())
    };
    let expected = run(0);
    for order in [1, 3, 12_345] {
        assert!(run(order) == expected, "order {order}");
    }
}

#[test]
fn rows_too_wide_for_four_components_a_thread_follow_the_definition() {
    for width in [1025, 2050, 4100] {
        // Without penalties, whose slopes at small activations magnify the rounding of sums this long.
        let wide = |features, batch| StepSpec {
            loss: LossSpec::reconstruction(Mse::Centered),
            ..spec(width, features, batch)
        };
        for path in [Path::Sparse, Path::Dense] {
            follow_the_definition(wide(9, 5), options(path, Precision::Fp32), 0.0, 1, 2e-5);
        }
        // Segments of rows that wide.
        follow_the_definition(wide(2, 70), options(Path::Sparse, Precision::Fp32), -300.0, 1, 2e-5);
    }
}

#[test]
fn dense_products_of_halves_are_float32_within_rounding() {
    let spec = spec(35, 60, 70);
    follow_the_definition(spec, options(Path::Dense, Precision::Exact), 0.5, 3, 2e-5);
    follow_the_definition(spec, options(Path::Dense, Precision::Bf16), 0.5, 3, 5e-2);
    follow_the_definition(spec, options(Path::Sparse, Precision::Bf16), 0.5, 3, 5e-2);
}

const SIZES: (usize, usize, usize) = (35, 150, 130);

fn example(options: DeviceOptions, order: u32) -> Run {
    let spec = spec(SIZES.0, SIZES.1, SIZES.2);
    Run::new(spec, options, &weights(&spec, 2.0), order)
}

#[test]
fn a_screened_run_equals_a_float32_run_bit_for_bit() {
    let mut screened = example(options(Path::Sparse, Precision::Exact), 0);
    let mut plain = example(options(Path::Sparse, Precision::Fp32), 0);
    for (a, b) in screened.steps(0..6).into_iter().zip(plain.steps(0..6)) {
        // The definition's candidates are the active pairs, the screen's a few more.
        assert!((b.rechecked - b.sums.density()).abs() < 1e-12 && a.rechecked >= b.rechecked);
        assert_eq!(StepReport { rechecked: 0.0, ..a }, StepReport { rechecked: 0.0, ..b });
    }
    assert!(screened.state() == plain.state());
    let kernels = [screened.device.launched, plain.device.launched];
    assert!(kernels[0].contains_key("screen") && !kernels[0].contains_key("encode"));
    assert!(kernels[1].contains_key("encode") && !kernels[1].contains_key("screen"));
}

#[test]
fn any_order_of_threads_and_blocks_gives_the_same_bits_on_both_paths() {
    for (path, precision) in [(Path::Sparse, Precision::Exact), (Path::Dense, Precision::Bf16)] {
        let run = |order| {
            // Rows of more than a warp's components, more candidates than a recheck takes at once, features of several
            // segments: all memory that a block shares is used again. And several blocks of each kernel, one of them the last.
            let spec = spec(150, 260, 130);
            let mut run = Run::new(spec, options(path, precision), &weights(&spec, -4.0), order);
            (run.steps(0..2), run.state())
        };
        let expected = run(0);
        for order in [1, 2, 3, 12_345] {
            assert!(run(order) == expected, "{path:?} in order {order}");
        }
    }
}

#[test]
fn both_paths_agree_within_rounding() {
    let run = |path| {
        let mut run = example(options(path, Precision::Fp32), 0);
        (run.steps(0..10), run.state().weights)
    };
    let ((sparse, weights), (dense, expected)) = (run(Path::Sparse), run(Path::Dense));
    assert!(relative_difference(numbers(&weights.encoder), &wide(numbers(&expected.encoder))) < 2e-6);
    assert!(relative_difference(numbers(&weights.decoder), &wide(numbers(&expected.decoder))) < 2e-6);
    for (sparse, dense) in sparse.iter().zip(&dense) {
        let (terms, expected) = (sparse.terms, dense.terms);
        assert!((terms.loss() - expected.loss()).abs() < 1e-5 * expected.loss());
        assert_eq!(terms.below_target, expected.below_target);
        assert!((sparse.sums.l0() - dense.sums.l0()).abs() < 0.02);
    }
}

#[test]
fn a_batch_that_does_not_fit_the_lists_is_refused_and_done_dense() {
    let cells = (SIZES.1 * SIZES.2) as f64;
    // Biases that make the first batches fit and let a later one overflow: rows a hundred times as long.
    let spec = spec(SIZES.0, SIZES.1, SIZES.2);
    let long = batch(&spec, 1) * 3.0;
    let density = {
        let mut run = example(options(Path::Sparse, Precision::Exact), 0);
        run.step(&batch(&spec, 0)).unwrap().rechecked
    };
    let options = DeviceOptions { precision: Precision::Exact, sparse_density: 1.3 * density + 1.0 / cells };
    let mut run = example(options, 0);
    assert_eq!(run.step(&batch(&spec, 0)).unwrap().path, Path::Dense, "a run begins dense");
    assert_eq!(
        run.step(&batch(&spec, 0)).unwrap().path,
        Path::Dense,
        "what a step finds is known to the next but one"
    );
    assert_eq!(run.step(&batch(&spec, 2)).unwrap().path, Path::Sparse);
    let before = run.trained();
    let device_batch = run.upload(&long);
    let schedule = Schedule::constant(1e-3);
    let pending = run.step.submit(&mut run.device, &device_batch, &schedule).unwrap();
    assert_eq!(run.step.finish(&mut run.device, pending).unwrap(), Outcome::Refused);
    assert!(run.trained() == before, "a refused step changed something");
    // A step queued behind a refused one is refused as well, however well it would fit.
    let good = run.upload(&batch(&spec, 2));
    let pending = run.step.submit(&mut run.device, &good, &schedule).unwrap();
    assert_eq!(run.step.finish(&mut run.device, pending).unwrap(), Outcome::Refused);
    assert!(run.trained() == before);
    run.step.clear(&mut run.device).unwrap();
    let stats = run.step(&long).unwrap();
    assert_eq!((stats.path, stats.step), (Path::Dense, 4));
    assert!(stats.sums.active as f64 > options.sparse_density * cells);
}

#[test]
fn steps_upload_nothing_and_may_be_under_way_with_one_batch() {
    let spec = spec(40, 150, 50);
    let run = || Run::new(spec, options(Path::Sparse, Precision::Exact), &weights(&spec, 0.6), 0);
    let (mut run, mut other) = (run(), run());
    let same = run.upload(&batch(&spec, 1));
    let rates = [1e-3, 2e-3, 5e-4];
    let uploads = run.device.uploaded.clone();
    let pending = rates.map(|lr| run.step.submit(&mut run.device, &same, &Schedule::constant(lr)).unwrap());
    let together = pending.map(|pending| match run.step.finish(&mut run.device, pending).unwrap() {
        Outcome::Done(stats) => stats,
        Outcome::Refused => panic!("a step was refused"),
    });
    assert_eq!(run.device.uploaded, uploads);
    let same = other.upload(&batch(&spec, 1));
    let alone = rates.map(|lr| other.step.step(&mut other.device, &same, &Schedule::constant(lr)).unwrap());
    assert_eq!(together, alone);
    assert_eq!(run.state(), other.state());
}

#[test]
fn nan_infinity_and_an_infinite_loss_leave_everything_as_it_was() {
    for path in [Path::Sparse, Path::Dense] {
        let mut run = example(options(path, Precision::Exact), 0);
        run.steps(0..3);
        let before = run.trained();
        let good = batch(run.step.spec(), 3);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = good.clone();
            rows[[57, 4]] = bad;
            rows[[91, 0]] = bad;
            assert_eq!(run.step(&rows).unwrap_err(), StepError::NonFiniteRow { row: 57 });
            let device_rows = run.upload(&rows);
            let error = run.step.evaluate(&mut run.device, &device_rows, 130).unwrap_err();
            assert_eq!(error, StepError::NonFiniteRow { row: 57 });
        }
        let huge = &good * 1e30;
        let error = run.step(&huge).unwrap_err();
        assert!(matches!(error, StepError::NonFiniteLoss { step: 4, .. }), "{error}");
        let row = rows(1, SIZES.0, 3);
        let repeated = row.broadcast((SIZES.2, SIZES.0)).unwrap().to_owned();
        let error = run.step(&repeated).unwrap_err();
        assert_eq!(error, StepError::ZeroNorm { row: 0, mse: Mse::Centered });
        assert!(run.trained() == before, "{path:?}");
        assert_eq!(run.step(&good).unwrap().step, 4);
    }
}

#[test]
fn a_step_that_overflows_the_weights_says_so() {
    let mut run = example(options(Path::Sparse, Precision::Exact), 0);
    let batch = run.upload(&batch(&spec(SIZES.0, SIZES.1, SIZES.2), 0));
    let error = run.step.step(&mut run.device, &batch, &Schedule::constant(1e38)).unwrap_err();
    assert_eq!(error, StepError::Diverged { step: 1 });
}

#[test]
fn a_resumed_run_continues_bit_for_bit_like_an_uninterrupted_one() {
    let options = options(Path::Sparse, Precision::Exact);
    let mut whole = example(options, 0);
    let all = whole.steps(0..10);
    for stop in [1, 3, 7] {
        let mut first = example(options, 0);
        first.steps(0..stop);
        let state = first.state();
        let spec = spec(SIZES.0, SIZES.1, SIZES.2);
        let mut second = Run::new(spec, options, &weights(&spec, 0.0), 0);
        second.step.restore(&mut second.device, &state).unwrap();
        assert!(second.state() == state);
        let frequencies = first.step.frequencies(&mut first.device).unwrap();
        assert_eq!(second.step.frequencies(&mut second.device).unwrap(), frequencies);
        assert_eq!(second.steps(stop..10), all[stop as usize..]);
        assert!(second.state() == whole.state(), "stopped after {stop} steps");
    }
}

#[test]
fn a_run_with_other_lists_goes_on_dense_and_finds_back() {
    let spec = spec(SIZES.0, SIZES.1, SIZES.2);
    let with_lists = |sparse_density| {
        let options = DeviceOptions { precision: Precision::Exact, sparse_density };
        Run::new(spec, options, &weights(&spec, 4.0), 0)
    };
    let mut first = with_lists(0.5);
    let paths = |stats: Vec<StepReport>| stats.into_iter().map(|stats| stats.path).collect::<Vec<_>>();
    assert_eq!(paths(first.steps(0..4)), [Path::Dense, Path::Dense, Path::Sparse, Path::Sparse]);
    let state = first.state();
    for (density, expected) in [(0.5, [Path::Sparse; 3]), (0.4, [Path::Dense, Path::Dense, Path::Sparse])] {
        let mut second = with_lists(density);
        second.step.restore(&mut second.device, &state).unwrap();
        assert_eq!(paths(second.steps(4..7)), expected, "lists for {density}");
    }
}

#[test]
fn other_sizes_and_too_little_memory_are_refused_with_numbers() {
    let mut run = example(options(Path::Sparse, Precision::Exact), 0);
    let mut state = run.state();
    state.weights.encoder = rows(149, 35, 0);
    let error = run.step.restore(&mut run.device, &state).unwrap_err().to_string();
    assert_eq!(error, "encoder is [149, 35], but [150, 35] was expected");
    let mut device = EmulatedDevice::new();
    device.free = 100_000;
    let spec = spec(SIZES.0, SIZES.1, SIZES.2);
    let result = CudaStep::new(&mut device, spec, DeviceOptions::default(), weights(&spec, 0.0));
    let error = result.err().expect("there is not enough memory").to_string();
    assert!(error.contains("lower the batch size"), "{error}");
}

#[test]
fn the_memory_that_is_planned_is_what_training_takes() {
    for precision in [Precision::Exact, Precision::Bf16, Precision::Fp32] {
        for (d, f, b) in [(64, 200, 100), (100, 300, 70)] {
            let spec = StepSpec { sparsity_window: 20, ..spec(d, f, b) };
            let options = DeviceOptions { precision, sparse_density: 0.05 };
            let mut device = EmulatedDevice::new();
            let free = device.free;
            let mut step = CudaStep::new(&mut device, spec, options, weights(&spec, 0.0)).unwrap();
            let always = free - device.free;
            let near = |taken: usize, planned: usize| {
                let ratio = taken as f64 / planned as f64;
                assert!(
                    (0.9..=1.0).contains(&ratio),
                    "{precision:?} {d} {f} {b}: {taken} of {planned} bytes"
                );
            };
            near(always, step.plan().bytes());
            let batch = device.holding(numbers(&batch(&spec, 0)));
            let before = device.free;
            step.step(&mut device, &batch, &Schedule::constant(1e-3)).unwrap();
            near(before - device.free, step.plan().dense_bytes());
        }
    }
}

#[test]
fn several_autoencoders_share_a_device_and_a_batch() {
    let spec = spec(SIZES.0, SIZES.1, SIZES.2);
    let options = options(Path::Sparse, Precision::Exact);
    let mut alone = example(options, 0);
    let mut device = EmulatedDevice::new();
    let other = StepSpec { loss: LossSpec { coefficient: 1e-2, ..spec.loss }, ..spec };
    let mut steps =
        [spec, other].map(|spec| CudaStep::new(&mut device, spec, options, weights(&spec, 2.0)).unwrap());
    for step in 0..3 {
        let expected = alone.step(&batch(&spec, step)).unwrap();
        let shared = device.holding(numbers(&batch(&spec, step)));
        let stats =
            steps.each_mut().map(|run| run.step(&mut device, &shared, &Schedule::constant(1e-3)).unwrap());
        assert_eq!(stats[0], expected);
        assert_ne!(stats[1].terms, expected.terms);
    }
    assert!(steps[0].state(&mut device).unwrap() == alone.state());
}

#[test]
fn tests_on_a_gpu_share_one_and_leave_their_buffers_there() {
    if on_a_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--test-threads", "2"]);
    command.args(["nan_infinity_and_an_infinite_loss_leave_everything_as_it_was"]);
    command.args(["several_autoencoders_share_a_device_and_a_batch"]);
    let driver = EmulatedDriver::new().with("MODE", "lazy").with("REPORT", &report.display().to_string());
    driver.prepare(&mut command);
    let output = command.env("KERNEL_TESTS_ON_A_GPU", "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("2 passed"), "{told}");
    let report = std::fs::read_to_string(report).unwrap();
    let counted = |what: &str| -> usize {
        report.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok()).unwrap_or(0)
    };
    assert_eq!(counted("contexts"), 1, "{report}");
    // A launch has about eight buffers: they travel when they are new, and where the host has changed them.
    let launches: usize = report
        .lines()
        .filter_map(|line| line.strip_prefix("kernel ")?.split(' ').nth(1)?.parse::<usize>().ok())
        .sum();
    assert!(launches > 300 && counted("uploads") < launches, "{launches} launches\n{report}");
}

#[test]
fn no_step_reads_or_writes_outside_of_its_buffers() {
    run_again_sanitized(
        "no_step_reads_or_writes_outside_of_its_buffers",
        &["every_order", "any_order", "is_the_cpu_engines"],
    );
}
