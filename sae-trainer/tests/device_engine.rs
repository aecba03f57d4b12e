//! The engine that drives a GPU, on an emulated one. It follows the CPU engine step by step, with and without a step ahead,
//! through refused steps, bad batches and changes of engine.

use emulation::{EmulatedDevice, EmulatedDriver};
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};
use kernels::cuda::device::Device;
use ndarray::{Array2, Axis, concatenate, s};
use sae::Weights;
use sae_trainer::engine::{
    Batch, CpuEngine, CpuOptions, DecoderNorm, DeviceEngine, DeviceOptions, Engine, Forward, LossSpec, Path,
    Precision, Schedule, State, StepError, StepReport, StepSpec,
};

const WIDTH: usize = 20;
const FEATURES: usize = 70;
const BATCH: usize = 36;

fn spec() -> StepSpec {
    let all = example_steps::spec(WIDTH, FEATURES, BATCH);
    StepSpec {
        loss: LossSpec { coefficient: 3e-2, weight_by_decoder_norm: false, ..all.loss },
        decoder_norm: DecoderNorm::Unit,
        ..all
    }
}

fn batch(step: u64) -> Array2<f32> {
    example_steps::batch(&spec(), step)
}

fn weights() -> Weights {
    Weights::init(WIDTH, FEATURES, 7)
}

fn device_engine(sparse_density: f64) -> DeviceEngine<EmulatedDevice> {
    let options = DeviceOptions { precision: Precision::Exact, sparse_density };
    DeviceEngine::new(EmulatedDevice::new(), spec(), &weights(), options).unwrap()
}

fn cpu_engine() -> CpuEngine {
    let options = CpuOptions { threads: 1, split_products: false, ..CpuOptions::default() };
    CpuEngine::new(spec(), &weights(), options).unwrap()
}

fn schedule(step: u64) -> Schedule {
    Schedule { lr: 2e-2 * (1.0 - step as f64 / 200.0), ..Schedule::constant(0.0) }
}

/// Gives the engine a step ahead, as the training loop does.
fn train_ahead(engine: &mut dyn Engine, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let mut all = Vec::new();
    for step in steps {
        all.extend(engine.submit(batch(step).view().into(), &schedule(step)).unwrap());
    }
    while let Some(stats) = engine.finish().unwrap() {
        all.push(stats);
    }
    all
}

fn train(engine: &mut dyn Engine, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    steps.map(|step| engine.step(batch(step).view().into(), &schedule(step)).unwrap()).collect()
}

fn assert_alike(got: &[StepReport], expected: &[StepReport]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.step, expected.step);
        // Not the loss: an activation that rounding moves over 0 changes it by a whole count of L0.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b.abs();
        let step = got.step;
        let (mse, expected_mse) = (got.terms.mse, expected.terms.mse);
        assert!(near(mse, expected_mse), "step {step}: {mse} {expected_mse}");
        let (got, expected) = (got.sums, expected.sums);
        assert!((got.l0() - expected.l0()).abs() <= 3.0 / BATCH as f64, "step {step}");
        assert!((got.explained_variance() - expected.explained_variance()).abs() < 1e-3, "step {step}");
    }
}

#[test]
fn it_follows_the_cpu_engine_through_steps_of_every_kind() {
    let expected = train(&mut cpu_engine(), 0..60);
    // Lists for fewer pairs than a batch activates at first and for more than at the end.
    let densities: Vec<f64> = expected.iter().map(|report| report.sums.density()).collect();
    assert!(densities[59] < 0.5 * densities[0], "{densities:?}");
    let mut engine = device_engine(0.7 * densities[0]);
    let got = train_ahead(&mut engine, 0..60);
    assert_alike(&got, &expected);
    let paths: Vec<Path> = got.iter().map(|stats| stats.path).collect();
    assert_eq!(paths[0], Path::Dense);
    assert!(paths.contains(&Path::Sparse), "{paths:?}");
    // One at a time gives the same bits as a step ahead on the sparse path alone, where no path depends on reports.
    let (mut one, mut ahead) = (device_engine(1.0), device_engine(1.0));
    assert_eq!(train(&mut one, 0..8), train_ahead(&mut ahead, 0..8));
    assert!(one.state().unwrap() == ahead.state().unwrap());
}

#[test]
fn a_refused_step_and_the_one_behind_it_are_done_the_other_way() {
    let expected = train(&mut cpu_engine(), 0..40);
    let mut engine = device_engine(0.7 * expected[0].sums.density());
    train_ahead(&mut engine, 0..40);
    // The weights of the start fire too often for the lists, while the engine expects sparse batches.
    let mut start = engine.state().unwrap();
    let first = device_engine(1.0).state().unwrap();
    (start.weights, start.first_moments, start.second_moments) =
        (first.weights, first.first_moments, first.second_moments);
    engine.restore(start.clone()).unwrap();
    let mut cpu = cpu_engine();
    cpu.restore(start).unwrap();
    let got = train_ahead(&mut engine, 40..46);
    assert_alike(&got, &train(&mut cpu, 40..46));
    assert_eq!(got[0].path, Path::Dense);
}

#[test]
fn a_bad_batch_stops_only_itself_and_the_steps_behind_it() {
    // On the sparse and on the dense path.
    for density in [1.0, 0.0] {
        let mut engine = device_engine(density);
        train_ahead(&mut engine, 0..3);
        let before = engine.state().unwrap();
        let mut bad = batch(3);
        bad[[5, 2]] = f32::NAN;
        assert_eq!(engine.submit(bad.view().into(), &schedule(3)).unwrap(), None);
        assert_eq!(engine.submit(batch(4).view().into(), &schedule(4)).unwrap(), None);
        let error = engine.submit(batch(5).view().into(), &schedule(5)).unwrap_err();
        assert_eq!(error, StepError::NonFiniteRow { row: 5 });
        assert_eq!(engine.finish().unwrap(), None);
        assert!(engine.state().unwrap() == before);
        assert_eq!(engine.evaluate(bad.view().into()).unwrap_err(), error);
        let mut other = device_engine(density);
        train_ahead(&mut other, 0..3);
        assert_eq!(train_ahead(&mut engine, 3..5), train_ahead(&mut other, 3..5));
        assert!(engine.submit(batch(0).slice(s![1.., ..]).into(), &schedule(0)).is_err());
    }
}

#[test]
fn a_run_can_change_its_engine() {
    let mut cpu = cpu_engine();
    train(&mut cpu, 0..6);
    let mut device = device_engine(1.0);
    device.restore(cpu.state().unwrap()).unwrap();
    let same = State { path_choice: None, ..device.state().unwrap() };
    assert!(same == cpu.state().unwrap());
    assert_eq!(device.weights().unwrap(), cpu.weights().unwrap());
    assert_eq!(device.frequencies().unwrap(), cpu.frequencies().unwrap());
    assert_eq!(device.steps_since_fired().unwrap(), cpu.steps_since_fired().unwrap());
    let expected = train(&mut cpu, 6..12);
    assert_alike(&train_ahead(&mut device, 6..9), &expected[..3]);
    let mut back = cpu_engine();
    back.restore(device.state().unwrap()).unwrap();
    assert_alike(&train(&mut back, 9..12), &expected[3..]);
}

#[test]
fn evaluation_takes_any_number_of_rows() {
    let (mut device, mut cpu) = (device_engine(1.0), cpu_engine());
    let rows = concatenate![Axis(0), batch(1), batch(2), batch(3)];
    for count in [0, 1, BATCH - 1, BATCH] {
        let part = Batch::from(rows.slice(s![..count, ..]));
        let (got, expected) = (device.evaluate(part).unwrap(), cpu.evaluate(part).unwrap());
        assert_eq!(got.firings, expected.firings);
        let (got, expected) = (got.sums, expected.sums);
        assert_eq!((got.rows, got.active), (expected.rows, expected.active));
        assert!((got.squared_error - expected.squared_error).abs() <= 1e-5 * expected.squared_error);
        let (errors, sum) = (device.squared_errors(part).unwrap(), expected.squared_error);
        assert!((errors.iter().map(|error| f64::from(*error)).sum::<f64>() - sum).abs() <= 1e-5 * sum);
        for (got, expected) in errors.iter().zip(cpu.squared_errors(part).unwrap()) {
            assert!((got - expected).abs() <= 1e-4 * expected, "{got} {expected}");
        }
    }
    let active = |part| cpu.evaluate(Batch::from(part)).unwrap().sums.active;
    let sum: u64 = rows.axis_chunks_iter(Axis(0), BATCH).map(active).sum();
    assert_eq!(device.evaluate(rows.view().into()).unwrap().sums.active, sum);
    let errors = device.squared_errors(rows.view().into()).unwrap();
    assert_eq!(errors.len(), 3 * BATCH);
    let second = rows.slice(s![BATCH..2 * BATCH, ..]);
    assert_eq!(errors.slice(s![BATCH..2 * BATCH]), device.squared_errors(second.into()).unwrap());
}

#[test]
fn it_encodes_and_reconstructs_as_the_cpu_engine_does() {
    // From lists, and from dense activations; more rows than a batch has.
    for density in [1.0, 0.0] {
        let (mut device, mut cpu) = (device_engine(density), cpu_engine());
        let rows = concatenate![Axis(0), batch(1), batch(2), batch(3).slice(s![..5, ..])];
        let (got, expected) = (device.encode(rows.view()).unwrap(), cpu.encode(rows.view()).unwrap());
        assert_eq!((got.row_starts, got.features), (expected.row_starts, expected.features));
        let near = |(got, expected): (&f32, &f32)| {
            (got - expected).abs() <= 1e-5 * (1.0 + expected.abs()) * WIDTH as f32
        };
        assert!(got.values.iter().zip(&expected.values).all(near));
        let (got, expected) =
            (device.reconstruct(rows.view()).unwrap(), cpu.reconstruct(rows.view()).unwrap());
        assert!(got.iter().zip(&expected).all(near));
    }
}

/// Batches large enough to have a stream of their own: 256 KiB.
fn large_spec() -> StepSpec {
    StepSpec { width: 1024, features: 24, batch: 64, ..spec() }
}

/// Twelve steps on lists that hold every pair, recorded from the fourth on.
fn train_on_large_batches<D: Device>(device: D) -> (Vec<StepReport>, State) {
    let (spec, options) = (large_spec(), DeviceOptions { precision: Precision::Fp32, sparse_density: 1.0 });
    let weights = Weights::init(spec.width, spec.features, 7);
    let mut engine = DeviceEngine::new(device, spec, &weights, options).unwrap();
    let mut stats = Vec::new();
    for step in 0..12 {
        let numbers = (1000 * step..).flat_map(batch).take(spec.batch * spec.width);
        let mut rows = Array2::from_shape_vec((spec.batch, spec.width), numbers.collect()).unwrap();
        stats.extend(engine.submit(rows.view().into(), &schedule(step)).unwrap());
        rows.fill(f32::NAN); // the engine has its own copy
    }
    while let Some(done) = engine.finish().unwrap() {
        stats.push(done);
    }
    let state = engine.state().unwrap();
    (stats, state)
}

#[test]
fn a_batch_travels_beside_two_steps_into_an_unread_buffer() {
    let folder = tempfile::tempdir().unwrap();
    for mode in ["lazy", "random:1", "random:2"] {
        let report = folder.path().join(mode);
        let driver = EmulatedDriver::new().with("MODE", mode).with("LEAKS", "1");
        driver.with("REPORT", &report.display().to_string()).pass_test("large_batches_on_the_driver");
        // Nothing runs on the lazy driver before somebody waits for it: what the copy does not have to wait for is counted.
        let report = std::fs::read_to_string(report).unwrap();
        let beside_two =
            report.lines().find_map(|line| line.strip_prefix("uploads-beside-2-graphs ")?.parse().ok());
        assert!(mode != "lazy" || beside_two.unwrap_or(0) >= 6, "{report}");
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn large_batches_on_the_driver() {
    let poisoned = CudaOptions { poison: true, ..CudaOptions::default() };
    let got = train_on_large_batches(CudaDevice::new(&poisoned).unwrap());
    assert!(got == train_on_large_batches(EmulatedDevice::new()));
}
