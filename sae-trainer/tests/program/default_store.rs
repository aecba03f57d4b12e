//! A command line that names no store uses the only complete one under `stores/`.

use std::fs;

use activation_store::{Layout, RowType, StoreSpec, StoreWriter, WriterOptions};

use crate::fixture::{Place, WIDTH, mixtures, text, write_store};

const FLAGS: &str = "--features 64 --batch 128 --steps 20";

/// A dump that was begun, and did nothing yet.
fn begin_store(place: &Place, name: &str) {
    let spec = StoreSpec {
        row_type: RowType::F32,
        vocabulary: 50_257,
        layout: Layout { window_rows: 1024, shard_rows: 512, chunk_rows: 128, zstd_level: 1 },
        ..StoreSpec::new(WIDTH, 8, 100)
    };
    drop(StoreWriter::open(&place.path(name), &spec, &WriterOptions::default()).unwrap());
}

#[test]
fn without_a_store_the_error_says_how_to_get_one() {
    let place = Place::new();
    for line in ["--loss l1", "--resume", "sweep --lr 1e-4,2e-4"] {
        let told = place.fail(line);
        assert!(told.contains("--store is missing") && told.contains("activation-dump --layer 1"), "{told}");
    }
    begin_store(&place, "stores/begun");
    let told = place.fail("--loss l1");
    assert!(told.contains("none of the stores under stores/ is complete"), "{told}");
    assert!(told.contains("\n  stores/begun: unfinished, 0 contexts are safe"), "{told}");
    assert!(!place.path("runs").exists());
}

#[test]
fn the_only_complete_store_is_taken_and_named() {
    let place = Place::new();
    begin_store(&place, "stores/begun");
    fs::create_dir_all(place.path("stores/tiny/notes")).unwrap();
    fs::rename(place.path("store"), place.path("stores/tiny/blocks.1.hook_resid_pre")).unwrap();

    let output = place.run(&format!("--loss approx-l0 {FLAGS}"));
    let told = text(&output.stderr);
    let path = "stores/tiny/blocks.1.hook_resid_pre";
    assert!(told.contains(&format!("--store is {path}, the only complete store under stores/")), "{told}");
    let run = "runs/blocks.1.hook_resid_pre-approx-l0-7e-5";
    assert!(place.path(run).join("sae/cfg.json").exists());
    // Named or not, it is the same run.
    place.run(&format!("--store {path} {FLAGS} --out named"));
    assert_eq!(place.sae_bytes("named"), place.sae_bytes(run));

    place.run(&format!("sweep --lr 1e-4,2e-4 {FLAGS}"));
    assert!(place.path("runs/blocks.1.hook_resid_pre-sweep/lr-2e-4/sae/cfg.json").exists());
    // A run that goes on has its store, whatever has come since.
    write_store(&place.path("stores/second"), WIDTH, &mixtures(64, 1), RowType::F32);
    place.run(&format!("--resume --out {run} --steps 30"));
    place.run("sweep --resume --out runs/blocks.1.hook_resid_pre-sweep --steps 30");
}

#[test]
fn several_stores_are_listed() {
    let place = Place::new();
    write_store(&place.path("stores/a"), WIDTH, &mixtures(64, 1), RowType::F32);
    write_store(&place.path("stores/b"), WIDTH, &mixtures(64, 2), RowType::F32);
    begin_store(&place, "stores/c");
    write_store(&place.path("stores/d"), WIDTH, &mixtures(64, 3), RowType::F32);
    fs::remove_file(place.path("stores/d/journal")).unwrap();
    for line in ["--loss l1", "sweep --lr 1e-4,2e-4"] {
        let told = place.fail(line);
        assert!(told.contains("more than one of the stores under stores/ is complete"), "{told}");
        assert!(told.contains("--store FOLDER"), "{told}");
        for store in ["a", "b"] {
            let line = format!("\n  stores/{store}: 512 rows of blocks.1.hook_resid_pre of gpt2-small");
            assert!(told.contains(&line), "{told}");
        }
        assert!(told.contains("\n  stores/c: unfinished"), "{told}");
        assert!(told.contains("\n  stores/d: cannot read stores/d/journal"), "{told}");
    }
    assert!(!place.path("runs").exists());
}
