//! The device of the CUDA engine on an emulated driver (`kernels/emulation/cpp/driver/README.md`): the code that drives a GPU,
//! as it is.
//!
//! The ignored tests run on that driver, in processes of their own; the other tests start them, in every mode. By hand:
//! `cargo test -p kernels --test cuda_driver` and, on a machine with a GPU, `-- --ignored`.

use emulation::{EmulatedDevice, EmulatedDriver};
use example_steps::{batch, numbers};
use kernels::activation::{Activation, ThresholdAverage};
use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice, CudaMailbox, CudaOptions, ScreenKernel};
use kernels::cuda::device::Device;
use kernels::cuda::launch::rows::PadRows;
use kernels::cuda::plan::DeviceOptions;
use kernels::cuda::step::{CudaStep, Outcome};
use kernels::dead::{DeadLoss, DeadLossKind};
use kernels::error::DeviceError;
use kernels::loss::{LossSpec, Mse, Penalty};
use kernels::outcome::StepReport;
use kernels::parameters::Parameters;
use kernels::path::Path;
use kernels::precision::Precision;
use kernels::prefixes::Prefixes;
use kernels::spec::{DecoderNorm, Schedule, StepSpec};
use kernels::state::State;

/// The driver in each of its modes, and both generations of devices. Nothing may be left over at the end.
fn drivers() -> Vec<EmulatedDriver> {
    let modes =
        [("eager", "8.0"), ("lazy", "9.0"), ("random:1", "8.0"), ("random:2", "9.0"), ("random:3", "9.0")];
    let driver = EmulatedDriver::new().with("LEAKS", "1");
    modes.map(|(mode, capability)| driver.clone().with("MODE", mode).with("CAPABILITY", capability)).to_vec()
}

/// Runs an ignored test of this file in all modes.
fn in_all_modes(test: &str) {
    drivers().iter().for_each(|driver| driver.pass_test(test));
}

fn device() -> CudaDevice {
    CudaDevice::new(&CudaOptions { poison: true, ..CudaOptions::default() }).unwrap()
}

/// Copies `rows` rows of 64 numbers from one buffer to another, by a kernel.
fn copy(device: &mut CudaDevice, from: &CudaBuffer, to: &CudaBuffer, rows: usize) -> Result<(), DeviceError> {
    PadRows { from, out: to, rows, width: 64 }.launch(device)
}

fn buffer(device: &mut CudaDevice, rows: usize) -> CudaBuffer {
    device.allocate(rows * 64 * 4, "a test").unwrap()
}

/// What the posted work left in a mailbox.
fn collected(device: &mut CudaDevice, mailbox: &CudaMailbox) -> Vec<f32> {
    let mut numbers = vec![0.0f32; device.memory(mailbox).len() / 4];
    device.collect(mailbox, 0, bytemuck::cast_slice_mut(&mut numbers)).unwrap();
    numbers
}

/// Rows of a large upload, and of a small one.
const LARGE: usize = 1100;
const SMALL: usize = 3;

#[test]
fn uploads_neither_overtake_nor_are_overtaken() {
    in_all_modes("batches_in_two_buffers_arrive_in_order");
}

#[test]
#[ignore = "started on the emulated driver"]
fn batches_in_two_buffers_arrive_in_order() {
    for rows in [SMALL, LARGE] {
        let mut device = device();
        let mut batches = [buffer(&mut device, rows), buffer(&mut device, rows)];
        let mut outs = [(); 2].map(|()| device.mailbox(rows * 64 * 4).unwrap());
        let mut waiting = None;
        for step in 0..12 {
            let (batch, numbers) = (&mut batches[step % 2], numbers(rows * 64, 1 + step as u64));
            let mut bytes: Vec<u8> = bytemuck::cast_slice(&numbers).to_vec();
            device.upload(batch, 0, &bytes).unwrap();
            bytes.fill(0); // the upload has its own copy
            let out = &mut outs[step % 2];
            let memory = device.memory(out);
            copy(&mut device, batch, memory, rows).unwrap();
            device.post(out).unwrap();
            // A step behind, as training does.
            if let Some((step, numbers)) = waiting.replace((step, numbers)) {
                let got = collected(&mut device, &outs[step % 2]);
                assert!(got == numbers, "{rows} rows, batch {step}");
            }
        }
        // Nobody waits for the last copy before its mailbox is freed.
    }
}

#[test]
fn poison_does_not_overtake_an_upload() {
    in_all_modes("new_memory_is_poisoned_before_it_is_filled");
}

#[test]
#[ignore = "started on the emulated driver"]
fn new_memory_is_poisoned_before_it_is_filled() {
    let mut device = device();
    let mut first = buffer(&mut device, LARGE);
    for step in 0..6 {
        let expected = numbers(LARGE * 64, 1 + step);
        device.upload(&mut first, 0, bytemuck::cast_slice(&expected)).unwrap();
        let mut second = buffer(&mut device, LARGE);
        device.upload(&mut second, 0, bytemuck::cast_slice(&expected)).unwrap();
        let mut got = vec![0.0f32; LARGE * 64];
        device.download(&second, 0, bytemuck::cast_slice_mut(&mut got)).unwrap();
        assert!(got == expected, "the poison came after the upload");
    }
}

#[test]
fn recordings_replay_with_what_their_buffers_hold() {
    in_all_modes("a_recording_uses_the_present_content");
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_recording_uses_the_present_content() {
    let mut device = device();
    let mut batches = [buffer(&mut device, LARGE), buffer(&mut device, LARGE)];
    let mut outs = [(); 2].map(|()| device.mailbox(LARGE * 64 * 4).unwrap());
    let mut graphs = Vec::new();
    for at in 0..2 {
        assert!(device.begin_recording().unwrap());
        let out = device.memory(&outs[at]);
        copy(&mut device, &batches[at], out, LARGE).unwrap();
        graphs.push(device.end_recording().unwrap());
    }
    for step in 0..10 {
        let expected = numbers(LARGE * 64, 1 + step as u64);
        device.upload(&mut batches[step % 2], 0, bytemuck::cast_slice(&expected)).unwrap();
        device.replay(&graphs[step % 2]).unwrap();
        device.post(&mut outs[step % 2]).unwrap();
        if step % 3 == 0 {
            // The next upload goes into the buffer that the replay still reads.
            device.upload(&mut batches[step % 2], 0, &[7; LARGE * 64 * 4]).unwrap();
        }
        assert!(collected(&mut device, &outs[step % 2]) == expected, "step {step}");
    }
    drop(device); // before its buffers and graphs
}

#[test]
fn a_new_buffer_at_a_freed_ones_address_is_another_buffer() {
    in_all_modes("an_address_that_comes_again_is_no_recording_that_comes_again");
    EmulatedDriver::new()
        .with("MODE", "lazy")
        .with("REUSE", "1")
        .pass_test("an_address_that_comes_again_is_no_recording_that_comes_again");
}

#[test]
#[ignore = "started on the emulated driver"]
fn an_address_that_comes_again_is_no_recording_that_comes_again() {
    let mut device = device();
    let mut out = device.mailbox(LARGE * 64 * 4).unwrap();
    let mut graphs = std::collections::HashMap::new();
    for number in 0..6 {
        // Of the same size as the one before it, which is gone.
        let mut batch = buffer(&mut device, LARGE);
        for step in 0..3 {
            let expected = numbers(LARGE * 64, 1 + 10 * number + step);
            device.upload(&mut batch, 0, bytemuck::cast_slice(&expected)).unwrap();
            let identity = device.identity(&batch);
            graphs.entry(identity).or_insert_with(|| {
                assert!(step == 0 && device.begin_recording().unwrap());
                let out = device.memory(&out);
                copy(&mut device, &batch, out, LARGE).unwrap();
                device.end_recording().unwrap()
            });
            device.replay(&graphs[&identity]).unwrap();
            device.post(&mut out).unwrap();
            // This must wait for the replay, whichever buffer the recording was made with.
            device.upload(&mut batch, 0, &[7; LARGE * 64 * 4]).unwrap();
            assert!(collected(&mut device, &out) == expected, "buffer {number}, step {step}");
        }
    }
}

fn spec() -> StepSpec {
    example_steps::spec(50, 105, 70)
}

/// Other losses and norms.
fn specs() -> Vec<StepSpec> {
    let all = spec();
    let plain = LossSpec { coefficient: 1e-2, ..LossSpec::reconstruction(Mse::Sum) };
    vec![
        all,
        StepSpec {
            pre_bias: false,
            activation: Activation::Relu,
            loss: LossSpec { penalty: Penalty::L1, ..plain },
            decoder_norm: DecoderNorm::Unit,
            ..all
        },
        StepSpec {
            width: 64,
            loss: LossSpec { mse: Mse::Uncentered, penalty: Penalty::Tanh { scale: 2.0 }, ..plain },
            decoder_norm: DecoderNorm::Free,
            ..all
        },
    ]
}

fn weights(spec: &StepSpec) -> Parameters {
    example_steps::weights(spec, 2.0)
}

/// Trains `steps` steps with two batch buffers and a step ahead, as the engine does; what they report and the end.
fn train<D: Device>(
    device: &mut D,
    spec: StepSpec,
    options: DeviceOptions,
    steps: u64,
) -> (Vec<StepReport>, State) {
    let mut step = CudaStep::new(device, spec, options, weights(&spec)).unwrap();
    let bytes = spec.batch * spec.width * 4;
    let mut batches = [0, 1].map(|_| device.allocate(bytes, "a batch").unwrap());
    let mut stats = Vec::new();
    let mut pending = None;
    for number in 0..steps {
        let buffer = &mut batches[number as usize % 2];
        device.upload(buffer, 0, bytemuck::cast_slice(batch(&spec, number).as_slice().unwrap())).unwrap();
        let submitted = step.submit(device, buffer, &Schedule::constant(1e-3)).unwrap();
        if let Some(before) = pending.replace(submitted) {
            stats.push(step.finish(device, before).unwrap());
        }
    }
    stats.extend(pending.map(|last| step.finish(device, last).unwrap()));
    let stats = stats
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Done(stats) => stats,
            Outcome::Refused => panic!("the lists are long enough"),
        })
        .collect();
    (stats, step.state(device).unwrap())
}

#[test]
fn training_on_the_driver_is_training_on_the_kernels() {
    in_all_modes("steps_equal_those_of_the_emulated_device");
    let lazy = EmulatedDriver::new().with("MODE", "lazy").with("CAPABILITY", "8.0");
    lazy.pass_test("steps_with_other_losses_equal_those_of_the_emulated_device");
}

#[test]
#[ignore = "started on the emulated driver"]
fn steps_equal_those_of_the_emulated_device() {
    compare(&mut device(), spec(), &ALL_PRECISIONS);
}

#[test]
#[ignore = "started on the emulated driver"]
fn steps_with_other_losses_equal_those_of_the_emulated_device() {
    let mut device = device();
    specs()[1..].iter().for_each(|spec| compare(&mut device, *spec, &ALL_PRECISIONS));
}

#[test]
fn every_kind_of_step_is_replayed_as_on_the_kernels() {
    EmulatedDriver::new().with("MODE", "lazy").with("CAPABILITY", "8.0").pass_test("steps_of_every_kind");
    EmulatedDriver::new().with("MODE", "random:6").with("CAPABILITY", "9.0").pass_test("steps_of_every_kind");
}

/// Other activations, losses and updates than those of [`specs`].
fn kinds() -> Vec<StepSpec> {
    let all = StepSpec { activation: Activation::Relu, ..spec() };
    let jump = Activation::JumpRelu { bandwidth: 1.5, to_input: true };
    let counted = LossSpec { penalty: Penalty::Quadratic { target: 3.0 }, ..all.loss };
    let counted = LossSpec { weight_by_decoder_norm: false, ..counted };
    let threshold = ThresholdAverage { rate: 0.25, skipped_steps: 1, from_zero: false };
    let dense = LossSpec { mean_density: 1e-2, log_density: 1e-3, ..all.loss };
    vec![
        StepSpec { activation: jump, loss: counted, ..all },
        StepSpec { activation: Activation::TopK { k: 5 }, ..all },
        StepSpec { activation: Activation::BatchTopK { k: 5, threshold }, ..all },
        StepSpec { gradient_clip: Some(1e-2), ..all },
        StepSpec { activation: jump, gradient_clip: Some(1e-2), loss: counted, ..all },
        StepSpec { loss: dense, ..all },
        StepSpec {
            activation: Activation::BatchTopK { k: 2, threshold },
            prefixes: Prefixes::new(&[20, 60], 0.4).unwrap(),
            rank_by_decoder_norm: true,
            decoder_norm: DecoderNorm::Free,
            dead: Some(DeadLoss { after_steps: 1, kind: DeadLossKind::AuxK { k: 9, coefficient: 0.3 } }),
            ..all
        },
    ]
}

#[test]
#[ignore = "started on the emulated driver"]
fn steps_of_every_kind() {
    let mut device = device();
    kinds().into_iter().for_each(|spec| compare(&mut device, spec, &[Precision::Exact]));
}

const ALL_PRECISIONS: [Precision; 3] = [Precision::Exact, Precision::Fp32, Precision::Bf16];

/// Trains with these precisions on both paths, on the driver and on the kernels.
fn compare(device: &mut CudaDevice, spec: StepSpec, precisions: &[Precision]) {
    for precision in precisions.iter().copied() {
        for path in [Path::Sparse, Path::Dense] {
            let density = if path == Path::Sparse { 1.0 } else { 0.0 };
            let options = DeviceOptions { precision, sparse_density: density };
            let (expected, end) = train(&mut EmulatedDevice::new(), spec, options, 6);
            let (got, reached) = train(device, spec, options, 6);
            let what = format!("{:?} {:?} {precision:?} {path:?}", spec.activation, spec.loss.mse);
            assert_eq!(got.len(), 6);
            for (got, expected) in got.iter().zip(&expected) {
                let (loss, expected_loss) = (got.terms.loss(), expected.terms.loss());
                let difference = (loss - expected_loss).abs();
                assert!(difference <= 1e-5 * expected_loss, "{what}: {got:?}, expected {expected:?}");
            }
            // No product of cuBLAS and no screen whose sums have another order: every bit.
            if path == Path::Sparse && precision != Precision::Bf16 {
                assert!(reached == end, "{what}");
            }
        }
    }
}

#[test]
fn several_autoencoders_share_the_device() {
    in_all_modes("each_of_several_does_what_it_does_alone");
}

#[test]
#[ignore = "started on the emulated driver"]
fn each_of_several_does_what_it_does_alone() {
    let options = DeviceOptions { precision: Precision::Exact, sparse_density: 1.0 };
    let mut device = device();
    let specs = [specs()[0], specs()[1]];
    let alone = specs.map(|spec| train(&mut device, spec, options, 6));
    let mut steps: Vec<_> =
        specs.iter().map(|spec| CudaStep::new(&mut device, *spec, options, weights(spec)).unwrap()).collect();
    let bytes = specs[0].batch * specs[0].width * 4;
    let mut batches = [0, 1].map(|_| device.allocate(bytes, "a batch").unwrap());
    let mut pending: Vec<_> = Vec::new();
    for number in 0..6 {
        let buffer = &mut batches[number as usize % 2];
        device.upload(buffer, 0, bytemuck::cast_slice(batch(&specs[0], number).as_slice().unwrap())).unwrap();
        let submitted: Vec<_> = steps
            .iter_mut()
            .map(|step| step.submit(&mut device, buffer, &Schedule::constant(1e-3)).unwrap())
            .collect();
        for (step, before) in steps.iter_mut().zip(std::mem::replace(&mut pending, submitted)) {
            step.finish(&mut device, before).unwrap();
        }
    }
    for ((step, before), (_, end)) in steps.iter_mut().zip(pending).zip(alone) {
        step.finish(&mut device, before).unwrap();
        assert!(step.state(&mut device).unwrap() == end);
    }
}

#[test]
fn the_time_of_kernels_is_measured() {
    in_all_modes("every_launch_has_a_time");
    EmulatedDriver::new().pass_test("recorded_steps_are_measured_launch_by_launch");
}

#[test]
#[ignore = "started on the emulated driver"]
fn recorded_steps_are_measured_launch_by_launch() {
    let (mut device, spec) = (device(), spec());
    let options = DeviceOptions { precision: Precision::Exact, sparse_density: 1.0 };
    let mut step = CudaStep::new(&mut device, spec, options, weights(&spec)).unwrap();
    let mut buffer = device.allocate(spec.batch * spec.width * 4, "a batch").unwrap();
    device.upload(&mut buffer, 0, bytemuck::cast_slice(batch(&spec, 0).as_slice().unwrap())).unwrap();
    let mut train = |device: &mut CudaDevice, steps: usize| {
        for _ in 0..steps {
            step.step(device, &buffer, &Schedule::constant(1e-3)).unwrap();
        }
    };
    train(&mut device, 3); // the third is a replay
    device.start_timing().unwrap();
    train(&mut device, 2);
    let timings = device.finish_timing().unwrap();
    for kernel in ["encode_wgmma", "row_norms", "window_features"] {
        assert_eq!(timings.get(kernel).map_or(0, Vec::len), 2, "{kernel}: {:?}", timings.keys());
    }
    train(&mut device, 3); // and recorded again
}

#[test]
#[ignore = "started on the emulated driver"]
fn every_launch_has_a_time() {
    let mut device = device();
    let (from, to) = (buffer(&mut device, SMALL), buffer(&mut device, SMALL));
    device.start_timing().unwrap();
    assert!(!device.begin_recording().unwrap(), "what is measured is not recorded");
    for _ in 0..3 {
        copy(&mut device, &from, &to, SMALL).unwrap();
    }
    let timings = device.finish_timing().unwrap();
    assert_eq!(timings["pad_rows"].len(), 3);
    assert!(timings["pad_rows"].iter().all(|seconds| *seconds >= 0.0));
}

const SCREEN: &str = "SAE_TRAINER_CUDA_SCREEN";
const BOUNDED_WAITS: &str = "SAE_TRAINER_CUDA_BOUNDED_WAITS";

#[test]
fn the_screen_can_be_chosen_from_outside() {
    let cases = [
        ("9.0", "", "encode_wgmma"),
        ("9.0", "wgmma", "encode_wgmma"),
        ("9.0", "mma", "encode_mma"),
        ("9.0", "plain", "screen"),
        ("8.0", "", "encode_mma"),
        ("8.0", "plain", "screen"),
    ];
    for (capability, asked, expected) in cases {
        let driver = EmulatedDriver::new().with("CAPABILITY", capability).asking(SCREEN, asked);
        let output = driver.run_test("the_screen_of_a_step_is_named");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(&format!("screened by {expected}\n")), "{capability} {asked}: {told}");
    }
    // The caller's wish comes before the environment's.
    let driver = EmulatedDriver::new().asking(SCREEN, "wgmma");
    driver.pass_test("the_screen_of_the_options_is_used");
}

/// The kernel that screens in a step.
fn screen_of(mut device: CudaDevice) -> &'static str {
    let spec = spec();
    let options = DeviceOptions { precision: Precision::Exact, sparse_density: 1.0 };
    let mut step = CudaStep::new(&mut device, spec, options, weights(&spec)).unwrap();
    let mut buffer = device.allocate(spec.batch * spec.width * 4, "a batch").unwrap();
    device.upload(&mut buffer, 0, bytemuck::cast_slice(batch(&spec, 0).as_slice().unwrap())).unwrap();
    device.start_timing().unwrap();
    step.step(&mut device, &buffer, &Schedule::constant(1e-3)).unwrap();
    let timings = device.finish_timing().unwrap();
    let screens: Vec<_> = ["screen", "encode_mma", "encode_wgmma"]
        .into_iter()
        .filter(|name| timings.contains_key(name))
        .collect();
    assert_eq!(screens.len(), 1, "{screens:?}");
    screens[0]
}

#[test]
#[ignore = "started on the emulated driver"]
fn the_screen_of_a_step_is_named() {
    println!("screened by {}", screen_of(device()));
}

#[test]
#[ignore = "started on the emulated driver"]
fn the_screen_of_the_options_is_used() {
    let options = CudaOptions { screen: Some(ScreenKernel::Mma), ..CudaOptions::default() };
    assert_eq!(screen_of(CudaDevice::new(&options).unwrap()), "encode_mma");
}

#[test]
fn a_check_build_computes_what_the_other_builds_do() {
    for (mode, capability) in [("eager", "9.0"), ("lazy", "8.0"), ("random:4", "9.0")] {
        let driver =
            EmulatedDriver::new().with("MODE", mode).with("CAPABILITY", capability).with("LEAKS", "1");
        let driver = driver.asking(BOUNDED_WAITS, "1");
        driver.pass_test("steps_equal_those_of_the_emulated_device");
        driver.pass_test("batches_in_two_buffers_arrive_in_order");
    }
}

#[test]
fn a_kernel_that_never_ends_is_an_error_that_names_it() {
    for mode in ["eager", "lazy", "random:5"] {
        let driver = EmulatedDriver::new().with("MODE", mode).with("HANG_LAUNCH", "3");
        let output = driver.run_test("a_kernel_hangs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("the host waits for ever, as pad_rows does not end"), "{mode}: {told}");
        driver.asking(BOUNDED_WAITS, "1").pass_test("a_kernel_hangs");
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_kernel_hangs() {
    let mut device = device();
    let (from, to) = (buffer(&mut device, SMALL), buffer(&mut device, SMALL));
    for _ in 0..4 {
        copy(&mut device, &from, &to, SMALL).unwrap();
    }
    let error = device.download(&to, 0, &mut [0; 4]).unwrap_err().to_string();
    assert!(error.contains("still busy after 10 seconds; what does not end is pad_rows"), "{error}");
    // And from then on everything, at once.
    assert!(device.synchronize().is_err() && device.allocate(100, "a test").is_err());
}

#[test]
fn a_kernel_that_gives_up_waiting_says_what_it_waited_for() {
    // The sixth launch is the first step's screen; the kernels of the third step are a recording's.
    let driver = EmulatedDriver::new().with("MODE", "lazy").asking(BOUNDED_WAITS, "1");
    driver.clone().with("TRAP_LAUNCH", "6").pass_test("a_screen_gives_up");
    driver.with("TRAP_LAUNCH", "41").pass_test("a_screen_gives_up");
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_screen_gives_up() {
    let (mut device, spec) = (device(), spec());
    let options = DeviceOptions { precision: Precision::Exact, sparse_density: 1.0 };
    let mut step = CudaStep::new(&mut device, spec, options, weights(&spec)).unwrap();
    let mut buffer = device.allocate(spec.batch * spec.width * 4, "a batch").unwrap();
    device.upload(&mut buffer, 0, bytemuck::cast_slice(batch(&spec, 0).as_slice().unwrap())).unwrap();
    let failed = (0..4)
        .find_map(|_| step.step(&mut device, &buffer, &Schedule::constant(1e-3)).err())
        .unwrap()
        .to_string();
    assert!(failed.contains("CUDA_ERROR_LAUNCH_FAILED"), "{failed}");
    assert!(
        failed.contains("block 2 of encode_wgmma gave up after two seconds: thread 129 waited"),
        "{failed}"
    );
}

#[test]
fn a_device_that_cannot_be_used_says_why() {
    let cases = [
        ("DEVICES", "0", "no CUDA-capable device is detected"),
        ("VERSION", "11080", "supports CUDA 11.8, and at least CUDA 12.0 is needed"),
        ("VERSION", "12080", "because NVRTC is of that version"),
        ("CAPABILITY", "7.5", "compute capability 7.5; 8.0 (Ampere) or newer is needed"),
        ("FAIL_ALLOCATION", "1", "out of memory"),
    ];
    for (name, value, expected) in cases {
        let driver = EmulatedDriver::new().with(name, value).with("LEAKS", "1");
        let output = driver.run_test("a_device_is_set_up");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(101), "{name}={value}: {told}");
        assert!(told.contains(expected), "{name}={value}: {told}");
    }
    let cases = [
        (SCREEN, "tensor", "SAE_TRAINER_CUDA_SCREEN is \"tensor\", but it takes plain, mma or wgmma"),
        (SCREEN, "wgmma", "only compute capability 9.0 has, but Emulated GPU 8.0 has 8.0"),
        (BOUNDED_WAITS, "yes", "SAE_TRAINER_CUDA_BOUNDED_WAITS is \"yes\", but it takes 0 or 1"),
    ];
    for (variable, value, expected) in cases {
        let driver =
            EmulatedDriver::new().with("CAPABILITY", "8.0").with("LEAKS", "1").asking(variable, value);
        let output = driver.run_test("a_device_is_set_up");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(101), "{variable}={value}: {told}");
        assert!(told.contains(expected), "{variable}={value}: {told}");
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_device_is_set_up() {
    if let Err(error) = CudaDevice::new(&CudaOptions::default()) {
        panic!("{error}");
    }
}

#[test]
fn too_little_memory_and_a_failing_kernel_are_errors_with_advice() {
    EmulatedDriver::new().with("MEMORY", "40000000").with("LEAKS", "1").pass_test("memory_runs_out");
    // The second allocation is the first after cuBLAS' workspace.
    EmulatedDriver::new()
        .with("FAIL_ALLOCATION", "2")
        .with("LEAKS", "1")
        .pass_test("memory_runs_out_unforeseen");
    for driver in drivers() {
        driver.with("FAIL_LAUNCH", "3").pass_test("a_kernel_fails");
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn memory_runs_out() {
    let mut device = CudaDevice::new(&CudaOptions::default()).unwrap();
    let free = device.free_memory().unwrap();
    let error = device.allocate(free + 1, "the lists").unwrap_err();
    let DeviceError::OutOfMemory { what, wanted, free: left } = error else { panic!("{error}") };
    assert_eq!((what.as_str(), wanted, left), ("the lists", free + 1, free));
    let large = StepSpec { features: 200_000, ..spec() };
    let error = CudaStep::new(&mut device, large, DeviceOptions::default(), weights(&large)).err().unwrap();
    assert!(error.to_string().contains("lower the batch size"), "{error}");
    assert_eq!(device.free_memory().unwrap(), free, "all that was allocated is given back");
}

#[test]
#[ignore = "started on the emulated driver"]
fn memory_runs_out_unforeseen() {
    let mut device = CudaDevice::new(&CudaOptions::default()).unwrap();
    let error = device.allocate(1000, "the lists").unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_kernel_fails() {
    let mut device = device();
    let (from, to) = (buffer(&mut device, SMALL), buffer(&mut device, SMALL));
    let failed = (0..20).find_map(|_| {
        let result = copy(&mut device, &from, &to, SMALL);
        result.and_then(|()| device.synchronize()).err()
    });
    let error = failed.expect("the third launch fails");
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    // And from then on everything, without a panic.
    assert!(device.synchronize().is_err());
    assert!(device.allocate(100, "a test").is_err());
}
