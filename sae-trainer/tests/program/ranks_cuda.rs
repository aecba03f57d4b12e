//! Runs that several processes with a GPU each do together, on the emulated driver and its NCCL
//! (`kernels/emulation/cpp/driver/README.md`). The one that needs MPI needs `scripts/fetch-mpi`, and runs with `--ignored`.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use emulation::EmulatedDriver;

use crate::cuda::assert_alike;
use crate::fixture::{Place, lines, text};
use crate::ranks::{MPICH, mpirun};

const RUN: &str = "--store store --features 128 --batch 128 --lr 1e-3 --l0-coefficient 2e-2 --log-every 1 \
                   --sparsity-window 25 --eval-rows 512 --device cuda --panels 4";

fn driver() -> EmulatedDriver {
    EmulatedDriver::new().with("MODE", "lazy").with("DEVICES", "4")
}

/// The processes that torchrun would start, rank 0 first, each with a device.
fn start(place: &Place, driver: &EmulatedDriver, ranks: usize, line: &str) -> Vec<Child> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let meeting = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let start = |rank: usize| {
        let mut command = place.command(line);
        let (number, count) = (rank.to_string(), ranks.to_string());
        command.env("RANK", &number).env("WORLD_SIZE", &count);
        command.env("LOCAL_RANK", &number).env("LOCAL_WORLD_SIZE", &count);
        command.env("MASTER_ADDR", &meeting).env("MASTER_PORT", "29500");
        driver.prepare(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    (0..ranks).map(start).collect()
}

fn ended(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// Runs the program as so many ranks; all have to succeed and give everything back. Returns what the first one said.
fn run(place: &Place, driver: &EmulatedDriver, ranks: usize, line: &str) -> String {
    let driver = &driver.clone().with("LEAKS", "1");
    if ranks == 1 {
        let mut command = place.command(line);
        driver.prepare(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
        return text(&output.stderr);
    }
    let outputs = ended(start(place, driver, ranks, line));
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "rank {rank} of {ranks}: {line}\n{}", text(&output.stderr));
        assert!(rank == 0 || output.stderr.is_empty(), "rank {rank}: {}", text(&output.stderr));
    }
    text(&outputs[0].stderr)
}

#[test]
fn any_number_of_gpus_trains_the_same_autoencoder() {
    let place = Place::new();
    run(&place, &driver(), 1, &format!("{RUN} --steps 12 --out one"));
    for (ranks, mode) in [(2, "lazy"), (4, "random:1")] {
        let out = format!("ranks-{ranks}");
        let told = run(&place, &driver().with("MODE", mode), ranks, &format!("{RUN} --steps 12 --out {out}"));
        assert!(told.contains(&format!("cuda, {ranks} ranks of Emulated GPU")), "{told}");
        assert_eq!(place.metrics(&out), place.metrics("one"), "{ranks}");
        assert_eq!(place.sae_bytes(&out), place.sae_bytes("one"), "{ranks}");
    }
    place.run(&format!("{} --steps 12 --out cpu", RUN.replace("--device cuda", "--device cpu")));
    assert_alike(&place.metrics("ranks-4"), &place.metrics("cpu"));
}

#[test]
fn a_run_goes_on_with_another_number_of_gpus() {
    let place = Place::new();
    let jump = RUN.replace("--l0-coefficient 2e-2", "--activation jump-relu --mse sum --l0-coefficient 1e-2");
    run(&place, &driver(), 1, &format!("{jump} --steps 14 --out straight"));
    run(&place, &driver(), 4, &format!("{jump} --steps 6 --out parts"));
    run(&place, &driver(), 2, "--resume --out parts --steps 10 --log-every 1 --device cuda");
    run(&place, &driver(), 1, "--resume --out parts --steps 14 --log-every 1 --device cuda");
    assert_eq!(place.metrics("parts"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("parts"), place.sae_bytes("straight"));
}

#[test]
fn the_points_of_a_sweep_are_trained_by_all_gpus() {
    let place = Place::new();
    let flags = "--revive none,resample --revive-every 4 --dead-rows 1k --steps 10";
    let line = format!("sweep {} {flags}", RUN.replace("2e-2", "5e-3,2e-2"));
    run(&place, &driver(), 1, &format!("{line} --out one"));
    for (ranks, mode) in [(2, "lazy"), (4, "random:1")] {
        let out = format!("ranks-{ranks}");
        run(&place, &driver().with("MODE", mode), ranks, &format!("{line} --out {out}"));
        for coefficient in ["5e-3", "2e-2"] {
            for revive in ["none", "resample"] {
                let name = format!("l0-coefficient-{coefficient}_revive-{revive}");
                let [here, there] = [&*out, "one"].map(|sweep| format!("{sweep}/{name}"));
                assert_eq!(place.metrics(&here), place.metrics(&there), "{here}");
                assert_eq!(place.sae_bytes(&here), place.sae_bytes(&there), "{here}");
            }
        }
    }
}

#[test]
fn a_gpu_that_is_lost_ends_the_run_which_goes_on_later() {
    let place = Place::new();
    let line = format!("{RUN} --steps 4000 --checkpoint-every 4 --rank-timeout 30 --out broken");
    for signal in ["-KILL", "-STOP"] {
        let mut children = start(&place, &driver(), 2, &line);
        let started = Instant::now();
        while lines(&place.path("broken/metrics.jsonl")) < 6 {
            assert!(started.elapsed() < Duration::from_secs(120), "waited two minutes for some steps");
            if children[0].try_wait().unwrap().is_some() {
                panic!("{}", text(&ended(children).remove(0).stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = children[1].id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let first = children.remove(0).wait_with_output().unwrap();
        let told = text(&first.stderr);
        assert_eq!(first.status.code(), Some(1), "{signal}: {told}");
        assert!(told.contains("error: rank 0: ") && told.contains("rank 1"), "{signal}: {told}");
        assert!(told.contains("--resume"), "{signal}: {told}");
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        if signal == "-KILL" {
            run(&place, &driver(), 1, "--resume --out broken --steps 12 --log-every 1 --device cuda");
            run(&place, &driver(), 1, &format!("{RUN} --steps 12 --out straight"));
            assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
            std::fs::remove_dir_all(place.path("broken")).unwrap();
        }
    }
}

#[test]
fn what_gpus_cannot_divide_is_refused_by_all_and_leaves_nothing() {
    let place = Place::new();
    let refused = |ranks: usize, driver: &EmulatedDriver, line: &str| -> String {
        let outputs = ended(start(&place, driver, ranks, line));
        for output in &outputs {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        }
        assert!(!place.path("run").exists(), "a run that cannot start leaves nothing");
        outputs.iter().map(|output| text(&output.stderr)).collect()
    };
    let topk = RUN.replace("--l0-coefficient 2e-2", "--activation topk --k 5");
    let told = refused(2, &driver(), &format!("{topk} --steps 4 --out run"));
    assert!(told.contains("panels of features with topk and batch-topk yet"), "{told}");
    let told = refused(2, &driver(), &format!("{RUN} --pre-bias --steps 4 --out run"));
    assert!(told.contains("panels of features with a pre-bias yet"), "{told}");
    let told =
        refused(4, &driver().with("DEVICES", "2"), &format!("{RUN} --steps 4 --rank-timeout 2 --out run"));
    assert!(told.contains("rank 2 of those on its machine") && told.contains("there are 2 GPUs"), "{told}");
    let told = refused(2, &driver().with("DEVICES", "1"), &format!("{RUN} --steps 4 --out run"));
    assert!(told.contains("Duplicate GPU"), "{told}");
    let told = refused(2, &driver().with("NCCL_VERSION", "21200"), &format!("{RUN} --steps 4 --out run"));
    assert!(told.contains("at least 2.14.0 is needed"), "{told}");
    let told = refused(2, &driver().asking("MASTER_PORT", "65535"), &format!("{RUN} --steps 4 --out run"));
    assert!(told.contains("MASTER_PORT is 65535"), "{told}");
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn ranks_that_mpi_connects_meet_through_it() {
    let place = Place::new();
    run(&place, &driver(), 1, &format!("{RUN} --steps 8 --out one"));
    for ranks in [2, 4] {
        let out = format!("mpi-{ranks}");
        let mut command = mpirun(&place, MPICH, ranks, &format!("{RUN} --steps 8 --threads 1 --out {out}"));
        driver().prepare(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(place.sae_bytes(&out), place.sae_bytes("one"));
    }
    // Two ranks that see the same device.
    let mut command = mpirun(&place, MPICH, 2, &format!("{RUN} --steps 8 --threads 1 --out run"));
    driver().with("DEVICES", "1").prepare(&mut command);
    let output = command.output().unwrap();
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("ranks 0 and 1 would both use Emulated GPU"), "{told}");
    assert!(!place.path("run").exists());
}
