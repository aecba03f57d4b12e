//! What is damaged, or cannot be stored, is named.

use std::fs;

use serde_json::json;

use crate::sources::{Place, WIDTH, brain, cache, half, npy, request, rows, single};

#[test]
fn a_number_that_cannot_be_stored_is_named_by_its_row() {
    let place = Place::new();
    for (value, words) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf"), (1e6, "65504")] {
        let mut bytes = rows(30, single);
        bytes[(17 * WIDTH + 2) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        place.write("acts.npy", npy("<f4", "(30, 6)", &bytes));
        let run = place.run(&["acts.npy", "--out", "store"]);
        let message = String::from_utf8_lossy(&run.stderr);
        assert!(message.contains("row 17 of acts.npy") && message.contains(words), "{message}");
        assert_eq!(run.status.code(), Some(1));
    }
    let store = place.import(&["acts.npy", "--dtype", "f32"]);
    assert_eq!(store.rows(), 30);
}

#[test]
fn files_that_are_cut_short_are_refused() {
    let place = Place::new();
    let whole = npy("<f2", "(30, 6)", &rows(30, half));
    for length in [0, 5, 40, 128, whole.len() - 1] {
        place.write("acts.npy", &whole[..length]);
        place.refuses(&["acts.npy"], &["acts.npy"]);
    }
    place.write("acts.npy", [&whole[..], b"x"].concat());
    place.refuses(&["acts.npy"], &["acts.npy", "damaged"]);

    let whole = request(0..5, 1);
    for length in [0, 7, 8, 60, whole.len() - 1] {
        place.write("a.safetensors", &whole[..length]);
        place.refuses(&["a.safetensors"], &["a.safetensors"]);
    }
}

#[test]
fn every_cut_of_an_arrow_stream_is_refused() {
    let place = Place::new();
    cache(&place.at("cache"), 2);
    let file = place.at("cache/data-00000.arrow");
    let whole = fs::read(&file).unwrap();
    // Without the mark of the end a stream is whole too.
    for length in (0..whole.len() - 8).step_by(61) {
        fs::write(&file, &whole[..length]).unwrap();
        place.refuses(&["cache", "--dry-run"], &["cache"]);
    }
}

#[test]
fn missing_shards_are_named() {
    let place = Place::new();
    cache(&place.at("cache"), 5);
    fs::remove_file(place.at("cache/data-00001.arrow")).unwrap();
    place.refuses(&["cache"], &["data-00001.arrow"]);

    place.write("maps/config.json", json!({ "shard_count": 3 }).to_string());
    for shard in [0, 2] {
        place.write(&format!("maps/shard_{shard}.memmap"), rows(4, brain));
        let meta = json!({ "shape": [4, WIDTH], "dtype": "bfloat16" });
        place.write(&format!("maps/shard_{shard}.meta"), meta.to_string());
    }
    place.refuses(&["maps"], &["shard_1.memmap", "incomplete"]);
    place.write("maps/shard_1.memmap", rows(3, brain));
    place.write("maps/shard_1.meta", json!({ "shape": [4, WIDTH], "dtype": "bfloat16" }).to_string());
    place.refuses(&["maps"], &["shard_1.memmap", "damaged"]);
    place.write("maps/shard_1.memmap", rows(4, brain));
    place.write("maps/shard_1.meta", json!({ "shape": [4, WIDTH], "dtype": "int8" }).to_string());
    place.refuses(&["maps"], &["int8", "bfloat16"]);
}

#[test]
fn shapes_and_types_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.write("acts.npy", npy("<f8", "(30, 6)", &[0; 30 * 6 * 8]));
    place.refuses(&["acts.npy"], &["<f8", "float32"]);
    place.write("acts.npy", npy(">f4", "(30, 6)", &rows(30, single)));
    place.refuses(&["acts.npy"], &[">f4"]);
    place.write("acts.npy", npy("<f4", "(180,)", &rows(30, single)));
    place.refuses(&["acts.npy"], &["[n, d]"]);
    place.write("acts.npy", npy("<f4", "(30, 6)", &rows(30, single)));
    place.write("tokens.npy", npy("<u4", "(29,)", &[0; 29 * 4]));
    place.refuses(&["acts.npy", "--tokens", "tokens.npy"], &["29 tokens", "30 rows"]);
    place.write("tokens.npy", npy("<i4", "(30,)", &(-1_i32).to_le_bytes().repeat(30)));
    place.refuses(&["acts.npy", "--tokens", "tokens.npy"], &["tokens.npy", "-1"]);
    place.write("other.npy", npy("<f2", "(30, 6)", &rows(30, half)));
    place.refuses(&["acts.npy", "other.npy"], &["acts.npy", "other.npy", "agree"]);
    place.write("huge.npy", npy("<f4", "(9223372036854775807, 9223372036854775807)", &[]));
    place.refuses(&["huge.npy"], &["huge.npy"]);
    place.refuses(&["nowhere"], &["nowhere"]);
    place.write("papers/thesis.txt", "years of work");
    place.refuses(&["papers"], &["papers", "--from"]);
    place.refuses(&["acts.npy", "--bos", "3"], &["--bos", "--tokens"]);
    place.refuses(&["acts.npy", "--source-layer", "0"], &["--source-layer"]);
}

#[test]
fn a_request_that_does_not_fit_the_others_is_named() {
    let place = Place::new();
    place.write("states/a.safetensors", request(0..5, 1));
    place.write("states/b.safetensors", request(0..5, 2));
    place.refuses(&["states", "--source-layer", "0"], &["b.safetensors", "agree"]);
    place.write("states/b.safetensors", request(0..0, 1));
    place.refuses(&["states"], &["b.safetensors", "no token"]);
}
