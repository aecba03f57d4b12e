//! Rows that training never sees, and rows that are left out.

use std::collections::BTreeSet;

use activation_store::{BatchStream, Part, RowFilter, RowType, Store, StreamOptions};
use serde_json::{Value, json};

use crate::fixture::{CONTEXT, Place, WIDTH, mixtures, text, write_store};

const RUN: &str = "--features 64 --batch 128 --lr 3e-3 --log-every 10";

fn evaluation(place: &Place, run: &str) -> Value {
    place.metrics(run).pop().unwrap()
}

/// The bits of a row.
fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// The contexts of the store of `rows` [contexts · 8, 16] that are held out.
fn held_out(place: &Place, store: &str, rows: &[f32], fraction: f64) -> BTreeSet<usize> {
    let filter = RowFilter { part: Part::HeldOut { held_out: fraction }, ..RowFilter::default() };
    let options = StreamOptions { batch: 1, rows: filter, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![Store::open(&place.path(store)).unwrap()], options).unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..stream.rows_per_epoch() {
        seen.insert(bits(stream.next_batch().unwrap().as_slice().unwrap()));
    }
    let contexts = rows.chunks(CONTEXT * WIDTH).enumerate();
    contexts
        .filter(|(_, context)| context.chunks(WIDTH).any(|row| seen.contains(&bits(row))))
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn training_is_the_same_whatever_the_held_out_rows_hold() {
    let place = Place::new();
    let rows = mixtures(512, 1);
    let contexts = held_out(&place, "store", &rows, 0.1);
    assert_eq!(contexts.len(), 52);
    let mut changed = rows.clone();
    for context in contexts {
        changed[context * CONTEXT * WIDTH..][..CONTEXT * WIDTH].iter_mut().for_each(|x| *x = 50.0 - *x);
    }
    write_store(&place.path("changed"), WIDTH, &changed, RowType::F32);
    write_store(&place.path("second"), WIDTH, &mixtures(64, 2), RowType::F32);
    // More than three passes over the rows; with everything that reads rows beside the steps.
    let further = "--held-out 0.1 --steps 120 --drop-bos --b-dec-init geometric-median --revive resample \
                   --revive-every 50 --dead-rows 2k --store second";
    for store in ["store", "changed"] {
        place.run(&format!("{RUN} --store {store} {further} --out {store}-run"));
    }
    let weights = |run: &str| sae::Sae::load(&place.path(run).join("sae")).unwrap().weights;
    assert!(weights("store-run") == weights("changed-run"));
    let (mut one, mut other) = (place.metrics("store-run"), place.metrics("changed-run"));
    let (first, second) = (one.pop().unwrap(), other.pop().unwrap());
    assert_eq!(one, other);
    // The evaluation reads nothing else: of 512 and of 64 contexts, without BOS.
    assert_ne!(first["mse_sum"], second["mse_sum"]);
    assert_eq!(
        (&first["rows"], &first["evaluated_on"]),
        (&json!((52 + 7) * 7 / 128 * 128), &json!("held-out-rows"))
    );
    assert_eq!(first["rows_available"], (52 + 7) * 7);
}

#[test]
fn a_small_store_holds_out_a_context_and_says_so() {
    let place = Place::new();
    let output = place.run(&format!("{RUN} --store store --steps 5 --out run"));
    let told = text(&output.stderr);
    // 1 % of 512 contexts.
    assert!(told.contains("48 rows, which are held out from training"), "{told}");
    assert!(text(&output.stdout).contains("on all 48 held-out rows"), "{}", text(&output.stdout));
    assert_eq!(evaluation(&place, "run")["rows"], 48);
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["rows"]["held_out"], 0.01);

    write_store(&place.path("two"), WIDTH, &mixtures(2, 2), RowType::F32);
    place.run("--features 64 --batch 8 --store two --steps 5 --out two-run");
    assert_eq!(evaluation(&place, "two-run")["rows_available"], 8);
    write_store(&place.path("one"), WIDTH, &mixtures(1, 2), RowType::F32);
    let output = place.run("--features 64 --batch 8 --store one --steps 5 --out one-run");
    assert!(text(&output.stderr).contains("too small to hold any out"), "{}", text(&output.stderr));
    assert_eq!(evaluation(&place, "one-run")["evaluated_on"], "training-rows");
    assert_eq!(evaluation(&place, "one-run")["rows"], 8);
}

#[test]
fn a_run_with_held_out_rows_resumes_to_the_same_bytes() {
    let place = Place::new();
    let run = format!("{RUN} --store store --held-out 0.2");
    place.run(&format!("{run} --steps 70 --out straight"));
    place.run(&format!("{run} --steps 33 --out parts"));
    place.run("--resume --steps 70 --log-every 10 --out parts");
    assert_eq!(place.sae_bytes("parts"), place.sae_bytes("straight"));
    assert_eq!(evaluation(&place, "parts"), evaluation(&place, "straight"));
    let told = place.fail("--resume --held-out 0.1 --steps 80 --out parts");
    assert!(told.contains("held_out is 0.2 there and 0.1 here"), "{told}");
}

#[test]
fn an_older_run_that_held_nothing_out_continues_so() {
    let place = Place::new();
    place.run(&format!("{RUN} --store store --held-out 0 --steps 70 --out straight"));
    place.run(&format!("{RUN} --store store --held-out 0 --steps 33 --out older"));
    // As versions wrote it that knew nothing of held-out rows.
    let path = place.path("older/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (below, name) in [("settings", "rows"), ("arguments", "held_out")] {
        config[below].as_object_mut().unwrap().remove(name).unwrap();
    }
    config.as_object_mut().unwrap().remove("crc32c").unwrap();
    std::fs::write(&path, config.to_string()).unwrap();

    for steps in [50, 70] {
        place.run(&format!("--resume --steps {steps} --log-every 10 --out older"));
    }
    assert_eq!(place.sae_bytes("older"), place.sae_bytes("straight"));
    assert_eq!(place.metrics("older").last(), place.metrics("straight").last());
    assert_eq!(evaluation(&place, "older")["rows"], 4096);
    assert_eq!(evaluation(&place, "older")["evaluated_on"], "training-rows");
}

#[test]
fn other_stores_can_be_evaluated_on_instead() {
    let place = Place::new();
    write_store(&place.path("other"), WIDTH, &mixtures(64, 2), RowType::F16);
    let output = place.run(&format!("{RUN} --store store --eval-store other --steps 20 --out run"));
    assert!(text(&output.stdout).contains("on all 512 rows of other stores"), "{}", text(&output.stdout));
    let found = evaluation(&place, "run");
    assert_eq!((&found["rows"], &found["evaluated_on"]), (&json!(512), &json!("other-stores")));
    // Nothing is held out then.
    place.run(&format!("{RUN} --store store --held-out 0 --steps 20 --out all"));
    let training =
        |run: &str| place.metrics(run).into_iter().filter(|line| line["kind"] == "step").collect::<Vec<_>>();
    assert_eq!(training("run"), training("all"));
    // It evaluates on the same stores when it is resumed, or on those that are named then.
    place.run("--resume --steps 25 --out run");
    assert_eq!(evaluation(&place, "run")["rows"], 512);
    write_store(&place.path("third"), WIDTH, &mixtures(48, 3), RowType::F32);
    place.run("--resume --steps 30 --eval-store third --out run");
    assert_eq!(evaluation(&place, "run")["rows"], 384);

    let told = place.fail(&format!("{RUN} --store store --eval-store ./store --steps 5 --out no"));
    assert!(told.contains("as --store and as --eval-store"), "{told}");
    write_store(&place.path("narrow"), 8, &mixtures(64, 2)[..64 * CONTEXT * 8], RowType::F32);
    let told = place.fail(&format!("{RUN} --store store --eval-store narrow --steps 5 --out no"));
    assert!(told.contains("those of narrow 8"), "{told}");
    assert!(!place.path("no").exists());
}

#[test]
fn compare_says_which_rows_the_figures_are_of() {
    let place = Place::new();
    place.run(&format!("{RUN} --store store --steps 5 --out held-out"));
    place.run(&format!("{RUN} --store store --steps 5 --held-out 0 --out seen"));
    let table = text(&place.run("compare held-out").stdout);
    assert!(table.contains("evaluated on 48 held-out rows;"), "{table}");
    let table = text(&place.run("compare held-out seen").stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].ends_with("evaluated on") && lines[1].ends_with("held-out rows"), "{table}");
    assert!(lines[2].ends_with("rows that training saw too"), "{table}");
    assert!(lines[3].starts_with("evaluated on 48 to 4,096 rows;"), "{table}");
}

#[test]
fn the_points_of_a_sweep_hold_out_the_same_rows() {
    let place = Place::new();
    let run = format!("{RUN} --store store --steps 20 --held-out 0.25 --drop-tokens 3,5");
    place.run(&format!("sweep {run} --l0-coefficient 1e-4,1e-3 --out front"));
    place.run(&format!("{run} --l0-coefficient 1e-3 --out alone"));
    assert_eq!(place.sae_bytes("front/l0-coefficient-1e-3"), place.sae_bytes("alone"));
    assert_eq!(evaluation(&place, "alone")["rows_available"], 128 * 6);
    let told =
        place.command(&format!("sweep {RUN} --store store --steps 2 --held-out 0.1,0.2 --out no")).output();
    assert!(text(&told.unwrap().stderr).contains("--held-out takes one value in a sweep"));
}

#[test]
fn rows_of_given_tokens_are_left_out() {
    let place = Place::new();
    // Token number and position are the same in the fixture's stores.
    place
        .run(&format!("{RUN} --store store --steps 5 --drop-bos --drop-tokens 7,3,7 --held-out 0 --out run"));
    assert_eq!(evaluation(&place, "run")["rows_available"], 4096 * 5 / 8);
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["rows"]["drop_tokens"], json!([3, 7]));
}

#[test]
fn rows_of_a_large_norm_are_left_out() {
    let place = Place::new();
    // Every position 2 is an attention sink.
    let mut rows = mixtures(512, 1);
    for context in rows.chunks_mut(CONTEXT * WIDTH) {
        context[2 * WIDTH..3 * WIDTH].iter_mut().for_each(|x| *x *= 1000.0);
    }
    write_store(&place.path("sinks"), WIDTH, &rows, RowType::F32);
    write_store(&place.path("other"), WIDTH, &rows[..64 * CONTEXT * WIDTH], RowType::F32);
    let run = format!("{RUN} --store sinks --steps 300 --max-norm 20");
    let output = place.run(&format!("{run} --out run"));
    let told = text(&output.stderr);
    assert!(told.contains("512 of the 4,096 rows of sinks have a norm over"), "{told}");
    let found = evaluation(&place, "run");
    assert_eq!(found["rows_available"], 6 * 7);
    assert!(found["explained_variance"].as_f64().unwrap() > 0.3, "{found}");
    // The limit is a number of the run, and that of its own stores where it is evaluated on others.
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/config.json")).unwrap()).unwrap();
    let limit = config["settings"]["rows"]["largest_norm"].as_f64().unwrap();
    let mut norms: Vec<f64> =
        rows.chunks(WIDTH).map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()).collect();
    norms.sort_by(f64::total_cmp);
    assert!((limit / (20.0 * norms[2048]) - 1.0).abs() < 1e-12, "{limit}");
    place.run(&format!("{run} --eval-store other --out elsewhere"));
    assert_eq!(evaluation(&place, "elsewhere")["rows"], 64 * 7 / 128 * 128);
    // Resumed, it is the same run.
    place.run(&format!("{} --out parts", run.replace("--steps 300", "--steps 25")));
    place.run("--resume --steps 300 --log-every 10 --out parts");
    assert_eq!(place.sae_bytes("parts"), place.sae_bytes("run"));
    let told = place.fail(&format!("{RUN} --store sinks --steps 5 --max-norm 1e-9 --out none"));
    assert!(told.contains("every one is left out"), "{told}");
}
