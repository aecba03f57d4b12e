//! Files of a run that changed after they were written, and folders that somebody else modified.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fixture::{Place, copy, flip, json, text};

const RUN: &str = "--store store --features 64 --batch 128 --log-every 5";

/// With a run of 40 steps in `run`, checkpoints at 20 and 40, and one of 60 steps in `straight`.
fn setting() -> Place {
    let place = Place::new();
    place.run(&format!("{RUN} --steps 60 --checkpoint-every 20 --out straight"));
    place.run(&format!("{RUN} --steps 40 --checkpoint-every 20 --out run"));
    place
}

/// A place in a file for each of `count` flips, spread over it.
fn bits(path: &Path, count: usize) -> Vec<usize> {
    let length = 8 * fs::metadata(path).unwrap().len() as usize;
    (0..count).map(|n| (2 * n + 1) * length / (2 * count)).collect()
}

#[test]
fn a_damaged_checkpoint_is_left_for_the_one_before_it() {
    let place = setting();
    let newest = "checkpoints/step-00000040";
    for name in ["sae_weights.safetensors", "training.safetensors", "training.json", "cfg.json", "SHA256SUMS"]
    {
        for bit in bits(&place.path(&format!("run/{newest}/{name}")), 2) {
            let _ = fs::remove_dir_all(place.path("broken"));
            copy(&place.path("run"), &place.path("broken"));
            flip(&place.path(&format!("broken/{newest}/{name}")), bit);
            let told = text(
                &place.run("--resume --out broken --steps 60 --log-every 5 --keep-checkpoints 1").stderr,
            );
            assert!(told.contains(&format!("cannot continue from the checkpoint broken/{newest}")), "{told}");
            assert!(told.contains("damaged") && told.contains("continuing after step 20"), "{name}: {told}");
            assert_eq!(place.sae_bytes("broken"), place.sae_bytes("straight"), "{name}, bit {bit}");
            assert_eq!(place.metrics("broken"), place.metrics("straight"), "{name}, bit {bit}");
            assert!(place.path(&format!("broken/{newest}.damaged")).is_dir());
            assert!(place.path("broken/checkpoints/step-00000060").is_dir());
        }
    }
}

#[test]
fn without_a_sound_checkpoint_a_run_does_not_go_on() {
    let place = setting();
    for step in [20, 40] {
        flip(&place.path(&format!("run/checkpoints/step-000000{step}/training.safetensors")), 5000);
    }
    let before = place.files("run");
    let told = place.fail("--resume --out run --steps 60");
    assert!(told.contains("step-00000040") && told.contains("step-00000020"), "{told}");
    assert!(told.contains("There is no checkpoint to continue from"), "{told}");
    assert_eq!(place.files("run"), before);
}

#[test]
fn a_damaged_autoencoder_is_no_start_for_a_run() {
    let place = setting();
    for name in [sae::CONFIG_FILE, sae::WEIGHTS_FILE, sae::SPARSITY_FILE] {
        let path = place.path("run/sae").join(name);
        let whole = fs::read(&path).unwrap();
        for bit in bits(&path, 4) {
            flip(&path, bit);
            let told = place.fail("--store store --batch 128 --steps 5 --init-from run/sae --out other");
            assert!(told.contains(name) && told.contains("is damaged"), "{told}");
            assert!(!place.path("other").exists());
            fs::write(&path, &whole).unwrap();
        }
    }
}

#[test]
fn damaged_json_is_refused_with_what_to_do() {
    let place = setting();
    place.run(&format!("sweep {RUN} --steps 5 --lr 1e-3,1e-4 --out sweep"));
    for (file, line) in [
        ("run/config.json", "--resume --out run --steps 60"),
        ("run/summary.json", "compare run"),
        ("sweep/sweep.json", "sweep --resume --out sweep --steps 60"),
        ("sweep/sweep.json", "compare sweep"),
    ] {
        let path = place.path(file);
        let whole = fs::read_to_string(&path).unwrap();
        // The last bit of a digit, which leaves everything plausible.
        let content = &whole[..whole.find("\"crc32c\"").unwrap()];
        flip(&path, 8 * content.rfind(|c: char| ('2'..='7').contains(&c)).unwrap());
        let told = place.fail(line);
        assert!(told.contains(&format!("{file} is damaged")), "{told}");
        assert!(told.contains("remove the key \"crc32c\""), "{told}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn folders_of_older_versions_go_on_without_checksums() {
    let place = setting();
    for sums in
        ["checkpoints/step-00000040/SHA256SUMS", "checkpoints/step-00000020/SHA256SUMS", "sae/SHA256SUMS"]
    {
        fs::remove_file(place.path("run").join(sums)).unwrap();
    }
    for name in ["config.json", "summary.json"] {
        let path = place.path("run").join(name);
        let value = json(&path);
        fs::write(&path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
    }
    let metrics = place.path("run/metrics.jsonl");
    let bare: Vec<String> = fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .map(|line| format!("{}}}\n", &line[..line.find(",\"crc32c\"").unwrap()]))
        .collect();
    fs::write(&metrics, bare.concat()).unwrap();
    place.run("compare run --plot run.svg");
    let told = text(&place.run("verify run").stdout);
    assert!(!told.contains(" damaged ") || told.contains(" 0 damaged"), "{told}");
    assert!(told.contains(" 0 sound"), "{told}");
    place.run("--resume --out run --steps 60 --log-every 5");
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("straight"));
    assert_eq!(place.metrics("run"), place.metrics("straight"));
}

#[test]
fn a_damaged_line_of_the_log_is_named_and_neither_drawn_nor_cut() {
    let place = setting();
    let metrics = place.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    let second = whole.find('\n').unwrap() + 1;
    // A digit behind "step":, so that the line stays JSON.
    flip(&metrics, 8 * (second + whole[second..].find("\"loss\":").unwrap() + 7));
    let damaged = fs::read_to_string(&metrics).unwrap();
    let told = text(&place.run("compare run --plot run.svg").stderr);
    assert!(told.contains("run/metrics.jsonl: line 2 is damaged") && told.contains("left out"), "{told}");
    let told = text(&place.run("--resume --out run --steps 60 --log-every 5").stderr);
    assert!(
        told.contains("run/metrics.jsonl: line 2 is damaged") && told.contains("kept as it is"),
        "{told}"
    );
    let after = fs::read_to_string(&metrics).unwrap();
    assert_eq!(after.lines().nth(1), damaged.lines().nth(1));
    assert_eq!(
        after.lines().count(),
        fs::read_to_string(place.path("straight/metrics.jsonl")).unwrap().lines().count()
    );
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("straight"));
}

#[test]
fn a_run_keeps_the_id_that_it_began_with() {
    // As if a version with other settings had begun it: an id that these settings do not give.
    let place = setting();
    let id = json(&place.path("run/config.json"))["run_id"].as_str().unwrap().to_owned();
    for file in ["config.json", "metrics.jsonl", "summary.json"] {
        let path = place.path(&format!("run/{file}"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(&id), "{file}");
        // Without their checksums, which cover the id.
        let lines = text.replace(&id, "0f0f0f0f");
        let lines = lines.lines().map(|line| match line.find(",\"crc32c\"") {
            Some(at) => line[..at].to_owned() + "}",
            None => line.to_owned(),
        });
        let text = lines.map(|line| line + "\n").collect::<String>();
        let text = match text.find(",\n  \"crc32c\"") {
            Some(at) => text[..at].to_owned() + "\n}\n",
            None => text,
        };
        fs::write(&path, text).unwrap();
    }
    let told = text(&place.run("--resume --out run --steps 60 --log-every 5").stderr);
    assert!(!told.contains("damaged"), "{told}");
    assert_eq!(place.metrics("run"), place.metrics("straight"));
    let log = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(log.lines().all(|line| line.contains("\"run_id\":\"0f0f0f0f\"")), "{log}");
    assert_eq!(json(&place.path("run/config.json"))["run_id"], "0f0f0f0f");
    assert_eq!(json(&place.path("run/summary.json"))["run_id"], "0f0f0f0f");
    assert!(text(&place.run("verify run").stdout).contains(" 0 damaged"));
}

#[test]
fn lines_that_are_gone_from_the_log_are_missed() {
    let place = setting();
    let metrics = place.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let others = [
        (
            "a line of the middle",
            lines[..2].concat() + &lines[3..].concat(),
            "8 lines up to step 40, where 9 were written",
        ),
        ("the last one", lines[..lines.len() - 1].concat(), "9 lines of 10"),
        (
            "one that is there twice",
            lines[..3].concat() + &lines[2..].concat(),
            "10 lines up to step 40, where 9 were written",
        ),
        ("all", String::new(), "0 lines up to step 40, where 9 were written"),
    ];
    for (what, text_left, told) in others {
        fs::write(&metrics, text_left).unwrap();
        let output = place.command("verify run").output().unwrap();
        let found = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{what}: {found}");
        assert!(found.contains("damaged    run/metrics.jsonl") && found.contains(told), "{what}: {found}");
    }
    let drawn = text(&place.run("compare run --plot run.svg").stderr);
    assert!(drawn.contains("run/metrics.jsonl: 0 lines, where 10 were written"), "{drawn}");
    fs::remove_file(&metrics).unwrap();
    let output = place.command("verify run").output().unwrap();
    assert!(text(&output.stdout).contains("damaged    run/metrics.jsonl: it is missing"));

    let told = text(&place.run("--resume --out run --steps 60 --log-every 5").stderr);
    assert!(told.contains("run/metrics.jsonl: 0 lines up to step 40, where 9 were written"), "{told}");
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("straight"));
    // From here on it is the log of a run.
    assert!(text(&place.run("verify run").stdout).contains(" 0 damaged, 0 unchecked"));
}

#[test]
fn a_point_with_another_points_configuration_or_none_is_damaged() {
    let place = Place::new();
    place.run(&format!("sweep {RUN} --steps 5 --lr 1e-3,1e-4 --out sweep"));
    let (own, other) = (place.path("sweep/lr-1e-3/config.json"), place.path("sweep/lr-1e-4/config.json"));
    let whole = fs::read(&own).unwrap();
    fs::copy(&other, &own).unwrap();
    let told = "sweep/lr-1e-3/config.json is damaged: it is the configuration of another point, with lr 0.0001, not 0.001";
    let output = place.command("verify sweep").output().unwrap();
    let found = text(&output.stdout);
    assert!(output.status.code() == Some(1) && found.contains(told), "{found}");
    let error = place.fail("sweep --resume --out sweep --steps 9");
    assert!(error.contains(told), "{error}");
    fs::write(&own, &whole).unwrap();
    for file in ["summary.json", "metrics.jsonl"] {
        let (own, other) =
            (place.path(&format!("sweep/lr-1e-3/{file}")), place.path(&format!("sweep/lr-1e-4/{file}")));
        let whole = fs::read(&own).unwrap();
        fs::copy(&other, &own).unwrap();
        let output = place.command("verify sweep").output().unwrap();
        let found = text(&output.stdout);
        let told = format!("damaged    sweep/lr-1e-3/{file}");
        assert!(found.contains(&told) && found.contains("it is of a run with other settings"), "{found}");
        fs::write(&own, whole).unwrap();
    }
    fs::copy(place.path("sweep/lr-1e-4/summary.json"), place.path("sweep/lr-1e-3/summary.json")).unwrap();
    let error = place.fail("compare sweep");
    assert!(error.contains("summary.json is damaged: it is of a run with other settings"), "{error}");
    fs::remove_file(&own).unwrap();
    let output = place.command("verify sweep").output().unwrap();
    let found = text(&output.stdout);
    assert!(found.contains("damaged    sweep/lr-1e-3/config.json"), "{found}");
    // What was finished is trained again where its files are gone.
    fs::write(&own, whole).unwrap();
    place.run("sweep --resume --out sweep --steps 9");
    assert!(text(&place.run("verify sweep").stdout).contains(" 0 damaged"));
}

#[test]
fn verify_names_every_file_and_its_condition() {
    let place = setting();
    place.run(&format!("sweep {RUN} --steps 5 --lr 1e-3,1e-4 --out sweep"));
    let output = place.run("verify run sweep straight/sae straight/checkpoints/step-00000040");
    let told = text(&output.stdout);
    assert!(told.contains(" 0 damaged, 0 unchecked"), "{told}");
    for folder in ["run", "sweep"] {
        for (path, _) in place.files(folder) {
            let name = path.strip_prefix(place.path("")).unwrap().to_str().unwrap();
            let hidden = name.ends_with(".lock") || name.ends_with("SHA256SUMS");
            let sound = told.lines().any(|line| line == format!("sound      {name}"));
            assert_eq!(sound, !hidden, "{name}\n{told}");
        }
    }
    // sha256sum agrees.
    let sums =
        Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(place.path("run/sae")).output();
    assert!(sums.unwrap().status.success());

    for file in ["run/config.json", "run/metrics.jsonl", "run/sae/cfg.json", "sweep/sweep.json"] {
        let path = place.path(file);
        let whole = fs::read(&path).unwrap();
        flip(&path, 8 * 40);
        let output = place.command("verify run sweep --json").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{file}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["damaged"], 1, "{told}");
        let damaged = |found: &&Value| found["state"] == "damaged";
        let found = told["files"].as_array().unwrap().iter().find(damaged).unwrap();
        assert_eq!(found["file"], file);
        assert!(!found["what"].as_str().unwrap().is_empty());
        fs::write(&path, whole).unwrap();
    }
    fs::remove_dir_all(place.path("run/sae")).unwrap();
    let output = place.command("verify run").output().unwrap();
    assert!(
        output.status.code() == Some(1) && text(&output.stdout).contains("damaged    run/sae: it is missing")
    );
    fs::create_dir(place.path("empty")).unwrap();
    assert!(place.fail("verify empty").contains("no run, no sweep and no autoencoder in empty"));
}

/// What a process leaves that is killed before its first file is whole.
fn remains(folder: &Path, file: &str) -> [PathBuf; 3] {
    [".lock".to_owned(), format!(".{file}.new"), format!(".{file}.unfinished")].map(|name| folder.join(name))
}

#[test]
fn what_a_process_killed_at_its_start_leaves_is_no_obstacle() {
    let place = setting();
    for (at, name) in remains(&place.path(""), "config.json").iter().enumerate() {
        let name = name.file_name().unwrap();
        for resume in ["", "--resume"] {
            let run = format!("begun-{at}{resume}");
            fs::create_dir(place.path(&run)).unwrap();
            fs::write(place.path(&run).join(".lock"), "").unwrap();
            fs::write(place.path(&run).join(name), "{\"form").unwrap();
            place.run(&format!("{RUN} --steps 60 {resume} --out {run}"));
            assert_eq!(place.sae_bytes(&run), place.sae_bytes("straight"));
            assert!(!place.path(&run).join(".config.json.unfinished").exists());
        }
    }
    let line = format!("sweep {RUN} --steps 5 --lr 1e-3,1e-4");
    for (at, name) in remains(&place.path(""), "sweep.json").iter().enumerate() {
        let sweep = format!("sweep-{at}");
        let point = place.path(&sweep).join("lr-1e-3");
        fs::create_dir_all(&point).unwrap();
        // One point's folder is begun, and sweep.json is not there yet: not what a kill leaves, but a disk that is full.
        fs::write(place.path(&sweep).join(name.file_name().unwrap()), "{").unwrap();
        fs::remove_dir(&point).unwrap();
        place.run(&format!("{line} --out {sweep}"));
        // And one whose first file was not whole.
        fs::remove_dir_all(&point).unwrap();
        fs::create_dir(&point).unwrap();
        for file in remains(&point, "config.json") {
            fs::write(file, "{").unwrap();
        }
        place.run(&format!("sweep --resume --out {sweep}"));
        assert!(point.join("sae").is_dir());
    }
}

#[test]
fn a_sweep_that_names_folders_elsewhere_is_refused() {
    let place = setting();
    place.run(&format!("sweep {RUN} --steps 5 --lr 1e-3,1e-4 --out sweep"));
    let path = place.path("sweep/sweep.json");
    let whole = json(&path);
    for name in ["../victim", "/tmp/victim", "a/b", "..", ".", "", ".git", "lr-1e-3/", "a\nb", "a\u{1b}[2J"] {
        let mut value = whole.clone();
        value["points"][0]["name"] = name.into();
        fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
        for line in ["sweep --resume --out sweep --steps 9", "compare sweep"] {
            let told = place.fail(line);
            assert!(told.contains("which is no name of a folder in it"), "{name:?}: {told}");
            assert!(!told.contains('\u{1b}') && told.lines().count() == 1, "{told}");
        }
        assert!(!place.path("victim").exists());
    }
}
