//! The two programs from text to trained autoencoder, as a user runs them.

use std::path::Path;
use std::process::Stdio;

use activation_store::Store;
use end_to_end::{
    Run, TINY, all_rows, files_below, gibberish, interrupted, program, rows_in_text_order, run_fails, run_ok,
    tiny_gpt2,
};

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

#[test]
fn a_dump_holds_every_row_of_every_context_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("store");
    let summary = dump(folder.path(), &out, 1000, &[]);
    assert_eq!(summary["contexts"], 1000);
    assert_eq!(summary["stores"][0]["rows"], 16_000);

    let store = Store::open(&out).unwrap();
    assert_eq!((store.rows(), store.width(), store.context_length()), (16_000, TINY.0, 16));
    let mut origins = store.origin(0..16_000).unwrap();
    assert_ne!(origins, (0..16_000).collect::<Vec<_>>(), "the rows are shuffled");
    origins.sort_unstable();
    assert_eq!(origins, (0..16_000).collect::<Vec<_>>());
    for context in [0, 1, 500, 999] {
        assert_eq!(
            store.context_tokens(context..context + 1).unwrap()[[0, 0]],
            256,
            "contexts start with BOS"
        );
    }
    assert_eq!(store.provenance().hook, "blocks.1.hook_resid_pre");
    assert!(store.provenance().centered, "GPT-2's residuals are centred by default");
    let rows = all_rows(&store);
    for row in rows.rows() {
        let mean = row.sum() / row.len() as f32;
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
    let tokens: Vec<u32> = tokens.into_iter().collect();
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

    let interrupted = interrupted(command, 40, 60);
    assert!(command().status().unwrap().success());
    assert!(interrupted >= 2, "the dump ran through before it could be interrupted");
    let differing = end_to_end::differing_files(&at("whole"), &at("store"));
    assert!(differing.is_empty(), "{differing:?} differ after {interrupted} interruptions");
}

/// Four points on real activations. Which penalty does better is for the reader of what this prints; that both
/// learn is for the test.
#[test]
fn two_penalties_at_two_coefficients_train_from_one_store() {
    let model = end_to_end::repository().join("models/smollm2-135m");
    assert!(model.is_dir(), "there is no {}: run scripts/fetch-smollm2", model.display());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (model, store) = (model.display().to_string(), at("store"));
    let text = "tests/data/public-domain-english.parquet";
    run_ok("activation-dump", ["--model", &model, "--dataset", text, "--tokens", "50k", "--out", &store]);

    let mut runs = Vec::new();
    for (loss, coefficients) in [("approx-l0", ["7e-5", "1.4e-4"]), ("l1", ["8e-5", "1.6e-4"])] {
        let flag = if loss == "l1" { "--l1-coefficient" } else { "--l0-coefficient" };
        for coefficient in coefficients {
            let out = at(&format!("{loss}-{coefficient}"));
            let size = ["--features", "1152", "--batch", "512", "--steps", "300", "--log-every", "30"];
            let what = ["--store", &store, "--loss", loss, flag, coefficient, "--out", &out];
            run_ok("sae-trainer", what.into_iter().chain(size));
            check_that_it_learnt(Path::new(&out));
            runs.push(out);
        }
    }
    let table = run_ok("sae-trainer", std::iter::once("compare".to_owned()).chain(runs)).stdout;
    println!("{table}");
    assert!(table.contains("approx-l0") && table.contains("l1"), "{table}");
}

#[test]
fn an_autoencoder_is_measured_in_the_model_that_made_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    dump(folder.path(), Path::new(&at("store")), 200, &[]);
    let size = ["--features", "128", "--batch", "256", "--steps", "200", "--lr", "3e-3"];
    let (store, run, model) = (at("store"), at("run"), at("model"));
    run_ok("sae-trainer", ["--store", &store, "--out", &run].into_iter().chain(size));
    let eval = ["eval", &run, "--store", &store, "--held-out", "0.2", "--contexts", "30"];
    let json = |more: &[&str]| -> serde_json::Value {
        let common = ["--model", &model, "--json"];
        let arguments = eval.iter().chain(&common).chain(more);
        serde_json::from_str(&run_ok("sae-trainer", arguments).stdout).expect("--json prints JSON")
    };
    let found = &json(&[])[0]["in_model"];
    assert_eq!((&found["contexts"], &found["context_length"]), (&30.into(), &16.into()));
    assert_eq!(found["hook"], "blocks.1.hook_resid_pre");
    let mean = |of: &str| found[of]["mean"].as_f64().unwrap();
    assert!(mean("ce_loss_clean") > 0.0 && mean("kl_reconstructed") > 0.0, "{found}");
    assert!(mean("kl_reconstructed") < mean("kl_zero"), "{found}");
    assert!(found["ce_loss_clean"]["standard_error"].as_f64().unwrap() > 0.0, "{found}");
    // The threads change nothing, and BOS is one of the tokens whose rows can be left to the model.
    assert_eq!(json(&["--threads", "1"])[0]["on_rows"], json(&[])[0]["on_rows"]);
    let kept = &json(&["--special-tokens", "keep"])[0]["in_model"];
    assert_eq!(kept["ce_loss_clean"], found["ce_loss_clean"]);
    assert_ne!(kept["ce_loss_reconstructed"], found["ce_loss_reconstructed"]);

    let other = at("other");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(&model).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), Path::new(&other).join(file.file_name())).unwrap();
    }
    let weights = Path::new(&other).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    run_fails("sae-trainer", eval.iter().chain(&["--model", &other]), &["is not the model of", "SHA-256"]);
}

/// L0 and error fall, every metric is a number, and the autoencoder is there.
fn check_that_it_learnt(run: &Path) {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(!metrics.contains("NaN") && !metrics.contains("null"), "{}: not a number", run.display());
    let records: Vec<serde_json::Value> =
        metrics.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let steps: Vec<_> = records.iter().filter(|record| record["kind"] == "step").collect();
    assert!(steps.len() >= 10, "{} steps are logged", steps.len());
    for (metric, share) in [("l0", 0.5), ("mse_centered", 0.5)] {
        let of = |record: &serde_json::Value| record[metric].as_f64().expect("the metric is logged");
        let (first, last) = (of(steps[0]), of(steps[steps.len() - 1]));
        assert!(last < share * first, "{}: {metric} goes from {first} to {last}", run.display());
    }
    for file in ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"] {
        assert!(run.join("sae").join(file).is_file(), "{}: sae/{file} is missing", run.display());
    }
}

#[test]
fn a_finished_store_is_described_verified_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    dump(folder.path(), &store, 300, &[]);
    let path = store.display().to_string();
    let json =
        |run: Run| -> serde_json::Value { serde_json::from_str(&run.stdout).expect("--json prints JSON") };

    let info = json(run_ok("activation-dump", ["info", &path, "--json"]));
    assert_eq!((info["rows"].as_u64(), info["contexts"].as_u64()), (Some(4800), Some(300)));
    assert_eq!(info["specification"]["provenance"]["hook"], "blocks.1.hook_resid_pre");
    let text = run_ok("activation-dump", ["info", &path]).stdout;
    assert!(text.contains("blocks.1.hook_resid_pre") && text.contains("4.8k of 32 float16"), "{text}");

    let npy = folder.path().join("npy").display().to_string();
    run_ok("activation-dump", ["export", &path, "--format", "npy", "--out", &npy]);
    assert!(files_below(Path::new(&npy)).iter().any(|file| file.extension().is_some_and(|end| end == "npy")));
    run_fails("activation-dump", ["export", &path, "--format", "sae-lens", "--out", &npy], &[&npy]);

    assert!(run_ok("activation-dump", ["verify", &path]).stdout.contains("sound"));
    let shard = store.join("activations/c/0/0");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let damaged = end_to_end::run("activation-dump", ["verify", &path, "--json"]);
    assert_eq!(damaged.code, Some(1));
    let problems = json(damaged)["problems"].clone();
    assert_eq!(problems.as_array().map(Vec::len), Some(1), "{problems}");
    assert_eq!(problems[0]["file"], "activations/c/0/0");
    assert!(problems[0]["chunk"].is_u64());
}
