//! `scripts/gpu-check` on an emulated driver: both calls from beginning to end, at small sizes.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fixture::text;
use emulation::EmulatedDriver;

/// A call and what it found.
struct Call {
    code: Option<i32>,
    told: String,
    log: String,
    parts: Vec<Value>,
}

impl Call {
    /// Runs the call `name`.
    fn new(name: &str, options: &[&str]) -> Call {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let release = Path::new(env!("CARGO_BIN_EXE_sae-trainer")).parent().unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command
            .arg("-B")
            .arg(root.join("scripts/gpu-check"))
            .args([name, "--small", "--built"])
            .args(options);
        command.env("OUT", out.path()).env("CARGO_TARGET_DIR", release.parent().unwrap());
        EmulatedDriver::new().prepare(&mut command);
        let output = command.output().unwrap();
        let told = text(&output.stdout) + &text(&output.stderr);
        let read = |kind: &str| {
            let path = out.path().join(format!("gpu-check-{name}.{kind}"));
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{kind}: {error}\n{told}"))
        };
        let results: Value = serde_json::from_str(&read("json")).unwrap();
        let parts = results["parts"].as_array().unwrap().clone();
        Call { code: output.status.code(), log: read("log"), parts, told }
    }

    fn part(&self, name: &str) -> &Value {
        let part = self.parts.iter().find(|part| part["part"] == name);
        part.unwrap_or_else(|| panic!("no part {name}\n{}", self.told))
    }

    /// A part's result, without what comes behind a comma.
    fn result(&self, name: &str) -> &str {
        self.part(name)["result"].as_str().unwrap().split(',').next().unwrap()
    }

    fn figure(&self, part: &str, name: &str) -> &Value {
        let figures = self.part(part)["figures"].as_array().unwrap();
        let figure = figures.iter().find(|figure| figure["figure"] == name);
        figure.unwrap_or_else(|| panic!("no figure {name} of {part}\n{}", self.told))
    }

    /// That all parts but these were done, or left out for want of what this machine lacks.
    fn assert_done_but(&self, others: &[&str]) {
        for part in &self.parts {
            let name = part["part"].as_str().unwrap();
            let done = ["ok", "left out"].contains(&self.result(name));
            assert_eq!(done, !others.contains(&name), "{part}\n{}", self.log);
        }
    }
}

#[test]
fn a_part_that_hangs_or_fails_costs_no_other_result() {
    let call = Call::new(
        "a",
        &[
            "--set",
            "sparse-exact:GPU_CHECK_HANG=1",
            "--limit",
            "sparse-exact:4",
            // The emulated driver ends a program that waits for a kernel that does not end.
            "--set",
            "time-mma:CUDA_EMULATION_HANG_LAUNCH=2",
            "--set",
            "correctness-exact-wgmma:CUDA_EMULATION_FAIL_LAUNCH=60",
        ],
    );
    assert_eq!(call.result("sparse-exact"), "hung");
    assert_eq!(call.result("time-mma"), "crashed");
    assert_eq!(call.result("correctness-exact-wgmma"), "failed");
    assert!(call.log.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", call.log);
    call.assert_done_but(&["sparse-exact", "time-mma", "correctness-exact-wgmma"]);
    assert_eq!(call.code, Some(1));
    assert!(call.told.contains("FAILED: sparse-exact, time-mma, correctness-exact-wgmma\n"), "{}", call.told);
    for part in
        ["screens-mma", "screens-wgmma", "correctness-fp32-plain", "correctness-bf16-mma", "cuda_kernels"]
    {
        assert_eq!(call.result(part), "ok", "{}", call.log);
    }
    // Floors are those of what this call measured.
    let time = call.figure("time-wgmma", "encode_wgmma");
    let rate = call.figure("ceilings", "product")["operations_per_second"].as_f64().unwrap();
    let floor = time["operations"].as_f64().unwrap() / rate;
    assert!((time["floor_seconds"].as_f64().unwrap() / floor - 1.0).abs() < 1e-9, "{time}");
}

#[test]
fn a_wrong_screen_is_not_used_by_the_parts_after_it() {
    let options = ["--only", "ceilings,screens-wgmma,sparse-exact"];
    let fault = ["--set", "screens-wgmma:CUDA_EMULATION_FAIL_LAUNCH=2"];
    let call = Call::new("a", &[&options[..], &fault[..]].concat());
    call.assert_done_but(&["screens-wgmma"]);
    call.figure("sparse-exact", "encode_mma");
    let call = Call::new("a", &options);
    assert_eq!(call.code, Some(0), "{}", call.told);
    call.figure("sparse-exact", "encode_wgmma");
}

#[test]
fn the_second_call_trains_sparsely_and_finds_the_crossover() {
    let call = Call::new("b", &[]);
    call.assert_done_but(&[]);
    assert_eq!(call.code, Some(0), "{}", call.told);
    let steps = call.figure("train-from-store", "sparse steps");
    assert!(steps["sparse"].as_u64() > Some(8), "{steps}");
    for part in ["cuda_step", "dense-exact", "crossover-bf16", "train-from-store"] {
        assert_eq!(call.result(part), "ok", "{}", call.log);
    }
}

#[test]
fn a_call_that_has_no_time_left_says_which_parts_it_did_not_run() {
    let call = Call::new("a", &["--only", "machine,ceilings,screens-mma", "--budget", "4"]);
    assert_eq!(call.result("ceilings"), "no time");
    // It measures; what was to be checked was not.
    assert!(call.told.contains("FAILED: screens-mma\n"), "{}", call.told);
    assert_eq!(call.code, Some(1));
}
