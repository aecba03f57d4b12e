//! `--device cuda` on an emulated driver (`kernels/emulation/cpp/driver/README.md`): the program is the real one, and its
//! kernels run on the CPU.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use activation_store::RowType;
use serde_json::Value;

use crate::fixture::{Place, WIDTH, mixtures, text, write_hook_store};
use emulation::EmulatedDriver;
use sae::Sae;

/// From an autoencoder that few features of which are active in a row: after the first steps the sparse path is taken.
const RUN: &str = "--store store --batch 128 --lr 1e-3 --l0-coefficient 2e-2 --log-every 1 --steps 30 \
                   --sparsity-window 25 --init-from start/sae --eval-rows 512 --device cuda";

fn place() -> Place {
    let place = Place::new();
    let line =
        "--store store --features 512 --batch 256 --lr 3e-3 --l0-coefficient 3e-2 --steps 1500 --device cpu";
    place.run(&format!("{line} --out start"));
    place
}

/// A driver that is as late as it may be.
fn late() -> EmulatedDriver {
    EmulatedDriver::new().with("MODE", "lazy").with("LEAKS", "1")
}

fn command(place: &Place, driver: &EmulatedDriver, line: &str) -> Command {
    let mut command = place.command(line);
    driver.prepare(&mut command);
    command
}

/// Runs the program on the driver; it has to succeed.
fn run(place: &Place, driver: &EmulatedDriver, line: &str) -> Output {
    let output = command(place, driver, line).output().unwrap();
    assert!(output.status.success(), "{line} {driver:?} {}\n{}", output.status, text(&output.stderr));
    output
}

/// Runs the program on the driver; it has to fail with exit code 1, and returns its complaint.
fn fail(place: &Place, driver: &EmulatedDriver, line: &str) -> String {
    let output = command(place, driver, line).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line} {driver:?}\n{told}");
    assert!(told.contains("error: ") && !told.contains("panicked"), "{told}");
    told
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// The lines of a report, by what they count.
fn counted(report: &Path, what: &str) -> u64 {
    let text = std::fs::read_to_string(report).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok());
    line.unwrap_or(0)
}

/// Metrics of two runs whose sums have another order.
pub(crate) fn assert_alike(found: &[Value], expected: &[Value]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found["step"], expected["step"]);
        let difference = |quantity: &str| {
            let number = |line: &Value| line[quantity].as_f64().unwrap();
            (number(found) - number(expected)).abs()
        };
        // Not the loss: an activation that rounding moves over 0 changes it by a whole count of L0.
        assert!(difference("mse_centered") <= 1e-3, "{found}\n{expected}");
        assert!(difference("explained_variance") <= 1e-3, "{found}\n{expected}");
        assert!(difference("l0") <= 3.0 / 128.0, "{found}\n{expected}");
    }
}

#[test]
fn a_run_on_the_gpu_is_the_run_on_the_cpu() {
    let place = place();
    place.run(&format!("{} --out cpu", RUN.replace("--device cuda", "--device cpu")));
    let expected = place.metrics("cpu");
    let drivers = [
        (late().with("CAPABILITY", "8.0"), "kernel encode_mma"),
        (late().with("MODE", "random:1"), "kernel encode_wgmma"),
    ];
    for (at, (driver, screen)) in drivers.into_iter().enumerate() {
        let (name, report) = (format!("cuda-{at}"), place.path(&format!("report-{at}")));
        let driver = driver.with("REPORT", &report.display().to_string());
        // A GPU that is there is used without being asked for.
        let line = RUN.replace("--device cuda", "");
        let told = text(&run(&place, &driver, &format!("{line} --out {name}")).stderr);
        assert!(told.contains("cuda, Emulated GPU"), "{told}");
        // Steps of both kinds.
        assert!(counted(&report, screen) > 10 && counted(&report, "product") > 0);
        assert!(counted(&report, "graph-launches") > 10);
        let found = place.metrics(&name);
        assert_alike(&found, &expected);
    }
}

/// Other kinds than ReLU, each with a kernel that only it has.
const KINDS: [(&str, &str); 7] = [
    ("--activation topk --k 6", "kernel select_rows"),
    ("--activation batch-topk --k 6 --threshold-after 2", "kernel keep_ties"),
    ("--activation topk --k 4 --aux-k 8 --dead-rows 500", "kernel gather_dead"),
    (
        "--activation batch-topk --k 4 --rank-by-decoder-norm --decoder-norm free --aux-k 8 --aux-loss sum --dead-rows 500 \
         --matryoshka 0.125,0.5",
        "kernel decode_groups",
    ),
    ("--activation jump-relu --mse sum --l0-coefficient 1e-2 --bandwidth 0.2", "kernel activate_jump"),
    ("--loss l1 --l1-coefficient 1e-2 --clip-gradient 0.1", "kernel clip_scale"),
    ("--mean-density-coefficient 1e-2 --log-density-coefficient 1e-3 --loss tanh", "kernel window_densities"),
];

#[test]
fn every_kind_on_the_gpu_is_the_kind_on_the_cpu() {
    let place = Place::new();
    let line = "--store store --features 64 --batch 128 --lr 1e-3 --steps 14 --sparsity-window 25 \
                --log-every 1 --eval-rows 512";
    for (number, (kind, kernel)) in KINDS.into_iter().enumerate() {
        let [cpu, cuda, report] = ["cpu", "cuda", "report"].map(|name| format!("{name}-{number}"));
        place.run(&format!("{line} {kind} --device cpu --out {cpu}"));
        let driver = late().with("REPORT", &place.path(&report).display().to_string());
        run(&place, &driver, &format!("{line} {kind} --device cuda --out {cuda}"));
        assert!(counted(&place.path(&report), kernel) > 0, "{kind}: {kernel} did not run");
        assert!(counted(&place.path(&report), "graph-launches") > 7, "{kind} is not replayed");
        assert_alike(&place.metrics(&cuda), &place.metrics(&cpu));
        let threshold = |run: &str| Sae::load(&place.path(&format!("{run}/sae"))).unwrap().weights.threshold;
        match (threshold(&cuda), threshold(&cpu)) {
            (Some(found), Some(expected)) => {
                assert!(expected.iter().any(|threshold| *threshold > 0.0));
                let pairs = found.iter().zip(&expected);
                pairs.for_each(|(a, b)| assert!((a - b).abs() <= 1e-4 * b.abs(), "{kind}: {a} {b}"));
            }
            (found, expected) => assert!(found.is_none() && expected.is_none(), "{kind}"),
        }
        // In two parts, to the same bytes.
        let parts = format!("parts-{number}");
        let first = line.replace("--steps 14", "--steps 7");
        run(&place, &late(), &format!("{first} {kind} --device cuda --out {parts}"));
        run(&place, &late(), &format!("--resume --out {parts} --steps 14 --log-every 1"));
        assert_eq!(place.sae_bytes(&parts), place.sae_bytes(&cuda), "{kind}");
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_like_an_uninterrupted_one() {
    let place = place();
    run(&place, &late(), &format!("{RUN} --out straight"));
    let mut child = command(&place, &late(), &format!("{RUN} --out stopped"));
    let mut child = child.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while lines(&place.path("stopped/metrics.jsonl")) < 6 {
        assert!(started.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    run(&place, &late(), "--resume --out stopped --log-every 1");
    // Steps of both kinds, which round differently: each is of the kind that it would have been.
    let paths: Vec<Value> = place.metrics("straight").iter().map(|line| line["path"].clone()).collect();
    assert!(paths.contains(&"dense".into()) && paths.contains(&"sparse".into()), "{paths:?}");
    assert_eq!(place.metrics("stopped"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("stopped"), place.sae_bytes("straight"));
}

#[test]
fn a_failed_run_resumes_to_the_bytes_of_an_uninterrupted_one() {
    let place = Place::new();
    // Dense to the end.
    let line = "--store store --features 64 --batch 128 --steps 24 --checkpoint-every 10 --log-every 1 --eval-rows 512 \
                --device cuda";
    run(&place, &late(), &format!("{line} --out straight"));
    let told = fail(&place, &late().with("FAIL_LAUNCH", "330"), &format!("{line} --out failed"));
    assert!(told.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{told}");
    assert!(place.path("failed/checkpoints/step-00000010").exists(), "it fails after a checkpoint");
    let told = text(&run(&place, &late(), "--resume --out failed --log-every 1").stderr);
    assert!(told.contains("continuing after step"), "{told}");
    assert_eq!(place.metrics("failed"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("failed"), place.sae_bytes("straight"));
}

#[test]
fn the_points_of_a_sweep_on_the_gpu_are_the_runs_alone() {
    let place = place();
    let line = RUN.replace("--l0-coefficient 2e-2", "").replace("--steps 30", "--steps 20");
    run(
        &place,
        &late().with("MODE", "random:2"),
        &format!("sweep {line} --l0-coefficient 5e-3,2e-2 --out sweep"),
    );
    for coefficient in ["5e-3", "2e-2"] {
        let alone = format!("alone-{coefficient}");
        run(&place, &late(), &format!("{line} --l0-coefficient {coefficient} --out {alone}"));
        let point = format!("sweep/l0-coefficient-{coefficient}");
        assert_eq!(place.metrics(&point), place.metrics(&alone));
        assert_eq!(place.sae_bytes(&point), place.sae_bytes(&alone));
    }
}

#[test]
fn too_little_memory_says_what_to_lower_and_leaves_nothing() {
    let place = place();
    let told = fail(&place, &late().with("MEMORY", "34000000"), &format!("{RUN} --out run"));
    assert!(told.contains("--batch") || told.contains("lower the batch size"), "{told}");
    assert!(!place.path("run").exists(), "a run that cannot start leaves nothing");
    // What the estimate says is free is not.
    let told = fail(&place, &late().with("FAIL_ALLOCATION", "9"), &format!("{RUN} --out run"));
    assert!(told.contains("lower the batch size"), "{told}");
}

#[test]
fn a_transcoder_is_refused_by_name_and_leaves_nothing() {
    let place = Place::new();
    write_hook_store(&place.path("out"), "blocks.1.hook_mlp_out", WIDTH, &mixtures(512, 1), RowType::F32);
    let line = "--store store --target out --features 64 --batch 128 --steps 5 --device cuda --out run";
    let told = fail(&place, &late(), line);
    assert!(told.contains("targets other than the input") && told.contains("--device cpu"), "{told}");
    assert!(!place.path("run").exists());
}
