//! Every way in which text reaches a store, as a user runs `activation-dump`: the rows are always the same.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use activation_store::Store;
use end_to_end::{
    LENGTH, Run, Setting, differing_files, files_below, hearing_hangups, interrupted, run_fails, run_ok,
};
use serde_json::{Value, json};

/// The tiny model's BOS.
const BOS: u32 = 256;

/// Files of a store that say with which command it was written; the manifest has their checksums.
fn says_the_command(name: &String) -> bool {
    name == "zarr.json" || name == "manifest"
}

#[test]
fn several_hooks_in_one_pass_write_the_stores_of_single_dumps() {
    let setting = Setting::new(400);
    let hooks = [
        "blocks.0.hook_attn_out",
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_mid",
    ];
    let memory = ["--shuffle-memory", "256KiB"];
    let summary = setting.dump("all", 300, &[&["--hook", &hooks.join(",")], &memory[..]].concat());
    assert_eq!(summary["stores"].as_array().unwrap().len(), hooks.len());
    for hook in hooks {
        setting.dump(hook, 300, &[&["--hook", hook], &memory[..]].concat());
        let mut differing = differing_files(&setting.at(hook), &setting.at("all").join(hook));
        differing.retain(|name| !says_the_command(name));
        assert!(differing.is_empty(), "{hook}: {differing:?} differ");
        let specification = |path: &Path| {
            let mut spec = Store::open(path).unwrap().spec().clone();
            spec.provenance.command_line.clear();
            spec
        };
        assert_eq!(specification(&setting.at(hook)), specification(&setting.at("all").join(hook)));
    }
}

#[test]
fn a_store_is_begun_and_continued_with_the_same_products() {
    let setting = Setting::new(400);
    let dump = |store: &str, more: &[&str]| {
        let more = [&["--batch", "3", "--shuffle-memory", "64KiB"], more].concat();
        let output = setting.command(store, 1000, &more).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for (store, more) in [("exact", &["--exact-products"][..]), ("default", &[])] {
        let (done, says) = dump(store, more);
        assert!(done, "{says}");
    }
    let extra = |store: &str| Store::open(&setting.at(store)).unwrap().spec().provenance.extra.clone();
    assert_eq!(extra("exact").get("products"), None);
    // Where there are no matrix units, the flag changes nothing.
    let units = extra("default").get("products").cloned();
    let differing = differing_files(&setting.at("exact"), &setting.at("default"));
    match units {
        Some(kind) => {
            assert_eq!(kind, json!("bfloat16x3"));
            for (store, more) in [("default", &["--exact-products"][..]), ("exact", &[])] {
                let (done, says) = dump(store, more);
                assert!(
                    !done && says.contains("extra.products") && says.contains("--exact-products is"),
                    "{says}"
                );
            }
        }
        None => assert!(differing.iter().all(says_the_command), "{differing:?} differ"),
    }
}

#[test]
fn interrupted_dumps_of_several_hooks_end_with_the_same_bytes() {
    let setting = Setting::new(400);
    let command = || {
        let more =
            ["--layer", "0,1", "--hook", "resid_pre,mlp_out", "--batch", "3", "--shuffle-memory", "128KiB"];
        let mut command = setting.command("stores", 3000, &more);
        command.stdout(Stdio::null());
        command
    };
    assert!(command().status().unwrap().success());
    std::fs::rename(setting.at("stores"), setting.at("whole")).unwrap();
    let times = interrupted(command, 30, 60);
    assert!(command().status().unwrap().success());
    assert!(times >= 2, "the dump ran through before it could be interrupted");
    let differing = differing_files(&setting.at("whole"), &setting.at("stores"));
    assert!(differing.is_empty(), "{differing:?} differ after {times} interruptions");
}

#[test]
fn stores_that_are_differently_far_go_on_together() {
    let setting = Setting::new(400);
    let more = ["--hook", "blocks.0.hook_mlp_out,blocks.1.hook_resid_pre", "--shuffle-memory", "128KiB"];
    setting.dump("whole", 1500, &more);
    std::fs::create_dir(setting.at("stores")).unwrap();
    // One is complete, the other was never begun.
    let [first, second] = ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"];
    setting.dump("alone", 1500, &["--hook", first, "--shuffle-memory", "128KiB"]);
    std::fs::rename(setting.at("alone"), setting.at("stores").join(first)).unwrap();
    setting.dump("stores", 1500, &more);
    for hook in [first, second] {
        let mut differing =
            differing_files(&setting.at("whole").join(hook), &setting.at("stores").join(hook));
        differing.retain(|name| !says_the_command(name));
        assert!(differing.is_empty(), "{hook}: {differing:?} differ");
    }
}

#[test]
fn the_parts_of_a_text_are_disjoint_and_together_the_whole() {
    let setting = Setting::new(400);
    setting.dump("whole", 501, &[]);
    let whole = setting.rows("whole");
    assert_eq!(whole.len(), 501 * LENGTH);
    let mut together = Vec::new();
    for part in ["1/3", "2/3", "3/3"] {
        let threads = if part == "2/3" { "1" } else { "2" };
        let summary = setting.dump("parts", 501, &["--part", part, "--threads", threads]);
        assert_eq!(summary["part"], part);
        let name = format!("parts-part-{}-of-3", &part[..1]);
        let extra = &setting.store(&name).provenance().extra.clone();
        assert_eq!(extra["part"], part);
        let (first, stride) =
            (extra["first_context"].as_u64().unwrap_or(0), extra["context_stride"].as_u64().unwrap());
        together.extend(setting.rows(&name).into_iter().map(|(origin, row)| {
            let (context, position) = (origin / LENGTH as u64, origin % LENGTH as u64);
            ((first + stride * context) * LENGTH as u64 + position, row)
        }));
    }
    together.sort_by_key(|(origin, _)| *origin);
    assert!(together == whole, "the parts' rows are those of the whole, to the bit");

    let stores = [1, 2, 3].map(|part| setting.path(&format!("parts-part-{part}-of-3")));
    let mut train: Vec<&str> = stores.iter().flat_map(|store| ["--store", store.as_str()]).collect();
    let run = setting.path("run");
    train.extend(["--loss", "l1", "--features", "64", "--batch", "128", "--steps", "20", "--out", &run]);
    run_ok("sae-trainer", train);
}

#[test]
fn launchers_deal_the_parts_unless_the_flag_says_otherwise() {
    let setting = Setting::new(400);
    let run = |out: &str, more: &[&str]| -> (Value, String) {
        let mut command = setting.command(out, 100, more);
        let run: Run = command.env("SLURM_PROCID", "1").env("SLURM_NTASKS", "4").output().unwrap().into();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        (serde_json::from_str(&run.stdout).unwrap(), run.stderr)
    };
    let (summary, said) = run("a", &[]);
    assert_eq!((summary["part"].as_str(), summary["contexts"].as_u64()), (Some("2/4"), Some(25)));
    assert!(said.contains("SLURM_PROCID") && said.contains("--part off"), "{said}");
    assert!(setting.at("a-part-2-of-4").is_dir());
    assert_eq!(run("b", &["--part", "1/2"]).0["contexts"], 50);
    let (summary, _) = run("c", &["--part", "off"]);
    assert_eq!((&summary["part"], summary["contexts"].as_u64()), (&Value::Null, Some(100)));
}

#[test]
fn tokens_can_be_skipped() {
    let setting = Setting::new(400);
    setting.dump("whole", 300, &[]);
    setting.dump("later", 100, &["--skip-tokens", "3190"]); // of the 200th context, 10 tokens are left out
    let whole = setting.rows("whole");
    let moved: Vec<_> =
        setting.rows("later").into_iter().map(|(origin, row)| (origin + 200 * LENGTH as u64, row)).collect();
    assert!(moved == whole[200 * LENGTH..]);
    assert_eq!(setting.store("later").provenance().extra["first_context"], 200);
}

/// Feeds `input` to a dump's standard input.
fn feed(mut command: Command, input: &[u8]) -> Run {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A dump that has enough closes the pipe.
    let feeding = std::thread::spawn(move || drop(pipe.write_all(&input)));
    let run = Run::from(child.wait_with_output().unwrap());
    feeding.join().unwrap();
    run
}

#[test]
fn standard_input_is_read_like_a_file() {
    let setting = Setting::new(400);
    let lines = std::fs::read(setting.at("text.jsonl")).unwrap();
    setting.dump("file", 200, &[]);
    let run = feed(setting.command("stdin", 200, &["--dataset", "-"]), &lines);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(setting.rows("file") == setting.rows("stdin"));

    let text = setting.texts().join("\n");
    std::fs::write(setting.at("text.txt"), &text).unwrap();
    setting.dump("text", 200, &["--dataset", &setting.path("text.txt")]);
    let run = feed(setting.command("stdin-text", 200, &["--dataset", "-"]), text.as_bytes());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(setting.rows("text") == setting.rows("stdin-text"));
    assert!(setting.rows("text") != setting.rows("file"));
}

#[test]
fn a_dump_does_not_go_on_with_another_text() {
    let setting = Setting::new(400);
    let lines = std::fs::read_to_string(setting.at("text.jsonl")).unwrap();
    let command =
        || setting.command("store", 4000, &["--dataset", "-", "--shuffle-memory", "64KiB", "--batch", "4"]);
    // A first run that ends halfway, at an empty document.
    let half = lines.len() / 2;
    let half = half + lines[half..].find('\n').unwrap() + 1;
    let broken = format!("{}{}", &lines[..half], "{\"text\": \"\"}\n");
    let mut strict = command();
    strict.arg("--strict");
    let run = feed(strict, broken.as_bytes());
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("standard input line") && run.stderr.contains("empty"), "{}", run.stderr);

    let other: String =
        setting.texts().iter().rev().map(|text| json!({"text": text}).to_string() + "\n").collect();
    let run = feed(command(), other.as_bytes());
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("not the text"), "{}", run.stderr);
    let run = feed(command(), &lines.as_bytes()[..half / 8]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("not the text"), "{}", run.stderr);

    let run = feed(command(), lines.as_bytes());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    setting.dump("whole", 4000, &["--batch", "4"]);
    assert!(setting.rows("store") == setting.rows("whole"));
}

/// A NumPy file of int64, by its specification.
fn npy(shape: &str, tokens: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16 + 1).to_le_bytes());
    file.extend(header.as_bytes());
    file.push(b'\n');
    file.extend(tokens.into_iter().flat_map(|token| i64::from(token).to_le_bytes()));
    file
}

#[test]
fn files_of_tokens_give_the_rows_of_the_text() {
    let setting = Setting::new(400);
    setting.dump("text", 500, &[]);
    let rows = setting.rows("text");
    // The tiny tokenizer's ids are the bytes.
    let stream: Vec<u32> = setting
        .texts()
        .iter()
        .flat_map(|text| std::iter::once(BOS).chain(text.bytes().map(u32::from)))
        .collect();
    let store = setting.store("text");
    let contexts = store.context_tokens(0..500).unwrap();
    let u16s = stream.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect();
    let u32s = stream.iter().flat_map(|&token| token.to_le_bytes()).collect();
    let files: [(&str, Vec<u8>, &[&str]); 4] = [
        ("flat16.bin", u16s, &[]),
        ("flat32.bin", u32s, &["--format", "u32"]),
        ("flat.npy", npy(&format!("({},)", stream.len()), stream.iter().copied()), &[]),
        ("ready.npy", npy("(500, 16)", contexts.iter().copied()), &[]),
    ];
    for (name, bytes, more) in files {
        std::fs::write(setting.at(name), bytes).unwrap();
        let file = setting.path(name);
        let out = format!("store-{name}");
        setting.dump(&out, 500, &[&["--dataset", &file], more].concat());
        assert!(setting.rows(&out) == rows, "{name}");
    }

    // No tokenizer is needed then.
    std::fs::remove_file(setting.at("model/tokenizer.json")).unwrap();
    setting.dump("alone", 500, &["--dataset", &setting.path("flat16.bin")]);
    assert!(setting.rows("alone") == rows);
    std::fs::write(setting.at("other.bin"), [7_u16, 256, 257, 3].map(u16::to_le_bytes).concat()).unwrap();
    let other = setting.path("other.bin");
    setting.dump_fails("x", 1, &["--dataset", &other], &["other.bin", "token 2 is 257", "257 tokens"]);
    assert!(!setting.at("x").join("activations").exists());
}

#[test]
fn documents_that_cannot_be_read_are_counted_and_named() {
    let setting = Setting::new(400);
    let good = setting.texts();
    let line = |text: &str| json!({ "text": text }).to_string().into_bytes();
    let mut lines: Vec<Vec<u8>> = good.iter().map(|text| line(text)).collect();
    lines.insert(3, b"{\"text\": \"cut off".to_vec());
    lines.insert(7, line(""));
    lines.insert(8, b"{\"text\": \"\xff\xfe\"}".to_vec());
    lines.insert(9, b"{\"body\": \"elsewhere\"}".to_vec());
    for _ in 0..5 {
        lines.insert(20, line(""));
    }
    std::fs::write(setting.at("damaged.jsonl"), lines.join(&b'\n')).unwrap();
    setting.dump("sound", 1000, &[]);
    let damaged = setting.path("damaged.jsonl");
    let one = setting.dump("one", 1000, &["--dataset", &damaged, "--threads", "1"]);
    let two = setting.dump("two", 1000, &["--dataset", &damaged, "--threads", "2", "--batch", "5"]);
    assert!(setting.rows("sound") == setting.rows("one"), "the others are what they are without these");
    assert_eq!(one["text"], two["text"], "counts do not depend on threads");
    let skipped = &one["text"]["skipped"];
    assert_eq!(one["text"]["skipped_documents"], 9);
    for (kind, documents, place) in [
        ("not JSON", 1, "damaged.jsonl line 4"),
        ("empty", 6, "damaged.jsonl line 8"),
        ("not UTF-8", 1, "damaged.jsonl line 9"),
        ("without text", 1, "damaged.jsonl line 10"),
    ] {
        assert_eq!(skipped[kind]["documents"], documents, "{skipped}");
        assert!(skipped[kind]["first"][0].as_str().unwrap().contains(place), "{skipped}");
    }
    assert_eq!(skipped["empty"]["first"].as_array().unwrap().len(), 3);
    setting.dump_fails(
        "s",
        1000,
        &["--dataset", &damaged, "--strict"],
        &["damaged.jsonl line 4", "--strict"],
    );
}

#[test]
fn damaged_pages_of_parquet_are_counted_and_the_rest_is_read() {
    let setting = Setting::new(400);
    let mut bytes =
        std::fs::read(end_to_end::repository().join("tests/data/public-domain-english.parquet")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xAA);
    std::fs::write(setting.at("a.parquet"), &bytes).unwrap();
    std::fs::write(setting.at("b.parquet"), &bytes[..middle]).unwrap();
    std::fs::write(setting.at("c.txt"), [b"whole ".repeat(400), b"\xff".to_vec()].concat()).unwrap();
    let folder = setting.at("mixed");
    std::fs::create_dir(&folder).unwrap();
    for name in ["a.parquet", "b.parquet", "c.txt", "text.jsonl"] {
        std::fs::rename(setting.at(name), folder.join(name)).unwrap();
    }
    let mixed = setting.path("mixed");
    let summary = setting.dump("store", 1 << 20, &["--dataset", &mixed, "--dtype", "f16", "--layer", "0"]);
    let text = &summary["text"];
    let lost = text["skipped"]["in unreadable pages"]["documents"].as_u64().unwrap();
    assert!(lost > 0);
    assert_eq!(text["skipped"]["unreadable files or ends of files"]["documents"], 1, "{text}");
    assert_eq!(text["skipped"]["not UTF-8"]["documents"], 1, "{text}");
    assert_eq!(text["documents"].as_u64().unwrap() + lost, 2342 + 400, "{text}");
    setting.dump_fails("s", 1 << 20, &["--dataset", &mixed, "--strict"], &["a.parquet row", "--strict"]);
}

#[test]
fn a_dry_run_says_what_it_would_take_and_writes_nothing() {
    let setting = Setting::new(400);
    let before = files_below(&setting.at(""));
    let more = ["--dry-run", "--hook", "blocks.0.hook_mlp_out,blocks.1.hook_resid_pre", "--part", "1/2"];
    let plan = setting.dump("a/b/store", 2000, &more);
    assert_eq!(files_below(&setting.at("")), before);
    assert!(!setting.at("a").exists());
    assert_eq!((plan["contexts"].as_u64(), plan["tokens"].as_u64()), (Some(1000), Some(16_000)));
    assert_eq!(plan["stores"].as_array().unwrap().len(), 2);
    let raw = plan["stores"][0]["raw_bytes"].as_u64().unwrap();
    assert_eq!(raw, 16_000 * 32 * 4);
    let disk = plan["disk_bytes"].as_u64().unwrap();
    assert!(disk > raw && disk < 3 * raw, "{plan}");
    for figure in ["seconds", "model_tokens_per_second", "memory_bytes"] {
        assert!(plan[figure].as_f64().unwrap() > 0.0, "{figure}: {plan}");
    }

    let run: Run = setting.command("store", 10_000, &["--dry-run"]).output().unwrap().into();
    assert!(run.stderr.contains("nothing was written") && run.stderr.contains("tokens/s"), "{}", run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(plan["text_contexts"].as_u64().is_none_or(|contexts| contexts > 1000), "{plan}");
}

#[test]
fn an_onnx_file_gives_the_rows_of_the_model_it_was_made_from() {
    let setting = Setting::new(400);
    let (model, hook, onnx) =
        (setting.path("model"), "blocks.1.hook_resid_pre", setting.path("model/graph.onnx"));
    run_ok("examples/prefix_graph", [&model, hook, &onnx]);
    // The products of a graph that is not ours are ONNX Runtime's own.
    setting.dump("model-rows", 100, &["--hook", hook, "--center", "off", "--exact-products"]);
    let more = ["--onnx", &onnx, "--tensor", "hook_0"];
    setting.dump("onnx-rows", 100, &more);
    assert!(setting.rows("model-rows") == setting.rows("onnx-rows"));
    let store = setting.store("onnx-rows");
    let provenance = store.provenance();
    assert_eq!((provenance.hook.as_str(), provenance.centered), ("hook_0", false));
    assert_eq!(provenance.model, onnx);
    setting.dump_fails("x", 100, &["--onnx", &onnx, "--tensor", "hook_1"], &["hook_1", "hook_0"]);
    run_fails("activation-dump", ["--onnx", &onnx], &["--tensor"]);
}

#[test]
fn a_device_is_held_against_the_cpu_where_that_is_asked_for() {
    let setting = Setting::new(400);
    let summary = setting.dump("checked", 100, &["--self-check", "on"]);
    assert!(
        summary["self_check"]["difference"].as_f64().unwrap()
            <= summary["self_check"]["tolerance"].as_f64().unwrap()
    );
    assert_eq!(
        setting.dump("plain", 100, &[])["self_check"],
        Value::Null,
        "on the CPU there is nothing to check"
    );
    assert!(setting.rows("checked") == setting.rows("plain"));
}

/// tests/peers/nasty_texts.py made the ids.
#[test]
fn nasty_texts_have_the_ids_that_hugging_faces_tokenizers_give() {
    let setting = Setting::new(400);
    let model = end_to_end::repository().join("models/smollm2-135m");
    assert!(model.is_dir(), "there is no {}: run scripts/fetch-smollm2", model.display());
    let golden = end_to_end::repository().join("tests/golden/nasty-texts.jsonl");
    let mut expected: Vec<u32> = Vec::new();
    let bos = 1;
    for line in std::fs::read_to_string(&golden).unwrap().lines() {
        let document: Value = serde_json::from_str(line).unwrap();
        let ids = document["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        expected.push(bos);
        expected.extend(ids);
    }
    let (model, golden, out) =
        (model.display().to_string(), golden.display().to_string(), setting.path("store"));
    let words = ["--model", &model, "--dataset", &golden, "--out", &out, "--layer", "0", "--context", "64"];
    // More than there are, but not so many that the disk could not hold them.
    let more = (2 * expected.len()).to_string();
    run_ok("activation-dump", words.into_iter().chain(["--tokens", &more, "--device", "cpu"]));
    let store = setting.store("store");
    let tokens = store.context_tokens(0..store.contexts()).unwrap();
    // Without the BOS tokens, which packing adds, the contexts are the documents one after another.
    let tokens: Vec<u32> = tokens.into_iter().filter(|&token| token != bos).collect();
    let expected: Vec<u32> = expected.into_iter().filter(|&token| token != bos).collect();
    assert!(tokens.len() + 64 > expected.len());
    assert_eq!(tokens, expected[..tokens.len()]);
}

#[test]
fn signals_end_a_dump_with_the_codes_that_shells_know() {
    let setting = Setting::new(400);
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        // More text than there is time for: it waits for standard input, which stays open.
        let mut command = hearing_hangups(setting.command("store", 1000, &["--dataset", "-"]));
        let mut child =
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&std::fs::read(setting.at("text.jsonl")).unwrap()[..1000]).unwrap();
        // What it prints before it reads tells that it listens.
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("store ") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "it ended early");
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        drop(input);
    }
}

#[test]
fn a_damaged_shard_of_an_interrupted_dump_is_rewritten() {
    let setting = Setting::new(400);
    let command = || {
        let mut command = setting.command("store", 3000, &["--batch", "3", "--shuffle-memory", "128KiB"]);
        command.stdout(Stdio::null());
        command
    };
    assert!(command().status().unwrap().success());
    std::fs::rename(setting.at("store"), setting.at("whole")).unwrap();
    let child = command().stderr(Stdio::null()).spawn().unwrap();
    let shards = setting.at("store/activations/c");
    while std::fs::read_dir(&shards).map_or(0, Iterator::count) < 6 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-KILL", &child.id().to_string()]).status().unwrap();
    child.wait_with_output().unwrap();
    assert!(
        Store::open(&setting.at("store")).is_err(),
        "the dump ran through before it could be interrupted"
    );
    let shard = shards.join("2/0");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[30] ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    let run: Run = command().output().unwrap().into();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("activations/c/2/0: its crc32c"), "{}", run.stderr);
    let differing = differing_files(&setting.at("whole"), &setting.at("store"));
    assert!(differing.is_empty(), "{differing:?} differ");
}

#[test]
fn a_long_text_takes_little_memory_and_packs_like_documents() {
    let setting = Setting::new(400);
    let line: String = setting.texts().concat().repeat(300);
    assert!(line.len() > 20 << 20, "longer than what is in memory of a text at once");
    std::fs::write(setting.at("long.txt"), &line).unwrap();
    let long = setting.path("long.txt");
    let summary = setting.dump("long", 500, &["--dataset", &long]);
    let peak = summary["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak < 600 << 20, "{peak} bytes");
    // The first contexts are those of a short text.
    std::fs::write(setting.at("short.txt"), &line[..20_000]).unwrap();
    let short = setting.path("short.txt");
    setting.dump("short", 500, &["--dataset", &short]);
    assert!(setting.rows("long") == setting.rows("short"));
}

#[test]
fn a_line_that_is_too_long_is_counted_and_the_next_one_read() {
    let setting = Setting::new(400);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"{\"text\": \"").unwrap();
    for _ in 0..300 {
        encoder.write_all(&vec![b'a'; 1 << 20]).unwrap();
    }
    encoder.write_all(b"\"}\n").unwrap();
    encoder.write_all(&std::fs::read(setting.at("text.jsonl")).unwrap()).unwrap();
    std::fs::write(setting.at("bomb.jsonl.gz"), encoder.finish().unwrap()).unwrap();
    let bomb = setting.path("bomb.jsonl.gz");
    let summary = setting.dump("store", 500, &["--dataset", &bomb]);
    assert_eq!(summary["text"]["skipped"]["too long"]["documents"], 1);
    assert_eq!(summary["contexts"], 500);
    assert!(summary["peak_memory_bytes"].as_u64().unwrap() < 900 << 20);
    setting.dump_fails("strict", 500, &["--dataset", &bomb, "--strict"], &["line 1", "268435456 are read"]);
}
