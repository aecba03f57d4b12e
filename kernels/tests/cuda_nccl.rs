//! Ranks with a device each on the emulated driver, which exchange bytes by the emulated NCCL (`kernels/emulation/cpp/driver`): the code
//! that drives GPUs, as it is.
//!
//! The ignored tests are what one rank does. They run in processes of their own, one for each rank, which the other tests start.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use emulation::{EmulatedDevice, EmulatedDriver};
use example_steps::{batch, spec, weights};
use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice, CudaOptions, Nccl, OneOf, Rendezvous};
use kernels::cuda::device::{Device, Move};
use kernels::cuda::launch::rows::PadRows;
use kernels::cuda::plan::DeviceOptions;
use kernels::cuda::step::CudaStep;
use kernels::outcome::StepReport;
use kernels::precision::Precision;
use kernels::spec::{Schedule, StepSpec};
use kernels::state::State;
use ranks::{Exchange, Threads};

const RANK: &str = "TEST_RANK";
const RANKS: &str = "TEST_RANKS";
/// The device of each rank if it is not that of its number; how long ranks wait, in milliseconds; which of them does something else.
const DEVICE: &str = "TEST_DEVICE";
const PATIENCE: &str = "TEST_PATIENCE";
const ODD: &str = "TEST_ODD";

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// Connects this process with the others.
fn connect() -> Result<Arc<Nccl>, kernels::cuda::cuda_device::NcclError> {
    let (rank, ranks) = (variable(RANK).unwrap(), variable(RANKS).unwrap());
    let one = OneOf { rank, ranks, local: variable(DEVICE).unwrap_or(rank) };
    let patience = Duration::from_millis(variable(PATIENCE).unwrap_or(300_000) as u64);
    Nccl::connect(one, &Rendezvous::Address, patience).map(Arc::new)
}

fn device(ranks: &Arc<Nccl>) -> CudaDevice {
    CudaDevice::new(&CudaOptions { poison: true, ranks: Some(ranks.clone()), ..CudaOptions::default() })
        .unwrap()
}

/// How one rank's process ended.
struct Ended {
    code: Option<i32>,
    told: String,
}

/// Runs a test of this file as each of `ranks` ranks; `of_rank` may give some of them other variables.
fn run(
    test: &str,
    ranks: usize,
    driver: &EmulatedDriver,
    of_rank: impl Fn(usize, &mut Command),
) -> Vec<Ended> {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut asleep = false;
    let meeting = format!("{test}:{}:{number}", std::process::id());
    let mut start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", test, "--nocapture"]);
        driver.prepare(&mut command);
        command.env(RANK, rank.to_string()).env(RANKS, ranks.to_string()).env("NCCL_COMM_ID", &meeting);
        command.env("CUDA_EMULATION_DEVICES", ranks.to_string());
        of_rank(rank, &mut command);
        asleep |=
            command.get_envs().any(|(name, value)| name == ODD && value.is_some_and(|odd| odd == "sleep"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..ranks).map(&mut start).collect();
    let mut first = true;
    let ended = children.into_iter().map(|mut child| {
        // One that sleeps is not waited for, once the first has ended.
        if !std::mem::take(&mut first) && asleep {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), told: text(&output.stdout) + &text(&output.stderr) }
    });
    ended.collect()
}

fn pass(test: &str, ranks: usize, driver: &EmulatedDriver) {
    for (rank, ended) in run(test, ranks, driver, |_, _| ()).into_iter().enumerate() {
        let ok = ended.code == Some(0) && ended.told.contains("1 passed");
        assert!(ok, "{test}, rank {rank} of {ranks}, {driver:?}: {:?}\n{}", ended.code, ended.told);
    }
}

fn drivers() -> Vec<EmulatedDriver> {
    let modes = [("eager", "8.0"), ("lazy", "9.0"), ("random:1", "9.0"), ("random:2", "8.0")];
    let driver = EmulatedDriver::new().with("LEAKS", "1");
    modes.map(|(mode, capability)| driver.clone().with("MODE", mode).with("CAPABILITY", capability)).to_vec()
}

#[test]
fn bytes_go_where_they_belong() {
    for driver in drivers() {
        pass("bytes_are_exchanged", 4, &driver);
    }
}

#[test]
#[ignore = "one of several ranks on the emulated driver"]
fn bytes_are_exchanged() {
    let ranks = connect().unwrap();
    let mut device = device(&ranks);
    let (rank, count) = (ranks.rank(), ranks.ranks());
    const PART: usize = 64 * 4;
    let mut buffer = || device.allocate(count * PART, "a test").unwrap();
    let (mut from, to, all) = (buffer(), buffer(), buffer());
    let tag = |a: usize, b: usize, round: usize| (100 * a + 10 * b + 1000 * round) as f32;
    for round in 0..6 {
        let sent: Vec<f32> = (0..count).flat_map(|to| [tag(rank, to, round); PART / 4]).collect();
        device.upload(&mut from, 0, bytemuck::cast_slice(&sent)).unwrap();
        // What is gathered is what a kernel has left before, at the own place.
        let own = PadRows { from: &from, out: &all, rows: count, width: 64 };
        own.launch(&mut device).unwrap();
        device
            .exchange(&[
                Move::AllToAll { from: &from, to: &to, part: PART },
                Move::AllGather { of: &all, part: PART },
            ])
            .unwrap();
        let got = |device: &mut CudaDevice, buffer: &CudaBuffer| {
            let mut numbers = vec![0.0f32; count * PART / 4];
            device.download(buffer, 0, bytemuck::cast_slice_mut(&mut numbers)).unwrap();
            numbers.chunks(PART / 4).map(|part| (part[0], part[PART / 4 - 1])).collect::<Vec<_>>()
        };
        let expected: Vec<_> = (0..count).map(|from| tag(from, rank, round)).map(|tag| (tag, tag)).collect();
        assert_eq!(got(&mut device, &to), expected, "round {round}");
        let expected: Vec<_> = (0..count).map(|from| tag(from, from, round)).map(|tag| (tag, tag)).collect();
        assert_eq!(got(&mut device, &all), expected, "round {round}");
        // And what the host has to say, in between.
        let mut told = vec![0; 2 * count];
        ranks.all_gather(&[rank as u8, round as u8], &mut told).unwrap();
        assert_eq!(told, (0..count as u8).flat_map(|rank| [rank, round as u8]).collect::<Vec<_>>());
        let mut word = [rank as u8 + 7; 300];
        ranks.broadcast(2, &mut word).unwrap();
        assert_eq!(word, [9; 300]);
        let send: Vec<u8> = (0..count as u8).map(|to| 10 * rank as u8 + to).collect();
        let mut received = vec![0; count];
        ranks.all_to_all(&send, &mut received).unwrap();
        assert_eq!(received, (0..count as u8).map(|from| 10 * from + rank as u8).collect::<Vec<_>>());
    }
    drop((from, to, all, device));
    ranks.finish();
}

/// Not a multiple of the panels, and more than one block of everything.
fn panels() -> StepSpec {
    StepSpec { panels: 4, pre_bias: false, ..spec(50, 105, 70) }
}

fn options(sparse_density: f64) -> DeviceOptions {
    DeviceOptions { precision: Precision::Exact, sparse_density }
}

/// Trains with two batch buffers and a step ahead, as the engine does.
fn train<D: Device>(
    device: &mut D,
    options: DeviceOptions,
    exchange: Arc<dyn Exchange>,
) -> (Vec<StepReport>, State) {
    use kernels::cuda::step::Outcome;
    let spec = panels();
    let mut step = CudaStep::shared(device, spec, options, weights(&spec, 2.0), exchange).unwrap();
    let mut batches = [0, 1].map(|_| device.allocate(step.batch_bytes(), "a batch").unwrap());
    let (mut reports, mut pending) = (Vec::new(), None);
    let report = |outcome| match outcome {
        Outcome::Done(report) => report,
        Outcome::Refused => panic!("the lists are long enough"),
    };
    for number in 0..6 {
        let buffer = &mut batches[number as usize % 2];
        device.upload(buffer, 0, bytemuck::cast_slice(batch(&spec, number).as_slice().unwrap())).unwrap();
        let submitted = step.submit(device, buffer, &Schedule::constant(1e-3)).unwrap();
        if let Some(before) = pending.replace(submitted) {
            reports.push(report(step.finish(device, before).unwrap()));
        }
    }
    reports.extend(pending.map(|last| report(step.finish(device, last).unwrap())));
    (reports, step.state(device).unwrap())
}

#[test]
fn ranks_with_a_gpu_each_train_as_one_process() {
    for driver in drivers() {
        pass("one_rank_trains", 2, &driver);
    }
    pass("one_rank_trains", 4, &drivers()[2]);
}

#[test]
#[ignore = "one of several ranks on the emulated driver"]
fn one_rank_trains() {
    let ranks = connect().unwrap();
    let mut device = device(&ranks);
    let (expected, state) = train(&mut EmulatedDevice::new(), options(1.0), Arc::new(ranks::Alone));
    // Lists hold every pair: no product of cuBLAS and no screen whose sums have another order.
    let (reports, reached) = train(&mut device, options(1.0), ranks.clone());
    assert_eq!(reports.len(), 6);
    for (got, expected) in reports.iter().zip(&expected) {
        // Other sums over rows alone.
        let (loss, expected) = (got.terms.loss(), expected.terms.loss());
        assert!((loss - expected).abs() <= 1e-5 * expected, "{loss} {expected}");
    }
    assert!(reached == state);
    // Dense products are the emulated cuBLAS' here, on any number of ranks.
    let (_, reached) = train(&mut device, options(0.0), ranks.clone());
    let alone = CudaOptions { ordinal: ranks.rank(), ..CudaOptions::default() };
    let (_, of_one) = train(&mut CudaDevice::new(&alone).unwrap(), options(0.0), Arc::new(ranks::Alone));
    assert!(reached == of_one);
    drop(device);
    ranks.finish();
}

#[test]
fn exchanges_are_no_part_of_a_recording() {
    pass("an_exchange_is_recorded", 2, &EmulatedDriver::new());
}

#[test]
#[ignore = "one of several ranks on the emulated driver"]
fn an_exchange_is_recorded() {
    let ranks = connect().unwrap();
    let mut device = device(&ranks);
    let buffer = device.allocate(512, "a test").unwrap();
    assert!(device.begin_recording().unwrap());
    let error = device.exchange(&[Move::AllGather { of: &buffer, part: 256 }]).unwrap_err().to_string();
    assert!(error.contains("is being recorded"), "{error}");
    // NCCL itself refuses it too, unless it says that the other rank has ended with that.
    let error = ranks.all_gather(&[1], &mut [0; 2]).unwrap_err().to_string();
    assert!(error.contains("captur") || error.contains("has ended"), "{error}");
}

/// All ranks but the odd one exchange 256 bytes; that one does what `TEST_ODD` says.
#[test]
#[ignore = "one of several ranks on the emulated driver"]
fn one_rank_is_odd() {
    let ranks = match connect() {
        Ok(ranks) => ranks,
        Err(error) => {
            println!("told: {error}");
            std::process::exit(3);
        }
    };
    let mut device = device(&ranks);
    let buffer = device.allocate(4096, "a test").unwrap();
    let other = device.allocate(4096, "a test").unwrap();
    let moves = match std::env::var(ODD).unwrap_or_default().as_str() {
        "size" => vec![Move::AllGather { of: &buffer, part: 128 }],
        "order" => vec![
            Move::AllToAll { from: &buffer, to: &other, part: 16 },
            Move::AllGather { of: &buffer, part: 256 },
        ],
        "nothing" => {
            ranks.finish();
            return;
        }
        "death" => std::process::exit(9),
        "sleep" => {
            std::thread::sleep(Duration::from_secs(600));
            return;
        }
        _ => vec![Move::AllGather { of: &buffer, part: 256 }],
    };
    let done = device.exchange(&moves).and_then(|()| device.synchronize());
    if let Err(error) = done {
        println!("told: {error}");
        assert!(ranks.is_lost());
        assert!(device.synchronize().is_err() && device.allocate(100, "a test").is_err());
        std::process::exit(3);
    }
}

/// Runs it with rank 1 odd, and returns what rank 0 said; the odd rank is stopped where it does not end.
fn odd(what: &str, driver: &EmulatedDriver) -> Ended {
    // Long enough for processes that start together on a busy machine.
    let patience = if what == "sleep" { "20000" } else { "300000" };
    let mut ended = run("one_rank_is_odd", 2, &driver.clone().asking(PATIENCE, patience), |rank, command| {
        if rank == 1 {
            command.env(ODD, what);
        }
    });
    ended.swap_remove(0)
}

#[test]
fn what_does_not_match_is_noticed() {
    for driver in [EmulatedDriver::new(), EmulatedDriver::new().with("MODE", "lazy")] {
        for (what, told) in [
            ("size", "NCCL: rank 0 expects 256 of uint8 from rank 1, which sends 128 of uint8"),
            ("order", "NCCL: rank 0 expects 256 of uint8 from rank 1, which sends 16 of uint8"),
            ("nothing", "NCCL: some ranks part while others exchange"),
        ] {
            let ended = odd(what, &driver);
            assert!(
                ended.code != Some(0) && ended.told.contains(told),
                "{what}: {:?} {}",
                ended.code,
                ended.told
            );
        }
    }
}

#[test]
fn a_rank_that_dies_is_an_error_of_the_others() {
    for driver in drivers() {
        // Nobody gives back what a lost device has.
        let ended = odd("death", &driver.with("LEAKS", "0"));
        assert_eq!(ended.code, Some(3), "{}", ended.told);
        assert!(ended.told.contains("told: an exchange between the ranks' devices failed"), "{}", ended.told);
        assert!(ended.told.contains("another rank has ended or failed"), "{}", ended.told);
        assert!(ended.told.contains("rank 1 has ended"), "{}", ended.told);
    }
}

#[test]
fn a_rank_that_stops_is_an_error_after_the_patience() {
    for driver in [EmulatedDriver::new(), EmulatedDriver::new().with("MODE", "lazy")] {
        let ended = odd("sleep", &driver);
        assert_eq!(ended.code, Some(3), "{}", ended.told);
        let told = "an exchange between the ranks' devices failed: not all of 2 ranks came within 20 s";
        assert!(ended.told.contains(told), "{}", ended.told);
    }
}

/// What each rank says that cannot be connected.
fn refused(ranks: usize, driver: &EmulatedDriver, of_rank: impl Fn(usize, &mut Command)) -> Vec<String> {
    let ended = run("one_rank_is_odd", ranks, driver, of_rank);
    let told = |ended: Ended| {
        assert_eq!(ended.code, Some(3), "{}", ended.told);
        let line = ended.told.lines().find_map(|line| line.split_once("told: "));
        line.unwrap_or_else(|| panic!("{}", ended.told)).1.to_owned()
    };
    ended.into_iter().map(told).collect()
}

#[test]
fn ranks_that_cannot_be_connected_say_why() {
    let driver = EmulatedDriver::new();
    // Two ranks with one device, which NCCL refuses.
    for told in refused(2, &driver, |_, command| {
        command.env(DEVICE, "1");
    }) {
        assert!(told.contains("NCCL cannot connect rank") && told.contains("Duplicate GPU"), "{told}");
    }
    // More ranks than devices.
    let told = refused(2, &driver, |_, command| {
        command.env(DEVICE, "2");
    })
    .remove(0);
    assert!(told.contains("rank 2 of those on its machine") && told.contains("there are 2 GPUs"), "{told}");
    // Others than the environment says.
    let told = refused(2, &driver, |rank, command| {
        command.env(RANKS, (2 + rank).to_string());
    });
    assert!(told[1].contains("do not agree on how many they are"), "{told:?}");
    // One that never comes.
    let alone = refused(1, &driver.clone().asking(PATIENCE, "1000"), |_, command| {
        command.env(RANKS, "2");
    });
    assert!(alone[0].contains("connecting the ranks: not all of 2 ranks came within 1 s"), "{alone:?}");
    // An old library, and none.
    let told = refused(2, &driver.clone().with("NCCL_VERSION", "21200"), |_, _| ()).remove(0);
    assert!(told.contains("is NCCL 2.12.0, and at least 2.14.0 is needed"), "{told}");
    let without = tempfile::tempdir().unwrap();
    for told in refused(2, &driver, |_, command| {
        let folders = command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH").unwrap().1.unwrap();
        let folder = std::env::split_paths(folders).next().unwrap();
        for library in ["libcuda.so.1", "libcuda.so", "libcublas.so.13", "libcublas.so"] {
            let link = without.path().join(library);
            if !link.exists() {
                std::os::unix::fs::symlink(folder.join(library), link).unwrap();
            }
        }
        let compiler = concat!(env!("CARGO_MANIFEST_DIR"), "/../nvrtc");
        command.env("LD_LIBRARY_PATH", std::env::join_paths([without.path(), compiler.as_ref()]).unwrap());
    }) {
        assert!(told.contains("need NCCL (libnccl.so.2), which was not found"), "{told}");
    }
}

#[test]
fn ranks_that_exchange_bytes_already_compare_their_devices() {
    // As by MPI, of which these are stand-ins: threads that never come to connect their devices.
    let driver = EmulatedDriver::new().with("DEVICES", "2");
    driver.pass_test("two_threads_name_one_device");
}

#[test]
#[ignore = "started on the emulated driver"]
fn two_threads_name_one_device() {
    let told = std::thread::scope(|scope| {
        let connect = |rank: Threads| {
            scope.spawn(move || {
                let one = OneOf { rank: rank.rank(), ranks: 2, local: 1 };
                let way = Rendezvous::Broadcast(&rank);
                Nccl::connect(one, &way, Duration::from_secs(60)).err().unwrap().to_string()
            })
        };
        let threads: Vec<_> = Threads::new(2, Duration::from_secs(60)).into_iter().map(connect).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for told in told {
        assert!(told.starts_with("ranks 0 and 1 would both use Emulated GPU 9.0 (GPU-656d756c"), "{told}");
        assert!(told.contains("start as many ranks on a machine as it has GPUs"), "{told}");
    }
}
