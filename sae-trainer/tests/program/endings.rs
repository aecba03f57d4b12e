//! However a run ends, its work is kept: a store that breaks, a closed pipe, a closed terminal, a folder that disappears.

use std::fs::{self, File};
use std::process::Stdio;

use sae::Sae;

use crate::fixture::{Place, copy, lines, signal, start, text, wait_for};

const RUN: &str = "--store store --features 64 --batch 128 --log-every 5";

/// Damages a shard that training has not come to at the first step. Returns its path in the store.
fn damage(place: &Place) {
    let shard = place.path("store/activations/c/3/0");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).unwrap();
}

#[test]
fn a_store_that_breaks_under_way_costs_no_step() {
    let place = Place::new();
    copy(&place.path("store"), &place.path("whole"));
    let sweep = format!("sweep {RUN} --steps 60 --lr 1e-3,1e-4");
    place.run(&format!("{RUN} --steps 60 --out straight"));
    place.run(&format!("{sweep} --out swept"));
    damage(&place);
    let told = place.fail(&format!("{RUN} --steps 60 --out run --mixing-chunks 1"));
    assert!(told.contains("damaged") && told.contains("sae-trainer --resume --out run"), "{told}");
    assert!(told.contains("stopped after step") && told.contains("once the cause below is fixed"), "{told}");
    Sae::load(&place.path("run/sae")).unwrap();
    assert_eq!(fs::read_dir(place.path("run/checkpoints")).unwrap().count(), 1);
    let told = place.fail(&format!("{sweep} --mixing-chunks 1 --out sweep"));
    assert!(told.contains("sae/ of 2 runs in sweep"), "{told}");

    // The store is repaired.
    fs::remove_dir_all(place.path("store")).unwrap();
    fs::rename(place.path("whole"), place.path("store")).unwrap();
    place.run(&format!("{RUN} --steps 60 --out mixed --mixing-chunks 1"));
    place.run(&format!("{sweep} --mixing-chunks 1 --out mixed-sweep"));
    place.run("--resume --out run --log-every 5");
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("mixed"));
    assert_eq!(place.metrics("run"), place.metrics("mixed"));
    place.run("sweep --resume --out sweep --log-every 5");
    for point in ["lr-1e-3", "lr-1e-4"] {
        assert_eq!(
            place.sae_bytes(&format!("sweep/{point}")),
            place.sae_bytes(&format!("mixed-sweep/{point}"))
        );
    }
}

#[test]
fn a_store_that_breaks_under_the_evaluation_costs_no_step() {
    let place = Place::new();
    // Training reads the first chunks of the order alone, the evaluation all of them.
    let run = format!("{RUN} --held-out 0 --steps 1 --mixing-chunks 1");
    damage(&place);
    let told = place.fail(&format!("{run} --out run"));
    assert!(told.contains("damaged") && told.contains("stopped after step 1 of 1"), "{told}");
    Sae::load(&place.path("run/sae")).unwrap();
    assert!(place.path("run/checkpoints/step-00000001").is_dir());
    assert!(!place.path("run/summary.json").exists());
    place.run("--resume --out run --eval-rows 128");
}

#[test]
fn a_reader_that_goes_away_or_a_full_device_ends_no_run() {
    let place = Place::new();
    let run = format!("{RUN} --steps 20");
    let mut closed = place.command(&format!("{run} --out closed")).stderr(Stdio::piped()).spawn().unwrap();
    drop(closed.stderr.take());
    assert!(closed.wait().unwrap().success());
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    assert!(place.command(&format!("{run} --out full")).stderr(full()).status().unwrap().success());
    let output = place.command(&format!("{run} --json --out unread")).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write the result to standard output"));
    for run in ["closed", "full", "unread"] {
        Sae::load(&place.path(run).join("sae")).unwrap();
        assert!(place.path(run).join("checkpoints/step-00000020").is_dir());
        assert!(place.path(run).join("summary.json").is_file());
    }
    let mut compare = place.command("compare closed full unread").stdout(Stdio::piped()).spawn().unwrap();
    drop(compare.stdout.take());
    assert!(compare.wait().unwrap().success());
}

#[test]
fn signals_end_a_run_with_a_checkpoint_and_the_shells_codes() {
    let place = Place::new();
    for (sent, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let run = format!("run{sent}");
        let mut child = start(&place, &format!("{RUN} --steps 200k --out {run}"));
        wait_for(&mut child, "some steps", || lines(&place.path(&run).join("metrics.jsonl")) > 3);
        signal(&child, sent);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{sent}: {}", text(&output.stderr));
        assert_eq!(fs::read_dir(place.path(&run).join("checkpoints")).unwrap().count(), 1);
        Sae::load(&place.path(&run).join("sae")).unwrap();
    }
}

#[test]
fn under_nohup_a_run_outlives_its_terminal() {
    let place = Place::new();
    let program = place.command(&format!("{RUN} --steps 200k --out nohup"));
    let mut nohup = std::process::Command::new("nohup");
    nohup.current_dir(place.path("")).arg(program.get_program()).args(program.get_args());
    let mut child = nohup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = place.path("nohup/metrics.jsonl");
    wait_for(&mut child, "some steps", || lines(&metrics) > 3);
    signal(&child, "-HUP");
    let reached = lines(&metrics);
    wait_for(&mut child, "steps after the signal", || lines(&metrics) > reached + 3);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_folder_that_is_taken_away_under_way_is_an_error() {
    let place = Place::new();
    let mut child = start(&place, &format!("{RUN} --steps 200k --out run"));
    wait_for(&mut child, "some steps", || lines(&place.path("run/metrics.jsonl")) > 3);
    fs::rename(place.path("run"), place.path("moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("run was removed or replaced while the run was under way"), "{told}");
    assert!(!place.path("run").exists());
    let rescued = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().path());
    let rescued: Vec<_> =
        rescued.filter(|path| path.to_string_lossy().contains("run.rescued-step-")).collect();
    assert_eq!(rescued.len(), 1, "{told}");
    Sae::load(&rescued[0]).unwrap();
    assert!(told.contains(rescued[0].file_name().unwrap().to_str().unwrap()), "{told}");
}

#[test]
fn an_argument_that_is_not_utf8_is_no_panic() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"run-\xff");
    copy(&place.path("store"), &place.path("").join(name));
    for line in ["--batch 128 --steps 5 --out run --store", "--batch 128 --steps 5 --store store --out"] {
        let output = place.command(line).arg(name).output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("is not UTF-8") && !told.contains("panicked"), "{told}");
    }
    assert!(!place.path("run").exists());
}
