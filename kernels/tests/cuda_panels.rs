//! Features in panels on the emulated device, and panels on ranks that are threads with a device each: any number of ranks does what
//! one does, bit for bit.

use std::sync::Arc;
use std::time::Duration;

use emulation::{EmulatedDevice, run_again_sanitized};
use example_steps::{PENALTIES, batch, new_features, relative_difference, spec, weights};
use kernels::activation::{Activation, ThresholdAverage};
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::cuda::device::Device;
use kernels::cuda::plan::DeviceOptions;
use kernels::cuda::step::CudaStep;
use kernels::dead::{DeadLoss, DeadLossKind};
use kernels::error::StepError;
use kernels::loss::{LossSpec, Mse, Penalty};
use kernels::outcome::StepReport;
use kernels::panels::Share;
use kernels::parameters::Parameters;
use kernels::path::Path;
use kernels::precision::Precision;
use kernels::prefixes::Prefixes;
use kernels::spec::{DecoderNorm, Schedule, StepSpec};
use kernels::state::{PanelStates, State};
use kernels::stats::Evaluation;
use ndarray::{Array2, ArrayView1, s};
use ranks::{Exchange, Threads};

const PANELS: usize = 4;
/// None of these is a multiple of the panels.
const WIDTH: usize = 21;
const FEATURES: usize = 50;
const ROWS: usize = 37;

fn panels(panels: usize) -> StepSpec {
    StepSpec { panels, pre_bias: false, ..spec(WIDTH, FEATURES, ROWS) }
}

fn options(sparse_density: f64) -> DeviceOptions {
    DeviceOptions { precision: Precision::Exact, sparse_density }
}

/// What `work` returns on each of so many ranks, each with a thread of its own.
fn on_ranks<R: Send>(ranks: usize, work: impl Fn(Arc<dyn Exchange>) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = |rank: Threads| {
            let work = &work;
            scope.spawn(move || work(Arc::new(rank)))
        };
        let threads: Vec<_> = Threads::new(ranks, Duration::from_secs(120)).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// One rank's share of an autoencoder, on its own device.
struct Run {
    device: EmulatedDevice,
    step: CudaStep<EmulatedDevice>,
}

impl Run {
    fn new(spec: StepSpec, options: DeviceOptions, weights: &Parameters, exchange: Arc<dyn Exchange>) -> Run {
        let mut device = EmulatedDevice::among(Arc::clone(&exchange));
        let step = CudaStep::shared(&mut device, spec, options, weights.clone(), exchange).unwrap();
        Run { device, step }
    }

    fn step(&mut self, batch: &Array2<f32>, lr: f64) -> Result<StepReport, StepError> {
        let batch = self.device.holding(batch.as_slice().unwrap());
        self.step.step(&mut self.device, &batch, &Schedule::constant(lr))
    }

    fn state(&mut self) -> State {
        self.step.state(&mut self.device).unwrap()
    }

    /// Steps `steps`, and what is left then.
    fn train(&mut self, steps: std::ops::Range<u64>) -> Left {
        let spec = *self.step.spec();
        let reports = steps.map(|at| self.step(&batch(&spec, at), 1e-3).unwrap()).collect();
        let rows = self.device.holding(batch(&spec, 40).as_slice().unwrap());
        // Fewer rows than there are ranks, in a batch's place.
        let few = self.step.evaluate(&mut self.device, &rows, 3).unwrap();
        let state = self.state();
        let norm = |row: ArrayView1<'_, f32>| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = state.weights.decoder.rows().into_iter().map(norm).collect();
        assert_eq!(self.step.decoder_norms(&mut self.device).unwrap(), norms);
        let norms: Vec<f64> = state.weights.encoder.rows().into_iter().map(norm).collect();
        assert_eq!(self.step.encoder_norms(&mut self.device).unwrap(), norms);
        for panel in self.step.own_panels() {
            let (features, own) = self.step.panel_weights(&mut self.device, panel).unwrap();
            assert_eq!(features, spec.panel_features(panel));
            assert_eq!(own.decoder, state.weights.decoder.slice(s![features.clone(), ..]));
            assert_eq!(own.encoder, state.weights.encoder.slice(s![features, ..]));
            assert_eq!(own.decoder_bias, state.weights.decoder_bias);
        }
        Left {
            reports,
            evaluation: self.step.evaluate(&mut self.device, &rows, spec.batch).unwrap(),
            errors: self.step.squared_errors(&mut self.device, spec.batch).unwrap(),
            few,
            state,
        }
    }
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Left {
    reports: Vec<StepReport>,
    evaluation: Evaluation,
    errors: Vec<f32>,
    few: Evaluation,
    state: State,
}

/// Everything that panels are for on a device, with what it is.
fn cases() -> Vec<(String, StepSpec)> {
    let base = panels(PANELS);
    let with = |penalty| LossSpec { penalty, ..base.loss };
    let mut cases: Vec<(String, StepSpec)> = PENALTIES
        .into_iter()
        .map(|penalty| (format!("{penalty:?}"), StepSpec { loss: with(penalty), ..base }))
        .collect();
    for (mse, decoder_norm) in [(Mse::Sum, DecoderNorm::Unit), (Mse::Uncentered, DecoderNorm::Free)] {
        let loss =
            LossSpec { mse, weight_by_decoder_norm: false, mean_density: 0.1, log_density: 0.1, ..base.loss };
        cases.push((format!("{mse:?} {decoder_norm:?}"), StepSpec { loss, decoder_norm, ..base }));
    }
    let jump = |to_input| Activation::JumpRelu { bandwidth: 0.5, to_input };
    for (penalty, to_input) in [(Penalty::Step, true), (Penalty::Quadratic { target: 9.0 }, false)] {
        let loss = LossSpec { weight_by_decoder_norm: false, ..with(penalty) };
        cases.push((format!("jump {penalty:?}"), StepSpec { activation: jump(to_input), loss, ..base }));
    }
    cases
}

#[test]
fn any_number_of_ranks_has_the_bits_of_one() {
    for (name, spec) in cases() {
        let initial = weights(&spec, 0.3);
        // Every pair fits the lists, and none does.
        for sparse_density in [1.0, 0.0] {
            let run = |exchange| Run::new(spec, options(sparse_density), &initial, exchange).train(0..3);
            let one = on_ranks(1, run).remove(0);
            for ranks in [2, 4] {
                for (rank, left) in on_ranks(ranks, run).into_iter().enumerate() {
                    assert!(left == one, "{name}, density {sparse_density}: rank {rank} of {ranks}");
                }
            }
        }
    }
}

#[test]
fn every_precision_has_the_bits_of_one_rank() {
    let spec = panels(PANELS);
    let initial = weights(&spec, 0.3);
    for precision in [Precision::Fp32, Precision::Bf16] {
        for sparse_density in [1.0, 0.0] {
            let options = DeviceOptions { precision, sparse_density };
            let run = |exchange| Run::new(spec, options, &initial, exchange).train(0..3);
            let one = on_ranks(1, run).remove(0);
            assert!(on_ranks(4, run).iter().all(|left| *left == one), "{precision:?}, {sparse_density}");
        }
    }
}

#[test]
fn a_run_goes_on_with_any_number_of_ranks() {
    for (name, spec) in cases().into_iter().step_by(3) {
        // The lists are full at times, and then not.
        let initial = weights(&spec, 1.5);
        let begin = |exchange| Run::new(spec, options(0.3), &initial, exchange);
        let whole = on_ranks(1, |exchange| begin(exchange).train(0..8)).remove(0);
        let paths: Vec<Path> = whole.reports.iter().map(|report| report.path).collect();
        assert!(paths.contains(&Path::Sparse) && paths.contains(&Path::Dense), "{name}: {paths:?}");
        for (before, after) in [(1, 4), (4, 2)] {
            let states = on_ranks(before, |exchange| {
                let mut run = begin(exchange);
                run.train(0..5);
                run.step.panel_states(&mut run.device).unwrap()
            });
            let totals = states[0].window_totals.clone();
            let mut panels: Vec<_> = states.into_iter().flat_map(|state| state.panels).collect();
            panels.sort_by_key(|(number, _)| *number);
            let rest = on_ranks(after, |exchange| {
                let own = Share::new(&spec, &*exchange).unwrap().own();
                let states = PanelStates { panels: panels[own].to_vec(), window_totals: totals.clone() };
                let mut device = EmulatedDevice::among(Arc::clone(&exchange));
                let step = CudaStep::of_panels(&mut device, spec, options(0.3), &states, exchange);
                let mut run = Run { step: step.unwrap(), device };
                let rest = run.train(5..8);
                run.step.restore_panels(&mut run.device, &states).unwrap();
                assert!(run.train(5..8) == rest);
                rest
            });
            for rest in rest {
                assert!(rest.state == whole.state, "{name}, {before} to {after} ranks");
                assert!(rest.reports == whole.reports[5..], "{name}, {before} to {after} ranks");
            }
        }
    }
}

#[test]
fn features_start_anew_on_any_number_of_ranks() {
    for (name, spec) in cases().into_iter().rev().step_by(5) {
        let initial = weights(&spec, 0.3);
        let new = new_features(WIDTH, &[0, 12, 13, FEATURES - 1]);
        let left = |exchange| {
            let mut run = Run::new(spec, options(0.3), &initial, exchange);
            run.train(0..3);
            let mut expected = run.state();
            expected.replace(0, &new);
            run.step.replace(&mut run.device, &new).unwrap();
            assert!(run.state() == expected, "{name}");
            run.train(3..5)
        };
        let one = on_ranks(1, left).remove(0);
        for ranks in [2, 4] {
            assert!(on_ranks(ranks, left).iter().all(|left| *left == one), "{name}, {ranks} ranks");
        }
    }
}

#[test]
fn panels_on_a_device_are_the_cpu_engines() {
    for (name, spec) in cases() {
        let initial = weights(&spec, 0.3);
        for sparse_density in [1.0, 0.0] {
            let cpu = CpuOptions { split_products: false, ..CpuOptions::default() };
            let mut cpu = CpuStep::new(spec, cpu, initial.clone()).unwrap();
            let mut run = Run::new(spec, options(sparse_density), &initial, Arc::new(ranks::Alone));
            for step in 0..4 {
                // From the same state: what differs is the arithmetic of one step.
                run.step.restore(&mut run.device, &cpu.state().unwrap()).unwrap();
                let got = run.step(&batch(&spec, step), 1e-3).unwrap();
                let expected = cpu.step(batch(&spec, step).view().into(), &Schedule::constant(1e-3)).unwrap();
                let what = format!("{name}, density {sparse_density}, step {step}");
                assert_eq!(got.sums.active, expected.sums.active, "{what}");
                assert_eq!(got.terms.below_target, expected.terms.below_target, "{what}");
                let (loss, of_cpu) = (got.terms.loss(), expected.terms.loss());
                assert!((loss - of_cpu).abs() <= 1e-5 * of_cpu.abs(), "{what}: {loss} {of_cpu}");
                let (state, of_cpu) = (run.state(), cpu.state().unwrap());
                assert_eq!(state.window, of_cpu.window, "{what}");
                assert_eq!(state.steps_since_fired, of_cpu.steps_since_fired, "{what}");
                alike(&state.weights, &of_cpu.weights, &what);
                alike(&state.first_moments, &of_cpu.first_moments, &what);
            }
        }
    }
}

fn alike(got: &Parameters, expected: &Parameters, what: &str) {
    for ((tensor, got), (_, expected)) in got.tensors().into_iter().zip(expected.tensors()) {
        let wide: Vec<f64> = expected.iter().map(|v| f64::from(*v)).collect();
        let off = relative_difference(got.as_slice().unwrap(), &wide);
        assert!(off < 2e-5, "{what}, {tensor}: {off:e}");
    }
}

#[test]
fn rows_are_encoded_by_several_panels_as_by_one() {
    for sparse_density in [1.0, 0.0] {
        let encode = |panels_of_all| {
            let spec = panels(panels_of_all);
            let mut run =
                Run::new(spec, options(sparse_density), &weights(&spec, 0.3), Arc::new(ranks::Alone));
            let rows = run.device.holding(batch(&spec, 3).as_slice().unwrap());
            run.step.encode(&mut run.device, &rows, 20).unwrap()
        };
        assert_eq!(encode(PANELS), encode(1));
    }
    let spec = panels(PANELS);
    let refused = on_ranks(2, |exchange| {
        let mut run = Run::new(spec, options(1.0), &weights(&spec, 0.3), exchange);
        let rows = run.device.holding(batch(&spec, 3).as_slice().unwrap());
        run.step.encode(&mut run.device, &rows, 20).unwrap_err().to_string()
    });
    assert!(refused[0].contains("in one process"), "{refused:?}");
}

#[test]
fn all_ranks_refuse_a_step_together_and_go_on() {
    let spec = panels(PANELS);
    let initial = weights(&spec, 0.3);
    let run = |exchange| {
        let mut run = Run::new(spec, options(0.42), &initial, exchange);
        run.step(&batch(&spec, 0), 1e-3).unwrap();
        let before = run.state();
        let mut refused = Vec::new();
        let mut refuse = |run: &mut Run, rows: Array2<f32>| {
            refused.push(run.step(&rows, 1e-3).unwrap_err());
            assert!(run.state() == before);
        };
        let mut rows = batch(&spec, 1);
        rows[[30, 3]] = f32::NAN;
        refuse(&mut run, rows);
        // Squares that float32 does not hold.
        refuse(&mut run, batch(&spec, 1).mapv(|x| x * 1e30));
        // All rows equal their mean.
        refuse(&mut run, Array2::ones((ROWS, WIDTH)));
        let after = run.train(1..3);
        (refused, after)
    };
    let one = on_ranks(1, run).remove(0);
    assert_eq!(one.0[0], StepError::NonFiniteRow { row: 30 });
    assert!(matches!(one.0[1], StepError::NonFiniteLoss { step: 2, .. }), "{:?}", one.0[1]);
    assert!(matches!(one.0[2], StepError::ZeroNorm { row: 0, .. }));
    for ranks in [2, 4] {
        for (refused, after) in on_ranks(ranks, run) {
            // The loss itself may be NaN.
            assert_eq!(format!("{refused:?}"), format!("{:?}", one.0));
            assert!(after == one.1);
        }
    }
}

#[test]
fn one_panel_whose_pairs_do_not_fit_takes_the_dense_path_alone() {
    // Features of the first panel are active everywhere, the others seldom.
    let spec = panels(PANELS);
    let mut initial = weights(&spec, 1.5);
    initial.encoder_bias.slice_mut(ndarray::s![..FEATURES / PANELS]).fill(100.0);
    let run = |exchange: Arc<dyn Exchange>| {
        let first = exchange.rank() == 0;
        let mut run = Run::new(spec, options(0.6), &initial, exchange);
        let left = run.train(0..6);
        (left, first, run.device.launched)
    };
    let one = on_ranks(1, run).remove(0).0;
    assert!(one.reports.iter().all(|report| report.path == Path::Dense));
    for (left, first, launched) in on_ranks(PANELS, run) {
        assert!(left == one);
        assert_eq!(launched.contains_key("decode_part"), !first, "{launched:?}");
    }
}

#[test]
fn a_divergence_on_one_rank_ends_all_at_the_same_step() {
    let loss = LossSpec::reconstruction(Mse::Sum);
    let spec = StepSpec { loss, decoder_norm: DecoderNorm::Unit, ..panels(PANELS) };
    // One feature alone is active, and so trained. Its decoder row becomes longer than float32 can tell; no sum of all panels sees it.
    let mut initial = weights(&spec, 100.0);
    initial.encoder_bias[FEATURES - 1] = 1.0;
    for ranks in [1, 2, 4] {
        let diverge = |exchange| {
            Run::new(spec, options(1.0), &initial, exchange).step(&batch(&spec, 0), 1e38).unwrap_err()
        };
        for error in on_ranks(ranks, diverge) {
            assert_eq!(error, StepError::Diverged { step: 1 }, "{ranks} ranks");
        }
    }
}

#[test]
fn memory_is_what_was_planned() {
    for ranks in [1, 2, 4] {
        on_ranks(ranks, |exchange| {
            let spec = panels(PANELS);
            let (always, dense) =
                CudaStep::<EmulatedDevice>::memory(&spec, &options(0.4), &*exchange).unwrap();
            let mut run = Run::new(spec, options(0.4), &weights(&spec, 0.3), exchange);
            let near = |planned: usize, taken: usize| {
                // Allocations are counted in steps of 256 bytes.
                assert!(
                    taken <= planned && planned - taken < 256 * 120 * PANELS / ranks,
                    "{planned} {taken}"
                );
            };
            let before = run.device.free;
            near(always, (1 << 30) - before);
            let batch_bytes = run.step.batch_bytes();
            run.step(&batch(&spec, 0), 1e-3).unwrap();
            near(dense, before - run.device.free - batch_bytes);
        });
    }
}

#[test]
fn what_is_not_computed_panel_by_panel_is_refused_by_name() {
    let base = panels(PANELS);
    let batch_topk = Activation::BatchTopK { k: 3, threshold: ThresholdAverage::default() };
    let kind = DeadLossKind::PreActivation { coefficient: 1e-2 };
    let jump = Activation::JumpRelu { bandwidth: 0.5, to_input: false };
    for (spec, what) in [
        (StepSpec { activation: Activation::TopK { k: 3 }, ..base }, "topk and batch-topk"),
        (StepSpec { activation: batch_topk, ..base }, "topk and batch-topk"),
        (StepSpec { pre_bias: true, ..base }, "a pre-bias"),
        (StepSpec { gradient_clip: Some(1.0), ..base }, "a gradient that is clipped"),
        (StepSpec { prefixes: Prefixes::new(&[4], 1.0).unwrap(), ..base }, "prefixes"),
        (
            StepSpec { activation: jump, dead: Some(DeadLoss { after_steps: 1, kind }), ..base },
            "pre-activation",
        ),
        (StepSpec { skip: true, ..base }, "a skip connection"),
    ] {
        let mut device = EmulatedDevice::new();
        let free = device.free_memory().unwrap();
        let error = CudaStep::new(&mut device, spec, options(1.0), weights(&spec, 0.3)).err().unwrap();
        let told = error.to_string();
        assert!(told.contains(what) && told.contains("--device cpu"), "{told}");
        assert_eq!(device.free_memory().unwrap(), free, "before anything is made");
    }
    let ranks = Threads::new(8, Duration::ZERO);
    let mut device = EmulatedDevice::new();
    let initial = weights(&base, 0.3);
    for rank in ranks {
        let error =
            CudaStep::shared(&mut device, base, options(1.0), initial.clone(), Arc::new(rank)).err().unwrap();
        assert_eq!(error, StepError::Ranks { ranks: 8, panels: 4 });
    }
}

#[test]
fn no_panel_reads_or_writes_outside_of_its_buffers() {
    run_again_sanitized(
        "no_panel_reads_or_writes_outside_of_its_buffers",
        &["every_precision", "goes_on", "a_divergence"],
    );
}
