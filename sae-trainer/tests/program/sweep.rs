//! `sae-trainer sweep`: several runs on one stream of batches.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::fixture::{Place, json, lines, start, text, wait_for};

const POINTS: [&str; 3] = ["approx-l0_l0-coefficient-5e-3", "approx-l0_l0-coefficient-2e-2", "l1"];
const ALONE: [&str; 3] =
    ["--loss approx-l0 --l0-coefficient 5e-3", "--loss approx-l0 --l0-coefficient 2e-2", "--loss l1"];
const LISTS: &str = "--loss approx-l0,l1 --l0-coefficient 5e-3,2e-2";
const COMMON: &str = "--store store --features 128 --batch 128 --lr 3e-3 --log-every 7 --sparsity-window 25";

/// The points of a sweep are the runs that `ALONE` makes, which are in `alone-0`, `alone-1`, …
fn assert_same_as_alone(place: &Place, sweep: &str) {
    for (at, point) in POINTS.iter().enumerate() {
        let (here, there) = (format!("{sweep}/{point}"), format!("alone-{at}"));
        assert_eq!(place.metrics(&here), place.metrics(&there), "{point}");
        assert_eq!(place.sae_bytes(&here), place.sae_bytes(&there), "{point}");
    }
}

fn train_alone(place: &Place, steps: u32) {
    for (at, flags) in ALONE.iter().enumerate() {
        place.run(&format!("{COMMON} --steps {steps} {flags} --out alone-{at}"));
    }
}

#[test]
fn each_point_is_the_run_that_it_would_be_alone_bit_for_bit() {
    let place = Place::new();
    let steps = "--steps 120 --checkpoint-every 50 --b-dec-init mean";
    let output = place.run(&format!("sweep {COMMON} {steps} {LISTS} --out sweep"));
    for (at, flags) in ALONE.iter().enumerate() {
        place.run(&format!("{COMMON} {steps} {flags} --out alone-{at}"));
    }
    assert_same_as_alone(&place, "sweep");
    for (at, point) in POINTS.iter().enumerate() {
        let here = json(&place.path(&format!("sweep/{point}/config.json")));
        let there = json(&place.path(&format!("alone-{at}/config.json")));
        for part in ["arguments", "settings", "stores"] {
            assert_eq!(here[part], there[part], "{point}");
        }
        let checkpoint = "checkpoints/step-00000100/training.safetensors";
        assert_eq!(
            fs::read(place.path(&format!("sweep/{point}/{checkpoint}"))).unwrap(),
            fs::read(place.path(&format!("alone-{at}/{checkpoint}"))).unwrap()
        );
        // The command line in it is that of the run alone.
        let line = here["command_line"].as_str().unwrap();
        assert!(
            line.starts_with("sae-trainer --store store") && line.contains(&format!("--out sweep/{point}")),
            "{line}"
        );
        let again =
            line.replace("sae-trainer ", "").replace(&format!("sweep/{point}"), &format!("again-{at}"));
        place.run(&format!("{again} --log-every 7"));
        assert_eq!(place.sae_bytes(&format!("again-{at}")), place.sae_bytes(&format!("alone-{at}")));
    }

    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 5, "{table}");
    for (line, point) in table.lines().skip(1).zip(POINTS) {
        assert!(line.starts_with(&format!("sweep/{point} ")), "{table}");
    }
    assert_eq!(text(&place.run("compare sweep").stdout), table);
    let told = text(&output.stderr);
    assert!(told.contains("3 points at once") && told.contains("3 runs: L0"), "{told}");
    assert_eq!(told.matches("evaluating: 48 rows").count(), 1, "{told}");
}

#[test]
fn dead_features_of_a_point_are_revived_as_they_would_be_alone() {
    let place = Place::new();
    let run = format!("{COMMON} --steps 70 --loss l1 --l1-coefficient 0.3 --dead-rows 1k");
    place.run(&format!("sweep {run} --revive none,resample --revive-every 20 --out sweep"));
    place.run(&format!("{run} --out none"));
    place.run(&format!("{run} --revive resample --revive-every 20 --out resample"));
    assert_ne!(place.sae_bytes("none"), place.sae_bytes("resample"));
    for alone in ["none", "resample"] {
        assert_eq!(place.sae_bytes(&format!("sweep/revive-{alone}")), place.sae_bytes(alone));
        assert_eq!(place.metrics(&format!("sweep/revive-{alone}")), place.metrics(alone));
    }
}

#[test]
fn sweep_json_holds_the_points_and_their_summaries() {
    let place = Place::new();
    let line = format!("sweep {COMMON} --steps 5 {LISTS} --json --out sweep");
    let printed: Value = serde_json::from_slice(&place.run(&line).stdout).unwrap();
    assert_eq!(printed, json(&place.path("sweep/sweep.json")));
    let points = printed["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    for (point, name) in points.iter().zip(POINTS) {
        assert_eq!((&point["name"], &point["state"]), (&name.into(), &"finished".into()));
        assert_eq!(point["summary"], json(&place.path(&format!("sweep/{name}/summary.json"))));
        assert!(point["summary"]["evaluation"]["l0"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(points[1]["varied"]["l0-coefficient"], "2e-2");
    assert_eq!(points[2]["varied"], serde_json::json!({ "loss": "l1" }));
}

#[test]
fn without_out_the_folder_is_named_after_the_store() {
    let place = Place::new();
    place.run(&format!("sweep {COMMON} --steps 2 --lr 1e-4 {LISTS}").replace("--lr 3e-3 ", ""));
    assert!(place.path("runs/store-sweep/l1/sae").is_dir());
}

#[test]
fn points_resumed_after_ctrl_c_end_with_uninterrupted_bytes() {
    let place = Place::new();
    train_alone(&place, 1200);
    let mut child = start(&place, &format!("sweep {COMMON} --steps 1200 {LISTS} --out sweep"));
    let metrics = place.path(&format!("sweep/{}/metrics.jsonl", POINTS[2]));
    wait_for(&mut child, "some steps", || lines(&metrics) > 5);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("sae-trainer sweep --resume --out sweep"), "{told}");
    for point in POINTS {
        sae::Sae::load(&place.path(&format!("sweep/{point}/sae"))).unwrap();
    }
    let told = place.fail("compare sweep");
    assert!(
        told.contains("not finished") && told.contains("sae-trainer sweep --resume --out sweep"),
        "{told}"
    );
    // A second process with the sweep's folder, told nothing but the folder, and with other threads.
    let told = text(&place.run("sweep --resume --out sweep --threads 1 --log-every 7").stderr);
    assert!(told.contains("continuing after step"), "{told}");
    assert_same_as_alone(&place, "sweep");
}

#[test]
fn points_with_checkpoints_of_different_steps_meet_again() {
    let place = Place::new();
    train_alone(&place, 90);
    let line =
        format!("sweep {COMMON} --steps 90 {LISTS} --checkpoint-every 30 --keep-checkpoints 3 --out sweep");
    place.run(&line);
    // As if the process had been killed while it wrote checkpoints: the first point is finished, the second one has only
    // an earlier checkpoint, the third none at all.
    for point in [POINTS[1], POINTS[2]] {
        fs::remove_file(place.path(&format!("sweep/{point}/summary.json"))).unwrap();
    }
    for step in [60, 90] {
        fs::remove_dir_all(place.path(&format!("sweep/{}/checkpoints/step-000000{step}", POINTS[1])))
            .unwrap();
    }
    fs::remove_dir_all(place.path(&format!("sweep/{}", POINTS[2]))).unwrap();
    // The same command each time, as a batch system that requeues jobs would give it.
    place.run(&format!("{line} --resume"));
    assert_same_as_alone(&place, "sweep");
}

#[test]
fn a_finished_sweep_can_be_lengthened() {
    let place = Place::new();
    train_alone(&place, 60);
    place.run(&format!("sweep {COMMON} --steps 25 {LISTS} --out sweep"));
    place.run("sweep --resume --out sweep --steps 60 --log-every 7");
    for (at, point) in POINTS.iter().enumerate() {
        assert_eq!(place.sae_bytes(&format!("sweep/{point}")), place.sae_bytes(&format!("alone-{at}")));
    }
    let told = place.fail("sweep --resume --out sweep --lr 1e-3");
    assert!(told.contains("lr is 0.003 there and 0.001 here"), "{told}");
    let told =
        place.fail(&format!("sweep {COMMON} --steps 60 --l0-coefficient 1e-2,2e-2 --resume --out sweep"));
    assert!(told.contains("sweep over other points"), "{told}");
}

#[test]
fn a_point_that_diverges_ends_alone_and_the_exit_code_says_so() {
    let place = Place::new();
    let common = COMMON.replace("--lr 3e-3 ", "");
    place.run(&format!("{common} --mse sum --lr 3e-3 --steps 40 --out alone"));
    let line = format!("sweep {common} --mse sum --lr 3e-3,1e18 --steps 40 --out sweep");
    let output = place.command(&line).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("sweep/lr-1e18: training stopped at step"), "{told}");
    assert!(told.contains("error: 1 of 2 points diverged: lr-1e18"), "{told}");
    assert_eq!(text(&output.stdout).lines().count(), 3, "a table of the other point");
    assert_eq!(place.sae_bytes("sweep/lr-3e-3"), place.sae_bytes("alone"));
    assert_eq!(place.metrics("sweep/lr-3e-3"), place.metrics("alone"));
    let points = json(&place.path("sweep/sweep.json"));
    assert_eq!(
        (&points["points"][0]["state"], &points["points"][1]["state"]),
        (&"finished".into(), &"diverged".into())
    );
    assert!(points["points"][1]["error"].as_str().unwrap().contains("step"), "{points}");
    assert!(text(&place.run("compare sweep").stderr).contains("lr-1e18 diverged"));
    let points = "compare sweep/lr-1e18 sweep/lr-3e-3 sweep/sweep.json"; // what sweep/* means
    assert_eq!(place.run(points).stdout, place.run("compare sweep").stdout);
    // It is not trained again.
    let output = place.command("sweep --resume --out sweep --steps 50 --log-every 7").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("sweep/lr-1e18 diverged before and is left out"));
    assert_eq!(json(&place.path("sweep/lr-3e-3/summary.json"))["steps"], 50);

    let output =
        place.command(&line.replace("3e-3,1e18", "1e18,2e18").replace("--out sweep", "--out all")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("2 of 2 points diverged") && output.stdout.is_empty());
    assert!(place.fail("sweep --resume --out all").contains("every point of the sweep in all diverged"));
}

#[test]
fn bad_rows_are_nobodys_own_fault_and_end_the_sweep() {
    let place = Place::new();
    crate::errors::fill_a_chunk_with_nan(&place.path("store/activations/c/2/0"));
    let told = place.fail(&format!("sweep {COMMON} --steps 40 {LISTS} --out sweep"));
    assert!(told.contains("training stopped at step") && told.contains("NaN"), "{told}");
    assert!(!told.contains("diverged"), "{told}");
}

#[test]
fn what_cannot_be_swept_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let refused = |line: &str| {
        let output =
            place.command(&format!("sweep --store store --features 64 {line} --out sweep")).output().unwrap();
        assert!(!output.status.success(), "{line}");
        assert!(!place.path("sweep").exists(), "{line}");
        text(&output.stderr)
    };
    let told = refused("--batch 64,128 --lr 1e-3,1e-4");
    assert!(told.contains("--batch takes one value in a sweep"), "{told}");
    assert!(refused("--seed 1,2").contains("--seed takes one value in a sweep"));
    assert!(refused("--lr 1e-3").contains("nothing varies in this sweep"));
    assert!(refused("--lr 1e-3,x").contains("'x' for '--lr <X>'"));
    assert!(
        refused("--lr 1e-3,1e-4 --loss l1 --l0-coefficient 1e-3").contains("has no effect with --loss l1")
    );
    let told = refused("--lr-decay-steps 5,20 --steps 10 --batch 128");
    assert!(
        told.contains("the point lr-decay-steps-20") && told.contains("more than the 10 steps"),
        "{told}"
    );
    let large = "--store store --features 1G,2G --batch 1 --sparsity-window 1 --mse sum --out sweep";
    let told = place.fail(&format!("sweep {large}"));
    assert!(
        told.contains("the point features-1G") && told.contains("free") && told.contains("need"),
        "{told}"
    );
    assert!(!place.path("sweep").exists());
    assert!(refused("--resume").contains("there is no sweep in sweep"));
    assert!(place.fail("sweep --lr 1e-3,1e-4").contains("--store is missing"));
    assert!(place.fail("sweep --resume").contains("--resume needs --out"));
    // A list is a sweep's; a run takes one value.
    let output = place.command("--store store --lr 1e-3,1e-4").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_folder_that_holds_something_else_is_left_alone() {
    let place = Place::new();
    let line = format!("sweep {COMMON} --steps 2 {LISTS}");
    place.run(&format!("{COMMON} --steps 2 --out run"));
    place.run(&format!("{line} --out sweep"));
    fs::create_dir(place.path("thesis")).unwrap();
    fs::write(place.path("thesis/chapter"), "one").unwrap();
    for (folder, reason) in [
        ("run", "run holds a run"),
        ("sweep", "holds a sweep already; add --resume"),
        ("thesis", "not a sweep"),
    ] {
        let before = place.files(folder);
        let told = place.fail(&format!("{line} --out {folder}"));
        assert!(told.contains(reason), "{told}");
        assert_eq!(place.files(folder), before);
    }
    assert!(place.fail("sweep --resume --out run").contains("continue a run without `sweep`"));
}

#[test]
fn a_second_process_keeps_out_of_a_running_sweep() {
    let place = Place::new();
    let mut child = start(&place, &format!("sweep {COMMON} --steps 200k {LISTS} --out sweep"));
    let metrics = place.path(&format!("sweep/{}/metrics.jsonl", POINTS[0]));
    wait_for(&mut child, "some steps", || lines(&metrics) > 0);
    let told = place.fail("sweep --resume --out sweep");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told.contains("another process is training in sweep"), "{told}");
}
