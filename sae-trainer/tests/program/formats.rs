//! Autoencoders in other programs' files, by the program's commands.

use std::fs;

use sae::Sae;
use serde_json::Value;

use crate::fixture::{Place, text};

const RUN: &str = "--store store --features 64 --batch 128 --lr 3e-3 --steps 60 --pre-bias";

/// What eval finds of each autoencoder on the rows, without what the autoencoder is called.
fn on_rows(place: &Place, saes: &str) -> Vec<Value> {
    let printed = place.run(&format!("eval {saes} --store store --json")).stdout;
    let found: Vec<Value> = serde_json::from_slice(&printed).unwrap();
    found.into_iter().map(|of| of["on_rows"].clone()).collect()
}

#[test]
fn every_command_reads_what_export_writes() {
    let place = Place::new();
    place.run(&format!("{RUN} --activation topk --k 5 --out run"));
    place.run("export run --to dictionary-learning --out trainer");
    place.run("export run/sae --to sparsify --out coder");
    place.run("export run --to safetensors --out sae.safetensors");
    place.run("export trainer --to sae-lens --out lens");
    let told = text(&place.run("import trainer --out imported").stderr);
    assert!(told.contains("trainer: an autoencoder of dictionary_learning"), "{told}");
    assert!(
        told.contains("imported: topk with k 5, 64 features of rows of 16, b_dec subtracted from the input"),
        "{told}"
    );
    assert_eq!(
        Sae::load(&place.path("imported")).unwrap().weights,
        Sae::load(&place.path("run/sae")).unwrap().weights
    );

    let found = on_rows(&place, "run trainer coder sae.safetensors lens imported trainer/ae.pt");
    assert!(found[0]["l0"].as_f64().unwrap() > 1.0);
    for other in &found[1..] {
        assert_eq!(other, &found[0]);
    }
    let printed = place.run("compare run trainer coder --features --json").stdout;
    let compared: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!(compared["matches"].as_array().unwrap().len(), 2);
    place.run("features trainer --store store --tokens 1k");
    assert!(place.path("trainer/features/features.jsonl").exists());
    place.run("features sae.safetensors --store store --tokens 1k");
    assert!(place.path("sae.features/features.jsonl").exists());
    place.run("bench --from coder --store store --batch 128 --repeats 1");
    place.run("--store store --batch 128 --steps 2 --activation topk --k 5 --pre-bias --init-from trainer --out more");
}

#[test]
fn what_cannot_be_read_or_held_leaves_nothing() {
    let place = Place::new();
    place.run(&format!("{RUN} --out run"));
    let told = place.fail("export run --to sparsify --out coder");
    assert!(told.contains("cannot write run for sparsify: sparsify cannot hold it"), "{told}");
    let told = place.fail("export run run --to sae-lens --out lens");
    assert!(told.contains("one autoencoder is exported at a time"), "{told}");
    place.run("export run --to safetensors --out sae.safetensors");
    assert!(place.fail("export run --to safetensors --out sae.safetensors").contains("exists"));
    // A pickle that calls a function when Python reads it.
    fs::create_dir(place.path("trainer")).unwrap();
    fs::write(place.path("trainer/ae.pt"), b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR.").unwrap();
    assert!(place.fail("import trainer --out imported").contains("torch before version 1.6"));
    assert!(place.fail("import nowhere --out imported").contains("cannot read nowhere"));
    assert!(place.fail("import run/sae --k 3 --out imported").contains("leave --k and --pre-bias out"));
    assert!(place.fail("import sae.safetensors --k 65 --out imported").contains("its k is 65"));
    place.run("import sae.safetensors --k 3 --out imported");
    assert!(place.fail("import sae.safetensors --out imported").contains("imported"));
    for left in fs::read_dir(place.path(".")).unwrap() {
        let name = left.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("unfinished") && name != "coder" && name != "lens", "{name}");
    }
}
