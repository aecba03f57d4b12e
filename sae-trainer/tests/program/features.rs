//! `sae-trainer features`: the activation index, and what it tells of features.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use activation_store::{Layout, Provenance, RowType, Store, StoreSpec, StoreWriter, WriterOptions};
use half::f16;
use ndarray::{Array2, Array3, Axis};
use sae::{Config, Metadata, Sae, Weights};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::faults::{compile_library, count_of, with_faults};
use crate::fixture::{
    CONTEXT, Place, WIDTH, copy, mixtures, signal, start, text, wait_for, write_hook_store, write_store,
};

const RUN: &str = "--store store --features 64 --batch 128 --lr 3e-3 --steps 60";
const HOOK: &str = "blocks.1.hook_resid_pre";

/// Activations by feature, context and position, as an index has them, and its tokens.
type Activations = BTreeMap<(u32, u32, u32), f16>;

fn numbers(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).unwrap();
    let size = tensor.dtype().bitsize() / 8;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    tensor.data().chunks_exact(size).map(number).collect()
}

/// Reads an index of a hook as delphi's `TensorBuffer.load` does: by the names of the files.
fn read(index: &Path, hook: &str) -> (Activations, Vec<u32>) {
    let (mut found, mut tokens) = (Activations::new(), Vec::new());
    let folder = index.join("latents").join(hook);
    assert!(folder.join("config.json").exists());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let first: u32 =
                path.file_stem().unwrap().to_str().unwrap().split_once('_').unwrap().0.parse().unwrap();
            let bytes = fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let activations = numbers(&file, "activations");
            for (at, bits) in numbers(&file, "locations").chunks_exact(3).zip(activations) {
                let before = found.insert((first + at[2], at[0], at[1]), f16::from_bits(bits as u16));
                assert!(before.is_none(), "a place is there once");
            }
            tokens = numbers(&file, "tokens");
        }
    }
    (found, tokens)
}

/// What the plain definition makes of the rows of a store that are in its first `contexts` contexts.
fn defined(sae: &Path, store: &Path, contexts: u64) -> Activations {
    let (sae, store) = (Sae::load(sae).unwrap(), Store::open(store).unwrap());
    let length = store.context_length() as u64;
    let (rows, origins) = (store.read_rows(0..store.rows()).unwrap(), store.origin(0..store.rows()).unwrap());
    let mut found = Activations::new();
    for (row, origin) in sae.encode(rows.view()).axis_iter(Axis(0)).zip(origins) {
        for (feature, a) in row.iter().enumerate().filter(|(_, a)| **a > 0.0 && origin / length < contexts) {
            found.insert(
                (feature as u32, (origin / length) as u32, (origin % length) as u32),
                f16::from_f32(*a),
            );
        }
    }
    found
}

/// Two tables that hold the same, but for the rounding of sums.
fn assert_same(found: &Activations, expected: &Activations, what: &str) {
    assert!(expected.len() > 1000, "{what}: the comparison is about something");
    for (key, a) in found.iter().chain(expected) {
        let of = |table: &Activations| table.get(key).map_or(0.0, |a| a.to_f32());
        let (ours, theirs) = (of(found), of(expected));
        assert!((ours - theirs).abs() <= 1e-3 * a.to_f32() + 2e-5, "{what}: {key:?} is {ours}, not {theirs}");
    }
}

#[test]
fn every_activation_is_that_of_the_plain_definition() {
    let place = Place::new();
    for (run, kind) in [
        ("relu", "--pre-bias"),
        ("topk", "--activation topk --k 5"),
        ("jump-relu", "--activation jump-relu --bandwidth 0.5"),
        ("row-norm", "--input-scale row-norm"),
        ("mean-norm", "--input-scale mean-norm"),
    ] {
        place.run(&format!("{RUN} {kind} --out {run}"));
        place.run(&format!("features {run} --store store"));
        let (found, tokens) = read(&place.path(run).join("sae/features"), HOOK);
        assert_same(&found, &defined(&place.path(run).join("sae"), &place.path("store"), u64::MAX), run);
        assert_eq!(tokens, (0..512 * CONTEXT as u32).map(|place| place % CONTEXT as u32).collect::<Vec<_>>());
    }
}

#[test]
fn a_transcoder_has_its_features_where_it_reads() {
    let place = Place::new();
    for (name, hook, seed) in [("in", "blocks.1.hook_mlp_in", 1), ("out", "blocks.1.hook_mlp_out", 2)] {
        write_hook_store(&place.path(name), hook, WIDTH, &mixtures(512, seed), RowType::F32);
    }
    place.run("--store in --target out --features 64 --batch 128 --lr 3e-3 --steps 60 --out run");
    let told = text(&place.run("features run --store out --out other").stderr);
    assert!(told.contains("was trained at blocks.1.hook_mlp_in"), "{told}");
    place.run("features run --store in");
    let sae = place.path("run/sae");
    let (found, _) = read(&sae.join("features"), "blocks.1.hook_mlp_in");
    assert_same(&found, &defined(&sae, &place.path("in"), u64::MAX), "transcoder");
}

/// A store whose rows of BOS are missing, so that contexts span its windows.
fn write_store_without_bos(path: &Path) {
    let spec = StoreSpec {
        row_type: RowType::F32,
        drop_bos: true,
        layout: Layout { window_rows: 1024, shard_rows: 512, chunk_rows: 128, zstd_level: 1 },
        provenance: Provenance { hook: HOOK.into(), ..Provenance::default() },
        ..StoreSpec::new(WIDTH, CONTEXT, 300)
    };
    let mut writer = StoreWriter::open(path, &spec, &WriterOptions::default()).unwrap();
    let tokens =
        Array2::from_shape_fn((300, CONTEXT), |(context, position)| (position * (context + 1)) as u32);
    let rows = Array3::from_shape_vec((300, CONTEXT, WIDTH), mixtures(300, 2)).unwrap();
    writer.append(tokens.view(), rows.view()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn the_first_contexts_are_whole_across_windows() {
    let place = Place::new();
    place.run(&format!("{RUN} --out run"));
    write_store_without_bos(&place.path("other"));
    // 147 contexts end in the second window, which begins within the last of them.
    let printed = place.run("features run --store other --tokens 1170 --out index --json").stdout;
    let record: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!((&record["contexts"], &record["rows"]), (&json!(147), &json!(147 * 7)));
    assert_eq!(record["rows_by_position"], json!([0, 147, 147, 147, 147, 147, 147, 147]));
    assert_same(
        &read(&place.path("index"), HOOK).0,
        &defined(&place.path("run/sae"), &place.path("other"), 147),
        "some",
    );
    let left = place.run("features run --store other --out fewer --drop-tokens 1,2,3 --json").stdout;
    let left: Value = serde_json::from_slice(&left).unwrap();
    // Tokens position · (context + 1): 1, 2 and 3 occur five times, in the first three contexts.
    assert_eq!(left["rows"], json!(300 * 7 - 5));
}

/// An autoencoder of five features, and rows in which only they vary: one that follows the position, one that never fires, two
/// alike, and one that always fires.
fn plant(place: &Place) {
    let contexts = 64;
    let mut rows = mixtures(contexts, 3);
    for (at, row) in rows.chunks_exact_mut(WIDTH).enumerate() {
        row[0] = if at % CONTEXT == 3 { 4.0 + (at / CONTEXT % 2) as f32 / 8.0 } else { 0.0 };
        row[1] = if at % 10 == 0 { 1.0 + (at % 7) as f32 } else { 0.0 };
    }
    write_store(&place.path("planted"), WIDTH, &rows, RowType::F32);
    let mut weights = Weights::init(WIDTH, 5, 0);
    weights.w_enc.fill(0.0);
    weights.w_enc[[0, 0]] = 1.0;
    weights.w_enc[[1, 2]] = 1.0;
    weights.w_enc[[1, 3]] = 1.0;
    weights.b_enc[1] = -1.0;
    weights.b_enc[4] = 0.5;
    let twin = weights.w_dec.row(2).to_owned();
    weights.w_dec.row_mut(3).assign(&twin);
    let config = Config::standard(WIDTH, 5, false, Metadata::default());
    Sae { weights, config, log_sparsity: None }.save(&place.path("sae")).unwrap();
}

fn listed(place: &Place, kind: &str) -> Vec<u64> {
    let printed = place.run(&format!("features sae --list {kind} --json")).stdout;
    let listed: Vec<Value> = serde_json::from_slice(&printed).unwrap();
    listed.iter().map(|of| of["feature"].as_u64().unwrap()).collect()
}

#[test]
fn planted_features_are_found_for_what_they_are() {
    let place = Place::new();
    plant(&place);
    let counted = text(&place.run("features sae --store planted").stdout);
    assert!(counted.contains("512") && !counted.contains("punctuation"), "{counted}");
    for (kind, expected) in [
        ("positional", vec![0]),
        ("dead", vec![1]),
        ("twin", vec![2, 3]),
        // Every tenth row of 512 is 52 of them, the first too; every eighth is at the position.
        ("dense", vec![4, 0, 2, 3]),
        ("very-dense", vec![4]),
        ("all", vec![0, 1, 2, 3, 4]),
    ] {
        assert_eq!(listed(&place, kind), expected, "{kind}");
    }
    let printed = place.run("features sae --id 3 --json").stdout;
    let of: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!((&of["firings"], &of["maximum"]), (&json!(52), &json!(7.0)));
    assert_eq!(of["cofiring"][0], json!({ "feature": 2, "both": 52, "jaccard": 1.0 }));
    assert_eq!(of["neighbours"][0]["feature"], json!(2));
    assert_eq!(of["top"].as_array().unwrap().len(), 20);
    let highest = &of["top"][0];
    // The first row with 10 | row and row mod 7 = 6 is 20: context 2, position 4.
    assert_eq!((&highest["context"], &highest["position"]), (&json!(2), &json!(4)));
    assert_eq!(
        (&highest["tokens"], &highest["activations"][4]),
        (&json!([0, 1, 2, 3, 4, 5, 6, 7]), &json!(7.0))
    );

    let shown = text(&place.run("features sae --id 0").stdout);
    assert!(shown.contains("positional") && shown.contains("token 3 100 %"), "{shown}");
    assert!(shown.contains("«3» ") && !shown.contains('\u{1b}'), "{shown}");
    let dead = text(&place.run("features sae --id 1").stdout);
    assert!(dead.contains("dead") && !dead.contains("largest activations"), "{dead}");
}

#[test]
fn what_cannot_be_done_is_refused_with_what_to_do() {
    let place = Place::new();
    place.run(&format!("{RUN} --out run"));
    write_store(&place.path("narrow"), 12, &mixtures(96, 1), RowType::F32);
    copy(&place.path("store"), &place.path("unfinished"));
    let group = place.path("unfinished/zarr.json");
    let changed = fs::read_to_string(&group).unwrap().replace("\"complete\":true", "\"complete\":false");
    fs::write(&group, changed.replace("\"complete\": true", "\"complete\": false")).unwrap();
    for (line, words) in [
        ("features run", "sae-trainer features run --store STORE makes it"),
        ("features nothing --store store", "cannot read nothing"),
        ("features run --store nothing", "nothing"),
        ("features run --store narrow", "have 12 numbers"),
        ("features run --store unfinished", "unfinished"),
        ("features run --store store --drop-tokens 0,1,2,3,4,5,6,7", "leave out fewer tokens"),
    ] {
        let told = place.fail(line);
        assert!(told.contains(words), "{line}: {told}");
        assert!(!place.path("run/sae/features").exists(), "{line}");
    }
    place.run("features run --store store");
    let before = place.files("run/sae/features");
    for (line, words) in [
        ("features run --store store", "remove it to make the index anew"),
        ("features run --id 64", "there is no feature 64: the autoencoder has 64"),
        ("features run --list punctuation", "--tokenizer"),
    ] {
        let told = place.fail(line);
        assert!(told.contains(words), "{line}: {told}");
    }
    assert_eq!(place.files("run/sae/features"), before);
    // An index of other weights.
    place.run(&format!("{RUN} --seed 1 --out other"));
    let told = place.fail("features other --out run/sae/features --id 1");
    assert!(told.contains("remove it and make it again"), "{told}");
    // One that has changed.
    fs::write(place.path("run/sae/features/features.jsonl"), "{}\n").unwrap();
    assert!(place.fail("features run --list dense").contains("damaged"), "a changed index");
}

#[test]
fn a_disk_without_room_leaves_no_half_an_index() {
    let place = Place::new();
    plant(&place);
    compile_library(&place);
    let line = "features sae --store planted --threads 1";
    for call in ["write", "mkdir", "fsync"] {
        let count = count_of(&place, call, line);
        fs::remove_dir_all(place.path("sae/features")).unwrap();
        for at in 1..=count {
            let output = with_faults(&place, line, &[("FAULT_CALL", call), ("FAULT_AT", &at.to_string())]);
            let told = text(&output.stderr);
            if output.status.success() {
                // The thread pool's own files, or a folder that was flushed after it had its name.
                fs::remove_dir_all(place.path("sae/features")).unwrap();
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{call} {at}: {told}");
            assert!(told.contains("No space left on device"), "{call} {at}: {told}");
            let whole = place.path("sae/features/index.json").exists();
            assert!(whole || !place.path("sae/features").exists(), "{call} {at}");
            assert!(!place.path("sae/.features.unfinished").exists(), "{call} {at}");
            if whole {
                fs::remove_dir_all(place.path("sae/features")).unwrap();
            }
        }
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let place = Place::new();
    // Half of the features fire at every token: seconds of writing, and a few hundred MB of disk at most.
    write_store(&place.path("large"), WIDTH, &mixtures(10_000, 1), RowType::F16);
    let config = Config::standard(WIDTH, 512, false, Metadata::default());
    let sae = Sae { weights: Weights::init(WIDTH, 512, 0), config, log_sparsity: None };
    sae.save(&place.path("sae")).unwrap();
    let mut child = start(&place, "features sae --store large --threads 1");
    let unfinished = place.path("sae/.features.unfinished/content/spill/0");
    wait_for(&mut child, "the first rows", || unfinished.exists());
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nothing was kept"), "{}", text(&output.stderr));
    let left: Vec<_> = place.files("sae").into_iter().map(|(path, _)| path).collect();
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("features")), "{left:?}");
}
