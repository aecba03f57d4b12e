//! An import that is stopped goes on where it was, and ends with the bytes of an undisturbed one.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::sources::{Place, WIDTH, files, npy, request, rows, single};

/// The least memory: a window is then 2,048 rows.
const WINDOW: [&str; 2] = ["--shuffle-memory", "8KiB"];

/// Imports the same into `whole`, and compares.
fn is_as_undisturbed(place: &Place, words: &[&str]) {
    let whole = place.run(&[words, &WINDOW, &["--out", "whole"]].concat());
    assert!(whole.status.success());
    let [mut store, mut whole] = ["store", "whole"].map(|name| files(&place.at(name)));
    for name in ["zarr.json", "manifest"] {
        // The command lines differ in --out.
        store.remove(std::path::Path::new(name)).unwrap();
        whole.remove(std::path::Path::new(name)).unwrap();
    }
    assert!(store == whole);
}

#[test]
fn after_a_bad_row_is_mended_the_import_goes_on() {
    let place = Place::new();
    let (mut bytes, bad) = (rows(6000, single), (5001 * WIDTH) * 4);
    let good = bytes[bad..bad + 4].to_vec();
    bytes[bad..bad + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("acts.npy", npy("<f4", "(6000, 6)", &bytes));
    let words = ["acts.npy", "--context", "7"];
    let with_out = [&words[..], &WINDOW, &["--out", "store"]].concat();
    assert_eq!(place.run(&with_out).status.code(), Some(1));
    bytes[bad..bad + 4].copy_from_slice(&good);
    place.write("acts.npy", npy("<f4", "(6000, 6)", &bytes));
    let run = place.run(&with_out);
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && message.contains("are stored already"), "{message}");
    is_as_undisturbed(&place, &words);
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let place = Place::new();
    for number in 0..1200 {
        let rows = number * 7..number * 7 + 1 + number % 9;
        place.write(&format!("states/{number:04}.safetensors"), request(rows, 2));
    }
    let words = ["states", "--source-layer", "1"];
    let with_out = [&words[..], &WINDOW, &["--out", "store"]].concat();
    for pause in 0..12 {
        let mut child = place.command(&with_out).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 * pause));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(place.run(&with_out).status.success());
    is_as_undisturbed(&place, &words);
}

#[test]
fn it_does_not_go_on_with_another_source() {
    let place = Place::new();
    let mut bytes = rows(6000, single);
    bytes[5000 * WIDTH * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("acts.npy", npy("<f4", "(6000, 6)", &bytes));
    let arguments = [&["acts.npy"][..], &WINDOW, &["--out", "store"]].concat();
    assert_eq!(place.run(&arguments).status.code(), Some(1));
    place.write("acts.npy", npy("<f4", "(5999, 6)", &rows(5999, single)));
    let before = files(&place.at("store"));
    let run = place.run(&arguments);
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && message.contains("another dump"), "{message}");
    assert!(files(&place.at("store")) == before);
    fs::remove_file(place.at("acts.npy")).unwrap();
    assert!(!place.run(&arguments).status.success());
}
