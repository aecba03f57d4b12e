//! The two programs from text to trained autoencoder, as a user runs them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use activation_store::Store;
use end_to_end::{Run, TINY, gibberish, program, run_ok, tiny_gpt2};

/// A dump of the tiny model: `contexts` contexts of 16 tokens; returns the summary that `--json` prints.
fn dump(folder: &Path, out: &Path, contexts: usize, more: &[&str]) -> serde_json::Value {
    let (model, text) = (folder.join("model"), folder.join("text.jsonl"));
    if !model.exists() {
        tiny_gpt2(&model);
        gibberish(&text, 400);
    }
    let tokens = (contexts * 16).to_string();
    let mut arguments = vec!["--context", "16", "--tokens", &tokens, "--json", "--device", "cpu"];
    let (model, text, out) =
        (model.display().to_string(), text.display().to_string(), out.display().to_string());
    arguments.extend(["--model", &model, "--dataset", &text, "--out", &out]);
    arguments.extend(more);
    serde_json::from_str(&run_ok("activation-dump", arguments).stdout).expect("--json prints JSON")
}

fn all_rows(store: &Store) -> Vec<f32> {
    let mut rows = vec![0.0; store.rows() as usize * store.width()];
    store.read_rows(0..store.rows(), &mut rows).expect("the store is whole");
    rows
}

/// The store's rows in the order of the text: sorted by their origins.
fn rows_in_text_order(store: &Store) -> Vec<(u64, Vec<f32>)> {
    let rows = all_rows(store);
    let origins = store.origin(0..store.rows()).expect("the store is whole");
    let mut sorted: Vec<_> =
        origins.into_iter().zip(rows.chunks(store.width()).map(<[f32]>::to_vec)).collect();
    sorted.sort_by_key(|(origin, _)| *origin);
    sorted
}

#[test]
fn a_dump_holds_every_row_of_every_context_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("store");
    let summary = dump(folder.path(), &out, 1000, &[]);
    assert_eq!(summary["contexts"], 1000);
    assert_eq!(summary["rows"], 16_000);

    let store = Store::open(&out).unwrap();
    assert_eq!((store.rows(), store.width(), store.context_length()), (16_000, TINY.0, 16));
    let mut origins = store.origin(0..16_000).unwrap();
    assert_ne!(origins, (0..16_000).collect::<Vec<_>>(), "the rows are shuffled");
    origins.sort_unstable();
    assert_eq!(origins, (0..16_000).collect::<Vec<_>>());
    for context in [0, 1, 500, 999] {
        assert_eq!(store.context_tokens(context..context + 1).unwrap()[0], 256, "contexts start with BOS");
    }
    assert_eq!(store.provenance().hook, "blocks.1.hook_resid_pre");
    assert!(store.provenance().centered, "GPT-2's residuals are centred by default");
    let rows = all_rows(&store);
    for row in rows.chunks(store.width()) {
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        assert!(mean.abs() < 1e-3, "a centred row has mean {mean}");
    }
}

#[test]
fn the_same_command_writes_the_same_bytes_for_any_thread_count() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    dump(folder.path(), &one, 300, &["--threads", "1", "--shuffle-memory", "256KiB"]);
    dump(folder.path(), &two, 300, &["--threads", "2", "--shuffle-memory", "256KiB"]);
    let (one, two) = (Store::open(&one).unwrap(), Store::open(&two).unwrap());
    assert_eq!(one.origin(0..one.rows()).unwrap(), two.origin(0..two.rows()).unwrap());
    assert!(all_rows(&one) == all_rows(&two));
}

#[test]
fn bos_rows_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (with, without) = (folder.path().join("with"), folder.path().join("without"));
    dump(folder.path(), &with, 200, &["--dtype", "f32"]);
    dump(folder.path(), &without, 200, &["--dtype", "f32", "--drop-bos"]);
    let (with, without) = (Store::open(&with).unwrap(), Store::open(&without).unwrap());
    let tokens = with.context_tokens(0..200).unwrap();
    let expected: Vec<_> =
        rows_in_text_order(&with).into_iter().filter(|(origin, _)| tokens[*origin as usize] != 256).collect();
    assert!(expected.len() < with.rows() as usize - 200, "documents begin within contexts too");
    assert!(rows_in_text_order(&without) == expected);
}

#[test]
fn centring_is_a_choice_and_subtracts_the_mean_over_the_width() {
    let folder = tempfile::tempdir().unwrap();
    let (on, off) = (folder.path().join("on"), folder.path().join("off"));
    dump(folder.path(), &on, 50, &["--dtype", "f32", "--center", "on"]);
    dump(folder.path(), &off, 50, &["--dtype", "f32", "--center", "off"]);
    let (on, off) = (Store::open(&on).unwrap(), Store::open(&off).unwrap());
    assert!(!off.provenance().centered);
    for ((_, centred), (_, plain)) in rows_in_text_order(&on).into_iter().zip(rows_in_text_order(&off)) {
        let mean = plain.iter().sum::<f32>() / plain.len() as f32;
        for (centred, plain) in centred.iter().zip(&plain) {
            assert!((centred - (plain - mean)).abs() < 1e-5);
        }
    }
}

#[test]
fn a_text_that_ends_early_makes_a_shorter_whole_store() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("store");
    let summary = dump(folder.path(), &out, 1_000_000, &[]);
    assert_eq!(summary["text_exhausted"], true);
    let store = Store::open(&out).unwrap();
    assert_eq!(store.contexts(), summary["contexts"].as_u64().unwrap());
    assert!(store.contexts() > 1000);
}

#[test]
fn an_interrupted_dump_goes_on_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    tiny_gpt2(&at("model"));
    gibberish(&at("text.jsonl"), 400);
    // One command for all: the store records it. Small windows, so that some are safe whenever the signal comes.
    let command = || {
        let mut command = program("activation-dump");
        command.args(["--context", "16", "--tokens", "64k", "--device", "cpu", "--batch", "3"]);
        command.args(["--shuffle-memory", "128KiB"]);
        for (flag, name) in [("--model", "model"), ("--dataset", "text.jsonl"), ("--out", "store")] {
            command.arg(flag).arg(at(name));
        }
        command.stderr(Stdio::piped());
        command
    };
    assert!(command().status().unwrap().success());
    std::fs::rename(at("store"), at("whole")).unwrap();

    let mut interrupted = 0;
    for attempt in 0..40_u64 {
        let child = command().spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 + 25 * attempt));
        let signal = if attempt % 2 == 0 { "-INT" } else { "-KILL" };
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let run = Run::from(child.wait_with_output().unwrap());
        match run.code {
            Some(0) => break,
            Some(130) | None => interrupted += 1,
            Some(code) => panic!("a resumed dump ended with {code}:\n{}", run.stderr),
        }
    }
    assert!(command().status().unwrap().success());
    assert!(interrupted >= 2, "the dump ran through before it could be interrupted");
    for file in files_below(&at("whole")) {
        let name = file.strip_prefix(at("whole")).unwrap();
        let same = std::fs::read(&file).unwrap() == std::fs::read(at("store").join(name)).unwrap();
        assert!(same, "{} differs after {interrupted} interruptions", name.display());
    }
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn two_autoencoders_train_from_one_store_and_get_better() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    dump(folder.path(), &store, 2000, &[]);
    let store = store.display().to_string();
    for (loss, coefficient) in [("approx-l0", "--l0-coefficient"), ("l1", "--l1-coefficient")] {
        let out = folder.path().join(loss);
        let summary = run_ok(
            "sae-trainer",
            [
                "--store",
                &store,
                "--loss",
                loss,
                coefficient,
                "3e-4",
                "--features",
                "128",
                "--batch",
                "256",
                "--steps",
                "600",
                "--lr",
                "1e-3",
                "--log-every",
                "50",
                "--json",
                "--out",
                &out.display().to_string(),
            ],
        );
        let summary: serde_json::Value = serde_json::from_str(&summary.stdout).expect("--json prints JSON");
        assert!(summary.is_object());
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let records: Vec<serde_json::Value> =
            metrics.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
        assert!(!metrics.contains("NaN") && !metrics.contains("null,"), "{loss}: a metric is not a number");
        let of = |record: &serde_json::Value, name: &str| {
            record[name].as_f64().unwrap_or_else(|| panic!("no {name}"))
        };
        let (first, last) = (&records[0], &records[records.len() - 2]);
        assert!(of(last, "l0") < of(first, "l0"), "{loss}: L0 does not fall");
        assert!(
            of(last, "mse_centered") < 0.5 * of(first, "mse_centered"),
            "{loss}: the error does not fall"
        );
        for file in ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"] {
            assert!(out.join("sae").join(file).is_file(), "{loss}: sae/{file} is missing");
        }
    }
}
