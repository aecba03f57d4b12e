//! Bad input ends with a message that says what, where and what to do, and a non-zero exit code. Nothing is lost.

use std::path::Path;

use end_to_end::{Setting, run, run_fails, run_ok};

fn edit_json(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn the_setting_itself_works() {
    let setting = Setting::new(50);
    run_ok("activation-dump", setting.arguments(&[]));
}

#[test]
fn a_missing_model_is_named() {
    let setting = Setting::new(50);
    std::fs::remove_file(setting.at("model/model.safetensors")).unwrap();
    setting.refuses(&[], &["model.safetensors"]);
    std::fs::remove_file(setting.at("model/config.json")).unwrap();
    setting.refuses(&[], &["config.json"]);
    setting.refuses(&["--model", "no/such/folder"], &["no/such/folder"]);
}

#[test]
fn truncated_weights_are_named() {
    let setting = Setting::new(50);
    let path = setting.at("model/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        setting.refuses(&[], &["model.safetensors"]);
    }
}

#[test]
fn another_models_tokenizer_is_refused() {
    let setting = Setting::new(50);
    let path = setting.at("model/tokenizer.json");
    edit_json(&path, |tokenizer| tokenizer["model"]["vocab"]["zz"] = 300.into());
    setting.refuses(&[], &["tokenizer.json", "300", "257"]);
    edit_json(&path, |tokenizer| {
        tokenizer["added_tokens"] = serde_json::json!([]);
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.remove("zz");
        vocabulary.remove("<|endoftext|>");
    });
    setting.refuses(&[], &["tokenizer.json", "256"]);
    std::fs::write(&path, "{}").unwrap();
    setting.refuses(&[], &["tokenizer.json"]);
}

#[test]
fn an_empty_dataset_is_an_error() {
    let setting = Setting::new(50);
    std::fs::write(setting.at("text.jsonl"), "").unwrap();
    setting.refuses(&[], &["less than one context"]);
    std::fs::create_dir(setting.at("empty")).unwrap();
    let empty = setting.at("empty").display().to_string();
    setting.refuses(&["--dataset", &empty], &["no file of text"]);
    setting.refuses(&["--dataset", "nowhere/text.jsonl"], &["nowhere/text.jsonl"]);
}

#[test]
fn an_unreachable_hub_is_reported_with_flags_for_local_files() {
    let setting = Setting::new(50);
    for more in [["--model", "openai-community/gpt2"], ["--dataset", "Skylion007/openwebtext"]] {
        let run: end_to_end::Run = end_to_end::program("activation-dump")
            .args(setting.arguments(&more))
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
    let setting = Setting::new(50);
    setting.refuses(&["--layer", "2"], &["2"]);
    setting.refuses(&["--hook", "blocks.9.hook_mlp_out"], &["9"]);
    setting.refuses(&["--hook", "blocks.1.hook_q"], &["hook_q", "hook_resid_pre"]);
    setting.refuses(&["--context", "65"], &["65", "64"]);
}

#[test]
fn a_folder_with_another_dump_or_other_files_is_left_alone() {
    let setting = Setting::new(50);
    run_ok("activation-dump", setting.arguments(&[]));
    let before = std::fs::read(setting.at("store/zarr.json")).unwrap();
    run_fails("activation-dump", setting.arguments(&["--seed", "7"]), &["seed", "another folder"]);
    run_fails("activation-dump", setting.arguments(&["--hook", "blocks.0.hook_mlp_out"]), &["hook"]);
    assert_eq!(std::fs::read(setting.at("store/zarr.json")).unwrap(), before);

    std::fs::create_dir(setting.at("papers")).unwrap();
    std::fs::write(setting.at("papers/thesis.txt"), "years of work").unwrap();
    let papers = setting.at("papers").display().to_string();
    run_fails("activation-dump", setting.arguments(&["--out", &papers]), &["papers"]);
    assert_eq!(std::fs::read_to_string(setting.at("papers/thesis.txt")).unwrap(), "years of work");
}

#[test]
fn a_disk_without_room_is_said_before_the_first_byte() {
    let setting = Setting::new(50);
    // 10^13 tokens of 32 float16 numbers are 640 TB.
    setting.refuses(&["--tokens", "10T"], &["free"]);
}

#[test]
fn nan_in_the_activations_stops_the_dump_and_names_the_place() {
    let setting = Setting::new(50);
    let path = setting.at("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The embedding of one letter becomes NaN: the first tensor by name that every run reads rows of.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + names["wte.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let letter = 68 * 32 * 4; // token 68 is a letter, as any token below 94
    bytes[start + letter..start + letter + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    setting.refuses(&[], &["NaN", "context", "position", "blocks.1.hook_resid_pre, in the text \"", "D"]);
}

#[test]
fn a_value_beyond_float16_stops_the_dump_without_clip() {
    let setting = Setting::new(50);
    let path = setting.at("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + names["wpe.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + 4].copy_from_slice(&1e6_f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    setting.refuses(&[], &["float16", "--dtype f32", "--clip"]);
    std::fs::remove_dir_all(setting.at("store")).ok();
    run_ok("activation-dump", setting.arguments(&["--clip"]));
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_not_the_cpu() {
    if Path::new("/dev/nvidiactl").exists() {
        return; // there is one
    }
    let setting = Setting::new(50);
    setting.refuses(&["--device", "cuda"], &["CUDA"]);
    run_ok("activation-dump", setting.arguments(&["--device", "auto"]));
}

#[test]
fn a_missing_onnx_runtime_names_the_command_that_gets_it() {
    let setting = Setting::new(50);
    setting.refuses(
        &["--onnxruntime", "no/libonnxruntime.so"],
        &["no/libonnxruntime.so", "scripts/fetch-onnxruntime"],
    );
}

#[test]
fn two_writers_at_once_leave_one_whole_store() {
    let setting = Setting::new(50);
    let mut first = end_to_end::program("activation-dump")
        .args(setting.arguments(&[]))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Whichever comes second meets the lock, or a store that is already finished.
    let second = run("activation-dump", setting.arguments(&[]));
    let first = first.wait().unwrap();
    assert!(first.success() || second.code == Some(0));
    assert!(!second.stderr.contains("panicked"));
    activation_store::Store::open(&setting.at("store")).expect("one of them finished the store");
}

#[test]
fn the_trainer_refuses_what_is_no_store_and_what_does_not_fit() {
    let setting = Setting::new(50);
    let nowhere = setting.at("nowhere").display().to_string();
    run_fails("sae-trainer", ["--store", &nowhere, "--loss", "l1"], &["nowhere"]);

    run_ok("activation-dump", setting.arguments(&[]));
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
    run_ok("activation-dump", setting.arguments(&["--out", &other, "--hook", "blocks.0.hook_mlp_out"]));
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
    // They tell a flipped bit from what was written, and an edit on purpose takes them away.
    std::fs::remove_file(folder.join("SHA256SUMS")).unwrap();
}

/// A NumPy array of u2.
fn npy(shape: &str, tokens: &[u16]) -> Vec<u8> {
    let header = format!("{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    file
}

#[test]
fn a_file_that_lies_about_its_size_is_counted() {
    let setting = Setting::new(50);
    std::fs::create_dir(setting.at("tokens")).unwrap();
    let good = |token: u16| npy("(4, 16)", &[token; 64]);
    std::fs::write(setting.at("tokens/a.npy"), good(1)).unwrap();
    std::fs::write(setting.at("tokens/b.npy"), npy("(4611686018427387904, 16)", &[2; 64])).unwrap();
    std::fs::write(setting.at("tokens/c.npy"), good(3)).unwrap();
    let tokens = setting.at("tokens").display().to_string();
    let run = run_ok("activation-dump", setting.arguments(&["--dataset", &tokens]));
    assert!(run.stderr.contains("b.npy") && run.stderr.contains("4611686018427387904"), "{}", run.stderr);
    let store = activation_store::Store::open(&setting.at("store")).unwrap();
    assert_eq!(store.contexts(), 8);
    assert!(store.context_tokens(7..8).unwrap().iter().eq(&[3; 16]));
    let other = setting.at("other").display().to_string();
    let strict = ["--dataset", &tokens, "--strict", "--out", &other];
    run_fails("activation-dump", setting.arguments(&strict), &["b.npy", "shape"]);
}

#[test]
fn counts_beyond_all_measure_are_refused_and_do_not_wrap() {
    let setting = Setting::new(50);
    let most = u64::MAX.to_string();
    let part = format!("{most}/{most}");
    for words in [
        ["--tokens", most.as_str()],
        ["--skip-tokens", &most],
        ["--context", &most],
        ["--part", &part],
        ["--tokens", "72057594037927936"],
    ] {
        setting.refuses(&words, &words[..1]);
    }
    run_fails("activation-dump", setting.arguments(&["--shuffle-memory", &most, "--dry-run"]), &["window"]);
    for (rank, size) in [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")] {
        let mut command = end_to_end::program("activation-dump");
        command.args(setting.arguments(&[])).env(rank, "5").env(size, &most);
        let run: end_to_end::Run = command.output().unwrap().into();
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(size) && !run.stderr.contains("panicked"), "{}", run.stderr);
    }
}

#[test]
fn arguments_that_are_no_text_are_refused_or_taken_as_paths() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let setting = Setting::new(50);
    let odd = OsStr::from_bytes(b"st\xffore");
    for flag in ["--dataset", "--column", "--model", "--tokens", "info"] {
        let run: end_to_end::Run =
            end_to_end::program("activation-dump").args([OsStr::new(flag), odd]).output().unwrap().into();
        assert!(
            matches!(run.code, Some(1 | 2)) && !run.stderr.contains("panicked"),
            "{flag}: {}",
            run.stderr
        );
    }
    let mut command = end_to_end::program("activation-dump");
    command.args(setting.arguments(&["--out"])).arg(setting.at(odd));
    let run: end_to_end::Run = command.output().unwrap().into();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    activation_store::Store::open(&setting.at(odd)).unwrap();
}

#[test]
fn a_reader_that_goes_away_changes_no_verdict() {
    let setting = Setting::new(50);
    run_ok("activation-dump", setting.arguments(&[]));
    let store = setting.at("store");
    let command = |words: &[&str]| {
        let mut command = end_to_end::program("activation-dump");
        command.args(words).arg(&store).stderr(std::process::Stdio::null());
        command
    };
    let closed = |words: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command(words).stdout(writer).status().unwrap().code()
    };
    let full = |words: &[&str]| {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        command(words).stdout(full).status().unwrap().code()
    };
    for words in [&["info"][..], &["info", "--json"], &["verify"], &["verify", "--json"]] {
        assert_eq!((closed(words), full(words)), (Some(0), Some(1)), "{words:?}");
    }
    let shard = store.join("activations/c/0/0");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    for words in [&["verify"][..], &["verify", "--json"]] {
        assert_eq!((closed(words), full(words)), (Some(1), Some(1)), "{words:?}");
    }
}

#[test]
fn a_pipe_in_place_of_a_file_is_said_to_be_one() {
    let setting = Setting::new(50);
    let pipe = setting.at("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.display().to_string();
    setting.refuses(&["--dataset", &pipe], &["pipe.jsonl", "--dataset -"]);
    // In a folder it is none of the text, and keeps nobody waiting; nor does a link that leads back.
    std::fs::create_dir(setting.at("folder")).unwrap();
    std::fs::rename(&pipe, setting.at("folder/pipe.jsonl")).unwrap();
    std::fs::copy(setting.at("text.jsonl"), setting.at("folder/text.jsonl")).unwrap();
    std::os::unix::fs::symlink(".", setting.at("folder/again")).unwrap();
    let folder = setting.at("folder").display().to_string();
    let run = run_ok("activation-dump", setting.arguments(&["--dataset", &folder]));
    assert!(run.stderr.contains("(1 file)"), "{}", run.stderr);
}

#[test]
fn text_that_ends_before_what_is_left_out_is_said_so() {
    let setting = Setting::new(50);
    setting.refuses(
        &["--skip-tokens", "1G"],
        &["contexts of 16 tokens", "begins with number 62500001", "--skip-tokens"],
    );
}

#[test]
fn the_systems_reason_is_said_once() {
    let setting = Setting::new(50);
    std::fs::create_dir(setting.at("folder.txt.d")).unwrap();
    let config = setting.at("model/config.json");
    std::fs::remove_file(&config).unwrap();
    std::fs::create_dir(&config).unwrap();
    let run = run_fails("activation-dump", setting.arguments(&[]), &["config.json", "Is a directory"]);
    assert_eq!(run.stderr.matches("Is a directory").count(), 1, "{}", run.stderr);
}

#[test]
fn foreign_names_are_shown_and_not_obeyed() {
    let setting = Setting::new(50);
    let odd = "a\u{1b}[2J\nerror: none\u{202e}.jsonl";
    std::fs::rename(setting.at("text.jsonl"), setting.at(odd)).unwrap();
    let text = setting.at(odd).display().to_string();
    let harmless = |run: &end_to_end::Run| {
        for stream in [&run.stdout, &run.stderr] {
            assert!(
                !stream.contains(['\u{1b}', '\u{202e}']) && !stream.contains("\nerror: none"),
                "{stream:?}"
            );
        }
    };
    harmless(&run_ok("activation-dump", setting.arguments(&["--dataset", &text])));
    let store = setting.at("store").display().to_string();
    let info = run_ok("activation-dump", ["info", &store]);
    harmless(&info);
    assert!(info.stdout.contains("\\u001b[2J\\nerror: none"), "{}", info.stdout);
    let missing = format!("{text}.missing");
    harmless(&run(
        "activation-dump",
        setting.arguments(&["--dataset", &missing, "--out", &setting.at("other").display().to_string()]),
    ));
}

#[test]
fn an_index_of_weights_cannot_name_other_files() {
    let setting = Setting::new(50);
    std::fs::rename(setting.at("model/model.safetensors"), setting.at("secret.safetensors")).unwrap();
    for name in ["/etc/passwd", "../secret.safetensors"] {
        let index = format!(r#"{{"weight_map": {{"wte.weight": "{name}"}}}}"#);
        std::fs::write(setting.at("model/model.safetensors.index.json"), index).unwrap();
        setting.refuses(&[], &["index.json", name, "below the model's folder"]);
    }
}
