//! Engines that share an emulated device: each computes what it would compute alone, and a batch is uploaded once for all of
//! them.

use emulation::EmulatedDevice;
use example_steps::rows;
use half::f16;
use kernels::error::DeviceError;
use ndarray::Array2;
use sae::Weights;
use sae_trainer::engine::{
    Activation, Adam, DecoderNorm, DeviceEngine, DeviceOptions, Engine, Forward, FrequencyPenalty, LossSpec,
    Mse, Path, Penalty, Precision, Rows, Schedule, SharedDevice, State, StepError, StepReport, StepSpec,
    StoredBatch, device_memory,
};

const WIDTH: usize = 20;
const BATCH: usize = 36;
const BATCH_BYTES: usize = 4 * WIDTH * BATCH;

type Emulated = DeviceEngine<EmulatedDevice>;

/// Points that differ in loss, size, norm and pre-bias.
fn specs() -> [StepSpec; 3] {
    let first = StepSpec {
        width: WIDTH,
        features: 70,
        batch: BATCH,
        pre_bias: false,
        skip: false,
        activation: Activation::Relu,
        loss: LossSpec {
            min_sparsity: Some(FrequencyPenalty { coefficient: 1e-3, target: 0.1 }),
            penalty: Penalty::ApproxL0 { epsilon: 0.2 },
            coefficient: 3e-2,
            ..LossSpec::reconstruction(Mse::Centered)
        },
        decoder_norm: DecoderNorm::Unit,
        adam: Adam::default(),
        sparsity_window: 4,
        prefixes: Default::default(),
        dead: None,
        rank_by_decoder_norm: false,
        gradient_clip: None,
        panels: 1,
    };
    let second = StepSpec { loss: LossSpec { coefficient: 1e-2, ..first.loss }, ..first };
    let third = StepSpec {
        features: 45,
        pre_bias: true,
        activation: Activation::Relu,
        loss: LossSpec {
            penalty: Penalty::L1,
            coefficient: 2e-3,
            ..LossSpec::reconstruction(Mse::Uncentered)
        },
        decoder_norm: DecoderNorm::Free,
        ..first
    };
    [first, second, third]
}

fn options(sparse_density: f64) -> DeviceOptions {
    DeviceOptions { precision: Precision::Exact, sparse_density }
}

fn weights(spec: &StepSpec) -> Weights {
    Weights::init(WIDTH, spec.features, 7)
}

fn batch(step: u64) -> Array2<f32> {
    rows(BATCH, WIDTH, step + 1)
}

fn schedule(step: u64) -> Schedule {
    Schedule { lr: 2e-2 * (1.0 - step as f64 / 200.0), ..Schedule::constant(0.0) }
}

fn sharing(device: &SharedDevice<EmulatedDevice>, spec: StepSpec, density: f64) -> Emulated {
    DeviceEngine::on(device, spec, &weights(&spec), options(density)).unwrap()
}

/// One step of each engine on one batch.
fn submit(engines: &mut [Emulated], step: u64, stats: &mut [Vec<StepReport>]) {
    let rows = batch(step);
    for (engine, stats) in engines.iter_mut().zip(stats) {
        stats.extend(engine.submit_shared(step, Rows::F32(rows.view()).into(), &schedule(step)).unwrap());
    }
}

fn settle(engines: &mut [Emulated], stats: &mut [Vec<StepReport>]) {
    for (engine, stats) in engines.iter_mut().zip(stats) {
        while let Some(done) = engine.finish().unwrap() {
            stats.push(done);
        }
    }
}

/// The steps of an engine that has the device for itself.
fn alone(spec: StepSpec, density: f64, steps: std::ops::Range<u64>) -> (Vec<StepReport>, State) {
    let engine = DeviceEngine::new(EmulatedDevice::new(), spec, &weights(&spec), options(density));
    let (mut engines, mut stats) = ([engine.unwrap()], [Vec::new()]);
    for step in steps {
        stats[0].extend(engines[0].submit(batch(step).view().into(), &schedule(step)).unwrap());
    }
    settle(&mut engines, &mut stats);
    let [stats] = stats;
    (stats, engines[0].state().unwrap())
}

#[test]
fn half_precision_batches_are_uploaded_as_they_are() {
    let halves = |step| batch(step).mapv(f16::from_f32);
    let wide = |step| halves(step).mapv(f16::to_f32);
    let run = |in_half: bool| {
        let device = SharedDevice::new(EmulatedDevice::new());
        let mut engines = specs().map(|spec| sharing(&device, spec, 0.3));
        let mut stats = [Vec::new(), Vec::new(), Vec::new()];
        for step in 0..20 {
            let (halves, wide) = (halves(step), wide(step));
            let rows = if in_half { Rows::F16(halves.view()) } else { Rows::F32(wide.view()) };
            for (engine, stats) in engines.iter_mut().zip(&mut stats) {
                stats.extend(engine.submit_shared(step, rows.into(), &schedule(step)).unwrap());
            }
        }
        settle(&mut engines, &mut stats);
        let uploads = |bytes| device.with(|device| device.uploaded.get(&bytes).copied().unwrap_or(0));
        (stats, engines.map(|engine| engine.state().unwrap()), uploads(BATCH_BYTES), uploads(BATCH_BYTES / 2))
    };
    let (stats, states, uploads_in_full, uploads_in_half) = run(true);
    assert_eq!((uploads_in_full, uploads_in_half), (0, 20));
    let (expected_stats, expected_states, ..) = run(false);
    assert_eq!(stats, expected_stats);
    assert_eq!(states, expected_states);
}

#[test]
fn engines_that_share_a_device_do_what_each_does_alone() {
    // Lists that the batches of the start overflow and those of the end fit into, so that steps are refused too.
    let density = 0.3;
    let device = SharedDevice::new(EmulatedDevice::new());
    let mut engines = specs().map(|spec| sharing(&device, spec, density));
    let mut stats = [Vec::new(), Vec::new(), Vec::new()];
    let before = device.with(|device| device.uploaded.get(&BATCH_BYTES).copied().unwrap_or(0));
    for step in 0..40 {
        submit(&mut engines, step, &mut stats);
        // The training loop waits now and then.
        if step % 7 == 6 {
            settle(&mut engines, &mut stats);
        }
    }
    settle(&mut engines, &mut stats);
    let uploads = device.with(|device| device.uploaded[&BATCH_BYTES]) - before;
    assert_eq!(uploads, 40, "40 batches for {} engines", engines.len());
    let paths: Vec<Path> = stats.iter().flatten().map(|stats| stats.path).collect();
    assert!(paths.contains(&Path::Dense) && paths.contains(&Path::Sparse), "both kinds of steps");

    for ((spec, engine), stats) in specs().into_iter().zip(&engines).zip(&stats) {
        let engine_alone = DeviceEngine::new(EmulatedDevice::new(), spec, &weights(&spec), options(density));
        let (mut lone, mut expected) = ([engine_alone.unwrap()], [Vec::new()]);
        for step in 0..40 {
            submit(&mut lone, step, &mut expected);
            if step % 7 == 6 {
                settle(&mut lone, &mut expected);
            }
        }
        settle(&mut lone, &mut expected);
        assert_eq!(*stats, expected[0]);
        assert!(engine.state().unwrap() == lone[0].state().unwrap());
        assert_eq!(engine.weights().unwrap(), lone[0].weights().unwrap());
    }
}

#[test]
fn engines_that_leave_or_join_late_do_not_disturb_the_others() {
    let [first, second, third] = specs();
    let device = SharedDevice::new(EmulatedDevice::new());
    let mut engines = vec![sharing(&device, first, 1.0), sharing(&device, second, 1.0)];
    let mut stats = vec![Vec::new(), Vec::new()];
    for step in 0..3 {
        submit(&mut engines, step, &mut stats);
    }
    // The first leaves with a step under way; a third begins with the fourth batch.
    drop(engines.remove(0));
    engines.push(sharing(&device, third, 1.0));
    stats = vec![Vec::new(), Vec::new()];
    for step in 3..9 {
        submit(&mut engines, step, &mut stats);
    }
    settle(&mut engines, &mut stats);
    for (at, (spec, steps)) in [(second, 0..9), (third, 3..9)].into_iter().enumerate() {
        let (expected, state) = alone(spec, 1.0, steps);
        assert_eq!(stats[at].last(), expected.last());
        assert!(engines[at].state().unwrap() == state);
    }
}

#[test]
fn the_errors_of_rows_can_be_asked_for_between_steps() {
    let device = SharedDevice::new(EmulatedDevice::new());
    let mut engines = specs().map(|spec| sharing(&device, spec, 1.0));
    let mut stats = [Vec::new(), Vec::new(), Vec::new()];
    for step in 0..6 {
        if step % 2 == 1 {
            // As before a revival of dead features: no step is under way, and the batch is the next one.
            settle(&mut engines, &mut stats);
            for engine in &mut engines {
                assert_eq!(engine.squared_errors(batch(step).view().into()).unwrap().len(), BATCH);
            }
        }
        submit(&mut engines, step, &mut stats);
    }
    settle(&mut engines, &mut stats);
    for (at, spec) in specs().into_iter().enumerate() {
        let (expected, state) = alone(spec, 1.0, 0..6);
        assert_eq!(stats[at], expected);
        assert!(engines[at].state().unwrap() == state);
    }
}

#[test]
fn a_batch_that_one_engine_still_reads_is_not_written_over() {
    let device = SharedDevice::new(EmulatedDevice::new());
    let mut engines = specs().map(|spec| sharing(&device, spec, 1.0));
    assert!(engines[0].submit_shared(0, Rows::F32(batch(0).view()).into(), &schedule(0)).unwrap().is_none());
    for step in 0..3 {
        engines[1].submit_shared(step, Rows::F32(batch(step).view()).into(), &schedule(step)).unwrap();
    }
    // The first engine has not said what became of its step on batch 0, whose place the fourth would take.
    let error = engines[1].submit_shared(3, Rows::F32(batch(3).view()).into(), &schedule(3)).unwrap_err();
    assert!(error.to_string().contains("still under way"), "{error}");
    assert_eq!(engines[0].finish().unwrap().map(|stats| stats.step), Some(1));
    engines[1].submit_shared(3, Rows::F32(batch(3).view()).into(), &schedule(3)).unwrap();
}

#[test]
fn pairs_of_rows_are_refused_and_take_no_place() {
    let [spec, ..] = specs();
    let mut engine = sharing(&SharedDevice::new(EmulatedDevice::new()), spec, 1.0);
    let (input, target) = (batch(0), batch(1));
    let pair = StoredBatch { input: Rows::F32(input.view()), target: Some(Rows::F32(target.view())) };
    let error = engine.submit_shared(0, pair, &schedule(0)).unwrap_err();
    assert!(error.to_string().contains("targets other than the input"), "{error}");
    assert!(engine.finish().unwrap().is_none());
}

#[test]
fn one_engines_bad_step_leaves_the_others_as_they_are() {
    let [first, second, _] = specs();
    let device = SharedDevice::new(EmulatedDevice::new());
    let mut engines = vec![sharing(&device, first, 1.0), sharing(&device, second, 1.0)];
    let mut stats = vec![Vec::new(), Vec::new()];
    for step in 0..4 {
        submit(&mut engines, step, &mut stats);
    }
    settle(&mut engines, &mut stats);
    // Weights that no product stands.
    let mut state = engines[0].state().unwrap();
    state.weights.decoder.fill(f32::MAX);
    engines[0].restore(state).unwrap();
    let rows = batch(4);
    engines[0].submit_shared(4, Rows::F32(rows.view()).into(), &schedule(4)).unwrap();
    engines[1].submit_shared(4, Rows::F32(rows.view()).into(), &schedule(4)).unwrap();
    let error = engines[0].finish().unwrap_err();
    assert!(matches!(error, StepError::NonFiniteLoss { step: 5, .. }), "{error}");
    drop(engines.remove(0));
    let mut stats = vec![Vec::new()];
    for step in 5..8 {
        submit(&mut engines, step, &mut stats);
    }
    settle(&mut engines, &mut stats);
    let (expected, state) = alone(second, 1.0, 0..8);
    assert_eq!(stats[0].last(), expected.last());
    assert!(engines[0].state().unwrap() == state);
}

#[test]
fn memory_is_added_up_before_the_first_engine_is_made() {
    let steps: Vec<(StepSpec, DeviceOptions)> = specs().map(|spec| (spec, options(0.5))).to_vec();
    let device = SharedDevice::new(EmulatedDevice::new());
    let needed = |steps: &[_]| device_memory(steps).unwrap();
    let (one, all) = (needed(&steps[..1]), needed(&steps));
    let each: usize = steps.iter().map(|step| needed(&[*step])).sum();
    assert!(
        one < all && each == all + 2 * 3 * BATCH_BYTES / 2 * 3,
        "the three batches (and their room in half precision) are shared: {one} {all} {each}"
    );
    device.with(|device| device.free = all - 1);
    device.check_memory(&steps[..2]).unwrap();
    match device.check_memory(&steps).unwrap_err() {
        StepError::Device(error @ DeviceError::OutOfMemory { .. }) => {
            let told = error.to_string();
            assert!(told.contains(&all.to_string()) && told.contains(&(all - 1).to_string()), "{told}");
            assert!(told.contains("3 autoencoders") && told.contains("trained at once"), "{told}");
        }
        other => panic!("{other}"),
    }
    device.with(|device| device.free = all);
    device.check_memory(&steps).unwrap();
    // And what was promised is what they take, dense steps included.
    let mut engines = specs().map(|spec| sharing(&device, spec, 0.5));
    let mut stats = [Vec::new(), Vec::new(), Vec::new()];
    submit(&mut engines, 0, &mut stats);
    settle(&mut engines, &mut stats);
    assert!(stats.iter().all(|stats| stats[0].path == Path::Dense));
}

#[test]
fn engines_on_one_device_have_batches_of_one_size() {
    let device = SharedDevice::new(EmulatedDevice::new());
    let [first, ..] = specs();
    let _engine = sharing(&device, first, 1.0);
    let other = StepSpec { batch: BATCH + 1, ..first };
    let error = DeviceEngine::on(&device, other, &weights(&other), options(1.0)).err().unwrap();
    assert!(error.to_string().contains("the batch is [37, 20], but [36, 20] was expected"), "{error}");
}
