//! Runs that stop and resume.

use std::time::Duration;

use crate::fixture::{Place, lines, signal, start, text, wait_for};

const RUN: &str = "--store store --features 128 --batch 128 --lr 3e-3 --l0-coefficient 2e-2 --log-every 7 \
                   --steps 2000 --sparsity-window 25";

#[test]
fn a_run_resumed_after_ctrl_c_ends_with_uninterrupted_bytes() {
    let place = Place::new();
    place.run(&format!("{RUN} --out straight"));
    // Steps of both kinds have to be continued.
    for path in ["dense", "sparse"] {
        assert!(place.metrics("straight").iter().any(|line| line["path"] == path), "no {path} step");
    }

    let mut child = start(&place, &format!("{RUN} --out broken"));
    let metrics = place.path("broken/metrics.jsonl");
    wait_for(&mut child, "some steps", || lines(&metrics) > 5);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("sae-trainer --resume --out broken"), "{told}");
    sae::Sae::load(&place.path("broken/sae")).unwrap();
    assert!(!place.path("broken/summary.json").exists());

    // With other threads, and told nothing but the folder.
    let output = place.run("--resume --out broken --threads 1 --log-every 7");
    assert!(text(&output.stderr).contains("continuing after step"), "{}", text(&output.stderr));
    assert_eq!(place.metrics("broken"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let place = Place::new();
    place.run(&format!("{RUN} --out straight"));

    let checkpoints = place.path("broken/checkpoints/step-00000110");
    for _ in 0..3 {
        // The same command each time, as a batch system that requeues jobs would give it.
        let line = format!("{RUN} --checkpoint-every 55 --resume --out broken");
        let mut child = start(&place, &line);
        let metrics = place.path("broken/metrics.jsonl");
        let before = lines(&metrics);
        wait_for(&mut child, "a checkpoint and more", || {
            (checkpoints.exists() || before > 0) && lines(&metrics) > before + 20
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.run("--resume --log-every 7 --out broken");
    assert_eq!(place.metrics("broken"), place.metrics("straight"));
    assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
}

#[test]
fn a_finished_run_can_be_lengthened() {
    let place = Place::new();
    let run = RUN.replace("--steps 2000", "");
    place.run(&format!("{run} --steps 90 --out straight"));
    place.run(&format!("{run} --steps 35 --out longer"));
    place.run("--resume --out longer --steps 90 --log-every 7");
    assert_eq!(place.sae_bytes("longer"), place.sae_bytes("straight"));
    let told = place.fail("--resume --out longer --steps 60");
    assert!(told.contains("already been trained for 90 steps"), "{told}");
}

#[test]
fn dead_features_are_revived_once_however_often_a_run_stops() {
    let place = Place::new();
    let run = RUN.replace("--steps 2000", "--revive resample --revive-every 30 --dead-rows 1k");
    place.run(&format!("{run} --steps 100 --out straight"));
    let revived = |run: &str| place.metrics(run).iter().filter(|line| line["kind"] == "resample").count();
    assert_eq!(revived("straight"), 3);
    // Ended at the step of a revival, and between two.
    place.run(&format!("{run} --steps 30 --out broken"));
    assert_eq!(revived("broken"), 0);
    for steps in [60, 75, 100] {
        place.run(&format!("--resume --out broken --steps {steps} --log-every 7"));
    }
    assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"));
    assert_eq!(revived("broken"), 3);
    let told = place.fail("--resume --out broken --revive-every 40");
    assert!(told.contains("revive.resample.every is 30 there and 40 here"), "{told}");
    let told = place.fail("--store store --revive-every 40 --out other");
    assert!(told.contains("--revive-every has no effect without --revive resample"), "{told}");
}

#[test]
fn a_second_ctrl_c_ends_the_run_at_once() {
    let place = Place::new();
    // Steps that take long enough for two signals.
    let line = "--store store --features 16384 --batch 4000 --steps 500 --out run";
    let mut child = start(&place, line);
    let metrics = place.path("run/metrics.jsonl");
    wait_for(&mut child, "the first step", || lines(&metrics) > 0);
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(5));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(!text(&output.stderr).contains("stopped after"), "{}", text(&output.stderr));
}

#[test]
fn a_second_process_keeps_out_of_a_running_run() {
    let place = Place::new();
    let mut child = start(&place, &format!("{RUN} --steps 200k --out run").replace("--steps 2000 ", ""));
    let metrics = place.path("run/metrics.jsonl");
    wait_for(&mut child, "the first step", || lines(&metrics) > 0);
    let told = place.fail("--resume --out run");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told.contains("another process is training in run"), "{told}");
}

#[test]
fn other_settings_are_refused_by_name_and_nothing_is_touched() {
    let place = Place::new();
    let run = RUN.replace("--steps 2000", "--steps 20");
    place.run(&format!("{run} --out run"));
    let before = place.files("run");

    let told = place.fail(&format!("{run} --out run"));
    assert!(told.contains("holds this run already") && told.contains("--resume"), "{told}");
    let told = place.fail(&format!("{} --loss l1 --out run", run.replace("--l0-coefficient 2e-2", "")));
    assert!(told.contains("holds another run") && told.contains("approx-l0"), "{told}");
    let told = place.fail("--resume --out run --lr 1e-3");
    assert!(told.contains("lr is 0.003 there and 0.001 here"), "{told}");
    let told = place.fail("--resume --out run --batch 64 --steps 20");
    assert!(told.contains("batch is 128 there and 64 here"), "{told}");
    assert_eq!(place.files("run"), before);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_serves() {
    let place = Place::new();
    let run = RUN.replace("--steps 2000", "--steps 60 --checkpoint-every 20");
    place.run(&format!("{run} --out run"));
    let good = place.sae_bytes("run");
    let damaged = place.path("run/checkpoints/step-00000060");
    let file = damaged.join("training.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    let told = text(&place.run("--resume --out run").stderr);
    assert!(told.contains("step-00000060") && told.contains("training.safetensors is damaged"), "{told}");
    assert!(told.contains("continuing after step 40"), "{told}");
    assert_eq!(place.sae_bytes("run"), good);
}
