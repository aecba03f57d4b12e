//! Each format, whole.

use activation_store::{BatchStream, RowFilter, StoreError, StreamOptions};
use serde_json::{Value, json};

use crate::sources::{Place, WIDTH, brain, by_origin, cache, half, npy, request, row, rows, single, token};

#[test]
fn rows_and_tokens_of_numpy_become_a_store() {
    let place = Place::new();
    for (kind, bytes) in [("<f4", single as fn(f32) -> Vec<u8>), ("<f2", half), ("|V2", brain)] {
        place.write("acts.npy", npy(kind, "(30, 6)", &rows(30, bytes)));
        let tokens: Vec<u8> = (0..30).flat_map(|row| token(row).to_le_bytes()).collect();
        place.write("tokens.npy", npy("<u4", "(30,)", &tokens));
        let _ = std::fs::remove_dir_all(place.at("store"));
        let hook = ["--model", "m", "--hook", "blocks.7.hook_mlp_out", "--bos", "3", "--dataset", "the text"];
        let store =
            place.import(&[&["acts.npy", "--tokens", "tokens.npy", "--context", "8"], &hook[..]].concat());
        assert_eq!((store.rows(), store.contexts(), store.context_length()), (30, 4, 8));
        let found = by_origin(&store);
        assert!((0..30).all(|number| found[&(number as u64)] == row(number, 0.0)), "{kind}");
        let tokens = store.context_tokens(0..4).unwrap();
        let padding = store.spec().padding.unwrap();
        let expected = |at: usize| if at < 30 { token(at) } else { padding };
        assert!(tokens.iter().enumerate().all(|(at, &token)| token == expected(at)));
        let from = store.provenance();
        assert_eq!((from.model.as_str(), from.hook.as_str(), from.layer), ("m", "blocks.7.hook_mlp_out", 7));
        assert_eq!(
            (&from.dataset, &from.extra["imported_from"]),
            (&vec!["the text".to_owned()], &json!("npy"))
        );
        assert_eq!((store.spec().bos_token, store.spec().unknown.bos_token), (3, false));
        assert!(activation_store::verify(&place.at("store"), &|_| ()).unwrap().problems.is_empty());
    }
}

#[test]
fn several_numpy_files_with_contexts_are_one_source() {
    let place = Place::new();
    let all = rows(24, single);
    let half = all.len() / 2;
    place.write("acts/activations-00000.npy", npy("<f4", "(3, 4, 6)", &all[..half]));
    place.write("acts/activations-00001.npy", npy("<f4", "(3, 4, 6)", &all[half..]));
    let store = place.import(&["acts"]);
    assert_eq!((store.rows(), store.contexts(), store.context_length()), (24, 6, 4));
    let found = by_origin(&store);
    assert!((0..24).all(|number| found[&(number as u64)] == row(number, 0.0)));
    assert_eq!(store.spec().padding, None);
}

#[test]
fn requests_of_vllm_are_contexts_of_their_lengths() {
    let place = Place::new();
    for (name, range) in [("b", 5..16), ("a", 0..5), ("c", 16..17)] {
        place.write(&format!("states/{name}.safetensors"), request(range, 3));
        place.write(&format!("states/{name}.safetensors.lock"), "");
    }
    place.refuses(&["states"], &["3 layers", "--source-layer"]);
    place.refuses(&["states", "--source-layer", "3"], &["--source-layer 3"]);
    let store = place.import(&["states", "--source-layer", "2"]);
    assert_eq!((store.rows(), store.contexts(), store.context_length()), (17, 3, 11));
    let (found, tokens) = (by_origin(&store), store.context_tokens(0..3).unwrap());
    let mut number = 0;
    for (context, length) in [5, 11, 1].into_iter().enumerate() {
        for position in 0..length {
            assert_eq!(found[&(context as u64 * 11 + position as u64)], row(number, 2.0));
            assert_eq!(tokens[[context, position]], token(number));
            number += 1;
        }
        assert!((length..11).all(|position| Some(tokens[[context, position]]) == store.spec().padding));
    }
    assert_eq!(store.provenance().extra["source_layer"], json!(2));
}

#[test]
fn two_layers_of_one_source_are_aligned() {
    let place = Place::new();
    place.write("states/a.safetensors", request(0..5, 2));
    let [first, second] = ["0", "1"].map(|layer| {
        let run = place.run(&["states", "--source-layer", layer, "--hook", layer, "--out", layer]);
        assert!(run.status.success());
        activation_store::Store::open(&place.at(layer)).unwrap()
    });
    first.check_aligned(&second).unwrap();
}

#[test]
fn a_cache_of_sae_lens_names_its_hook() {
    let place = Place::new();
    cache(&place.at("cache"), 5);
    let store = place.import(&["cache"]);
    assert_eq!((store.rows(), store.contexts(), store.context_length()), (20, 5, 4));
    let (found, tokens) = (by_origin(&store), store.context_tokens(0..5).unwrap());
    assert!((0..20).all(|number| found[&(number as u64)] == row(number, 0.0)));
    assert!((0..20).all(|number| tokens[[number / 4, number % 4]] == token(number)));
    assert_eq!((store.provenance().hook.as_str(), store.provenance().layer), ("blocks.3.hook_resid_pre", 3));
    place.refuses_hook();
}

impl Place {
    fn refuses_hook(&self) {
        std::fs::remove_dir_all(self.at("store")).unwrap();
        self.refuses(
            &["cache", "--hook", "blocks.4.hook_resid_pre"],
            &["blocks.4", "blocks.3.hook_resid_pre"],
        );
    }
}

#[test]
fn an_activation_cache_of_memory_maps_is_read_shard_by_shard() {
    let place = Place::new();
    let all = rows(20, brain);
    place.write("cache/config.json", json!({ "shard_count": 2, "store_tokens": true }).to_string());
    for (number, (from, to)) in [(0, 12), (12, 20)].into_iter().enumerate() {
        place.write(&format!("cache/shard_{number}.memmap"), &all[from * WIDTH * 2..to * WIDTH * 2]);
        let meta = json!({ "shape": [to - from, WIDTH], "dtype": "torch.bfloat16" });
        place.write(&format!("cache/shard_{number}.meta"), meta.to_string());
    }
    let run = place.run(&["cache", "--context", "5", "--dry-run"]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("tokens.pt"));
    let store = place.import(&["cache", "--context", "5"]);
    let found = by_origin(&store);
    assert!((0..20).all(|number| found[&(number as u64)] == row(number, 0.0)));
}

#[test]
fn a_layer_of_saev_is_taken_out_of_its_shards() {
    let place = Place::new();
    let metadata = json!({
        "layers": [13, 17], "patches_per_ex": 2, "cls_token": true, "d_model": WIDTH, "dtype": "float32",
        "ckpt": "ViT-L-14", "protocol": "2.0",
    });
    place.write("shards/metadata.json", metadata.to_string());
    place.write(
        "shards/shards.json",
        json!([{ "name": "acts000000.bin", "n_ex": 3 }, { "name": "acts000001.bin", "n_ex": 1 }]).to_string(),
    );
    // Examples of two layers of three tokens: rows 0 to 5 are the first example.
    let all = rows(24, single);
    place.write("shards/acts000000.bin", &all[..18 * WIDTH * 4]);
    place.write("shards/acts000001.bin", &all[18 * WIDTH * 4..]);
    let store = place.import(&["shards", "--source-layer", "1"]);
    assert_eq!((store.rows(), store.contexts(), store.context_length()), (12, 4, 3));
    let found = by_origin(&store);
    assert!((0..12).all(|number| found[&(number as u64)] == row(number / 3 * 6 + 3 + number % 3, 0.0)));
    assert_eq!(store.provenance().model, "ViT-L-14");
}

#[test]
fn without_tokens_what_needs_them_is_refused() {
    let place = Place::new();
    place.write("acts.npy", npy("<f4", "(32, 6)", &rows(32, single)));
    let store = place.import(&["acts.npy", "--context", "4"]);
    assert!(store.spec().unknown.tokens && store.spec().unknown.bos_token);
    let stream = |rows: RowFilter| {
        BatchStream::new(vec![store.clone()], StreamOptions { rows, batch: 4, ..StreamOptions::default() })
            .map(|_| ())
    };
    stream(RowFilter::default()).unwrap();
    for filter in [
        RowFilter { drop_bos: true, ..RowFilter::default() },
        RowFilter { drop_tokens: vec![7], ..RowFilter::default() },
    ] {
        let error = stream(filter).unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    }
    assert!(matches!(store.context_tokens(0..1), Err(StoreError::Unknown { .. })));
    // The contexts are known, so some can be held out.
    let part = activation_store::Part::Training { held_out: 0.3 };
    stream(RowFilter { part, ..RowFilter::default() }).unwrap();
}

#[test]
fn the_summary_is_one_json_object() {
    let place = Place::new();
    place.write("acts.npy", npy("<f2", "(32, 6)", &rows(32, half)));
    for complete in [false, true] {
        let run = place.run(&["acts.npy", "--out", "store", "--json"]);
        let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!((&summary["rows"], &summary["format"]), (&json!(32), &json!("npy")));
        assert_eq!(summary["tokens_known"], json!(false));
        assert_eq!(String::from_utf8_lossy(&run.stderr).contains("complete already"), complete);
    }
}

#[test]
fn rows_of_bos_can_be_left_out() {
    let place = Place::new();
    place.write("acts.npy", npy("<f4", "(3, 4, 6)", &rows(12, single)));
    let tokens: Vec<u8> =
        (0..12).flat_map(|row| [if row % 4 == 0 { 9_i64 } else { 1 }.to_le_bytes()]).flatten().collect();
    place.write("tokens.npy", npy("<i8", "(3, 4)", &tokens));
    let store = place.import(&["acts.npy", "--tokens", "tokens.npy", "--bos", "9", "--drop-bos"]);
    let found = by_origin(&store);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 5, 6, 7, 9, 10, 11]);
}
