//! Bad input ends with a message that says what, where and what to do, a non-zero exit, and nothing lost.

use std::path::{Path, PathBuf};

use end_to_end::{gibberish, run, run_fails, run_ok, tiny_gpt2};

/// A folder with a model, some text, and the arguments of a small dump of them.
struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    fn new() -> Setting {
        let setting = Setting { folder: tempfile::tempdir().unwrap() };
        tiny_gpt2(&setting.at("model"));
        gibberish(&setting.at("text.jsonl"), 50);
        setting
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The arguments of a dump that works, then `more`.
    fn dump(&self, more: &[&str]) -> Vec<String> {
        let text = |name: &str| self.at(name).display().to_string();
        let usual = [
            ("--model", text("model")),
            ("--dataset", text("text.jsonl")),
            ("--out", text("store")),
            ("--tokens", "3k".to_owned()),
            ("--context", "16".to_owned()),
        ];
        let mut arguments = Vec::new();
        for (flag, value) in usual {
            if !more.contains(&flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        arguments
    }

    /// The dump fails with `words` in its message and leaves no store that could pass for one.
    fn dump_fails(&self, more: &[&str], words: &[&str]) {
        run_fails("activation-dump", self.dump(more), words);
        assert!(activation_store::Store::open(&self.at("store")).is_err());
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn the_setting_itself_works() {
    let setting = Setting::new();
    run_ok("activation-dump", setting.dump(&[]));
}

#[test]
fn a_missing_model_is_named() {
    let setting = Setting::new();
    std::fs::remove_file(setting.at("model/model.safetensors")).unwrap();
    setting.dump_fails(&[], &["model.safetensors"]);
    std::fs::remove_file(setting.at("model/config.json")).unwrap();
    setting.dump_fails(&[], &["config.json"]);
    setting.dump_fails(&["--model", "no/such/folder"], &["no/such/folder"]);
}

#[test]
fn truncated_weights_are_named() {
    let setting = Setting::new();
    let path = setting.at("model/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        setting.dump_fails(&[], &["model.safetensors"]);
    }
}

#[test]
fn another_models_tokenizer_is_refused() {
    let setting = Setting::new();
    let path = setting.at("model/tokenizer.json");
    edit_json(&path, |tokenizer| tokenizer["model"]["vocab"]["zz"] = 300.into());
    setting.dump_fails(&[], &["tokenizer.json", "300", "257"]);
    edit_json(&path, |tokenizer| {
        tokenizer["added_tokens"] = serde_json::json!([]);
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.remove("zz");
        vocabulary.remove("<|endoftext|>");
    });
    setting.dump_fails(&[], &["tokenizer.json", "256"]);
    std::fs::write(&path, "{}").unwrap();
    setting.dump_fails(&[], &["tokenizer.json"]);
}

#[test]
fn an_empty_dataset_is_an_error() {
    let setting = Setting::new();
    std::fs::write(setting.at("text.jsonl"), "").unwrap();
    setting.dump_fails(&[], &["less than one context"]);
    std::fs::create_dir(setting.at("empty")).unwrap();
    let empty = setting.at("empty").display().to_string();
    setting.dump_fails(&["--dataset", &empty], &["no file of text"]);
    setting.dump_fails(&["--dataset", "nowhere/text.jsonl"], &["nowhere/text.jsonl"]);
}

#[test]
fn a_hub_that_cannot_be_reached_is_said_with_the_flags_for_local_files() {
    let setting = Setting::new();
    for more in [["--model", "openai-community/gpt2"], ["--dataset", "Skylion007/openwebtext"]] {
        let run: end_to_end::Run = end_to_end::program("activation-dump")
            .args(setting.dump(&more))
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("HF_HOME", setting.at("cache"))
            .output()
            .unwrap()
            .into();
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(more[0]) && run.stderr.contains("127.0.0.1"), "{}", run.stderr);
    }
}

#[test]
fn a_layer_out_of_range_and_an_unknown_hook_are_refused() {
    let setting = Setting::new();
    setting.dump_fails(&["--layer", "2"], &["2"]);
    setting.dump_fails(&["--hook", "blocks.9.hook_mlp_out"], &["9"]);
    setting.dump_fails(&["--hook", "blocks.1.hook_q"], &["hook_q", "hook_resid_pre"]);
    setting.dump_fails(&["--context", "65"], &["65", "64"]);
}

#[test]
fn a_folder_with_another_dump_or_other_files_is_left_alone() {
    let setting = Setting::new();
    run_ok("activation-dump", setting.dump(&[]));
    let before = std::fs::read(setting.at("store/zarr.json")).unwrap();
    run_fails("activation-dump", setting.dump(&["--seed", "7"]), &["seed", "another folder"]);
    run_fails("activation-dump", setting.dump(&["--hook", "blocks.0.hook_mlp_out"]), &["hook"]);
    assert_eq!(std::fs::read(setting.at("store/zarr.json")).unwrap(), before);

    std::fs::create_dir(setting.at("papers")).unwrap();
    std::fs::write(setting.at("papers/thesis.txt"), "years of work").unwrap();
    let papers = setting.at("papers").display().to_string();
    run_fails("activation-dump", setting.dump(&["--out", &papers]), &["papers"]);
    assert_eq!(std::fs::read_to_string(setting.at("papers/thesis.txt")).unwrap(), "years of work");
}

#[test]
fn a_disk_without_room_is_said_before_the_first_byte() {
    let setting = Setting::new();
    // 10^13 tokens of 32 float16 numbers are 640 TB.
    setting.dump_fails(&["--tokens", "10T"], &["free"]);
}

#[test]
fn nan_in_the_activations_stops_the_dump_and_names_the_place() {
    let setting = Setting::new();
    let path = setting.at("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The embedding of one letter becomes NaN: the first tensor by name that every run reads rows of.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + names["wte.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let letter = 68 * 32 * 4; // token 68 is a letter, as any token below 94
    bytes[start + letter..start + letter + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    setting.dump_fails(&[], &["NaN", "context", "position", "blocks.1.hook_resid_pre, in the text \"", "D"]);
}

#[test]
fn a_value_beyond_float16_stops_the_dump_unless_clipping_is_allowed() {
    let setting = Setting::new();
    let path = setting.at("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + names["wpe.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + 4].copy_from_slice(&1e6_f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    setting.dump_fails(&[], &["float16", "--dtype f32", "--clip"]);
    std::fs::remove_dir_all(setting.at("store")).ok();
    run_ok("activation-dump", setting.dump(&["--clip"]));
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_not_the_cpu() {
    if Path::new("/dev/nvidiactl").exists() {
        return; // there is one
    }
    let setting = Setting::new();
    setting.dump_fails(&["--device", "cuda"], &["CUDA"]);
    run_ok("activation-dump", setting.dump(&["--device", "auto"]));
}

#[test]
fn a_missing_onnx_runtime_names_the_command_that_gets_it() {
    let setting = Setting::new();
    setting.dump_fails(
        &["--onnxruntime", "no/libonnxruntime.so"],
        &["no/libonnxruntime.so", "scripts/fetch-onnxruntime"],
    );
}

#[test]
fn two_writers_at_once_leave_one_whole_store() {
    let setting = Setting::new();
    let mut first = end_to_end::program("activation-dump")
        .args(setting.dump(&[]))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Whichever comes second meets the lock, or a store that is already finished.
    let second = run("activation-dump", setting.dump(&[]));
    let first = first.wait().unwrap();
    assert!(first.success() || second.code == Some(0));
    assert!(!second.stderr.contains("panicked"));
    activation_store::Store::open(&setting.at("store")).expect("one of them finished the store");
}

#[test]
fn the_trainer_refuses_what_is_no_store_and_what_does_not_fit() {
    let setting = Setting::new();
    let nowhere = setting.at("nowhere").display().to_string();
    run_fails("sae-trainer", ["--store", &nowhere, "--loss", "l1"], &["nowhere"]);

    run_ok("activation-dump", setting.dump(&[]));
    let store = setting.at("store").display().to_string();
    let out = setting.at("run").display().to_string();
    let train = |more: &[&str]| {
        let mut words = vec!["--store", &store, "--batch", "128", "--steps", "20", "--features", "64"];
        words.extend(more);
        words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()
    };
    run_ok("sae-trainer", train(&["--out", &out]));
    run_fails("sae-trainer", train(&["--out", &out, "--lr", "1e-2"]), &["run"]);
    run_fails("sae-trainer", train(&["--out", &nowhere, "--device", "cuda"]), &["libcuda.so.1"]);

    // A model of another width.
    let other = setting.at("other").display().to_string();
    run_ok("activation-dump", setting.dump(&["--out", &other, "--hook", "blocks.0.hook_mlp_out"]));
    let sae = setting.at("run/sae");
    edit_width(&sae);
    let sae = sae.display().to_string();
    let words =
        ["--store", &other, "--batch", "128", "--steps", "20", "--init-from", &sae, "--out", &nowhere];
    run_fails("sae-trainer", words, &["32"]);
}

/// Makes the autoencoder in `folder` one of width 16.
fn edit_width(folder: &Path) {
    use safetensors::tensor::{Dtype, TensorView};
    let (d, f) = (16_usize, 64_usize);
    let zeros = |count: usize| vec![0_u8; 4 * count];
    let tensors = [("W_enc", vec![d, f]), ("b_enc", vec![f]), ("W_dec", vec![f, d]), ("b_dec", vec![d])];
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| zeros(shape.iter().product())).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("sae_weights.safetensors")).unwrap();
    edit_json(&folder.join("cfg.json"), |config| config["d_in"] = d.into());
}
