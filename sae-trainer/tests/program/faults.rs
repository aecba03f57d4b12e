//! A fault, or a kill, at each call that changes the disk: nothing is lost but steps, and the resumed run ends with the same
//! bytes.

use std::fs;
use std::process::{Command, Output};

use crate::fixture::{Place, text};

const RUN: &str = "--store store --features 64 --batch 128 --log-every 1 --eval-rows 128 --threads 1";
/// Three checkpoints are written and one of them is removed.
const LENGTH: &str = "--steps 3 --checkpoint-every 1 --keep-checkpoints 2";
const CALLS: [&str; 9] =
    ["fsync", "fdatasync", "rename", "renameat2", "mkdir", "unlink", "unlinkat", "rmdir", "write"];

/// Compiles the library that faults come from.
pub(crate) fn compile_library(place: &Place) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/program/faults.c");
    let library = place.path("faults.so");
    let mut compile = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]);
    assert!(compile.status().unwrap().success());
}

/// Runs the program with a variable for each of `faults`.
pub(crate) fn with_faults(place: &Place, line: &str, faults: &[(&str, &str)]) -> Output {
    let mut command = place.command(line);
    command.env("LD_PRELOAD", place.path("faults.so")).envs(faults.iter().copied());
    command.output().unwrap()
}

/// How often a whole run makes `call`.
pub(crate) fn count_of(place: &Place, call: &str, line: &str) -> usize {
    let count = place.path("count");
    let output = with_faults(place, line, &[("FAULT_CALL", call), ("FAULT_COUNT", count.to_str().unwrap())]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::read_to_string(count).unwrap().parse().unwrap()
}

/// With a fault at every call in turn, `line` ends with an error, or if `kill`, at once; and the same command with `--resume`
/// ends in the bytes of a run without faults.
/// `runs` are the folders of runs within the one of `--out`.
fn at_every_call(place: &Place, line: &str, runs: &[&str], calls: &[&str], kill: bool) {
    compile_library(place);
    place.run(&format!("{line} --out straight"));
    for call in calls {
        let count = count_of(place, call, &format!("{line} --out counted"));
        fs::remove_dir_all(place.path("counted")).unwrap();
        for at in 1..=count {
            let at = at.to_string();
            let mut faults = vec![("FAULT_CALL", *call), ("FAULT_AT", &*at)];
            if kill {
                faults.push(("FAULT_KILL", "1"));
            }
            let output = with_faults(place, &format!("{line} --out run"), &faults);
            let told = text(&output.stderr);
            assert!(!told.contains("panicked"), "{call} {at}: {told}");
            match kill {
                true => assert_eq!(output.status.code(), None, "{call} {at}: {told}"),
                // Remains that cannot be removed are no failure of the run.
                false => assert!(matches!(output.status.code(), Some(0 | 1)), "{call} {at}: {told}"),
            }
            if output.status.code() == Some(1) {
                assert!(told.contains("No space left on device"), "{call} {at}: {told}");
            }
            let output = place.command(&format!("{line} --resume --out run")).output().unwrap();
            let told = text(&output.stderr);
            assert!(output.status.success(), "{call} {at}: {told}");
            for run in runs {
                let (here, there) = (format!("run{run}"), format!("straight{run}"));
                assert_eq!(place.sae_bytes(&here), place.sae_bytes(&there), "{call} {at}");
                assert_eq!(place.metrics(&here), place.metrics(&there), "{call} {at}");
            }
            let checked = place.run("verify run");
            assert!(text(&checked.stdout).contains(" 0 damaged, 0 unchecked"), "{}", text(&checked.stdout));
            let remains: Vec<_> = place
                .files("run")
                .into_iter()
                .filter(|(path, _)| path.to_string_lossy().contains(".unfinished"))
                .collect();
            assert!(remains.is_empty(), "{call} {at}: {remains:?}");
            fs::remove_dir_all(place.path("run")).unwrap();
        }
    }
}

#[test]
fn a_call_that_fails_costs_steps_and_nothing_else() {
    at_every_call(&Place::new(), &format!("{RUN} {LENGTH}"), &[""], &CALLS, false);
}

#[test]
fn a_kill_at_any_call_costs_steps_and_nothing_else() {
    at_every_call(&Place::new(), &format!("{RUN} {LENGTH}"), &[""], &CALLS, true);
}

#[test]
fn a_fault_in_a_slice_of_the_weights_costs_steps_and_nothing_else() {
    // Few pieces: a line for each of 16 rows of W_enc, for each panel.
    let line = format!("{RUN} --steps 2 --checkpoint-every 1 --panels 2");
    for kill in [false, true] {
        at_every_call(&Place::new(), &line, &[""], &["pwrite64", "ftruncate64", "fsync"], kill);
    }
}

#[test]
fn a_kill_at_a_call_of_a_sweep_costs_steps_and_nothing_else() {
    let line = format!("sweep {RUN} --steps 2 --checkpoint-every 1 --lr 1e-3,1e-4");
    at_every_call(&Place::new(), &line, &["/lr-1e-3", "/lr-1e-4"], &["fsync", "rename", "mkdir"], true);
}
