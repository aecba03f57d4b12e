//! `sae-trainer eval` without a language model.

use serde_json::{Value, json};

use crate::fixture::{Place, json as read_json, text};

const RUN: &str = "--store store --features 64 --batch 128 --lr 3e-3 --steps 60";

/// What eval finds of autoencoders on the rows that their runs held out.
fn evaluated(place: &Place, saes: &str) -> Vec<Value> {
    let printed = place.run(&format!("eval {saes} --store store --json")).stdout;
    serde_json::from_slice(&printed).unwrap()
}

#[test]
fn an_autoencoder_is_measured_as_its_run_measured_it() {
    let place = Place::new();
    for (run, kind) in [
        ("relu", "--pre-bias"),
        ("topk", "--activation topk --k 5"),
        ("batch-topk", "--activation batch-topk --k 5"),
        ("jump-relu", "--activation jump-relu --bandwidth 0.5"),
        ("row-norm", "--input-scale row-norm"),
    ] {
        place.run(&format!("{RUN} {kind} --out {run}"));
        let summary = read_json(&place.path(run).join("summary.json"));
        let found = evaluated(&place, &format!("{run} {run}/sae"));
        assert_eq!(
            found[0]["on_rows"], found[1]["on_rows"],
            "the folder of a run is that of its autoencoder"
        );
        let on_rows = &found[0]["on_rows"];
        assert_eq!((&on_rows["rows"], &on_rows["held_out"]), (&json!(48), &json!(true)), "{run}");
        for key in
            ["l0", "l1", "mse_centered", "mse_sum", "explained_variance", "cosine_similarity", "l2_ratio"]
        {
            let of = |value: &Value| value[key].as_f64().unwrap();
            let (ours, own) = (of(on_rows), of(&summary["evaluation"]));
            assert!((ours - own).abs() <= 1e-5 * own.abs(), "{run}: {key} is {ours}, was {own}");
        }
        for key in ["dead_features", "features_over_10_percent", "log10_frequency"] {
            assert_eq!(on_rows[key], summary["evaluation"][key], "{run}: {key}");
        }
    }
}

#[test]
fn a_factor_of_the_rows_is_folded_away() {
    let place = Place::new();
    place.run(&format!("{RUN} --input-scale mean-norm --out run"));
    let (summary, found) = (read_json(&place.path("run/summary.json")), evaluated(&place, "run"));
    for key in ["l0", "explained_variance", "cosine_similarity"] {
        let (ours, own) = (found[0]["on_rows"][key].as_f64(), summary["evaluation"][key].as_f64());
        assert!((ours.unwrap() - own.unwrap()).abs() < 1e-4, "{key}");
    }
    let (ours, own) = (&found[0]["on_rows"]["mse_sum"], &summary["evaluation"]["mse_sum"]);
    assert_ne!(ours, own, "that of training is of scaled rows");
}

#[test]
fn the_table_has_a_line_for_each_and_says_what_it_is_of() {
    let place = Place::new();
    place.run(&format!("{RUN} --out a"));
    place.run(&format!("{RUN} --seed 1 --out b"));
    let table = text(&place.run("eval a b --store store --held-out 0").stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].starts_with("a ") && lines[2].starts_with("b "), "{table}");
    assert!(lines[3].contains("4,096 of 4,096 rows"), "{table}");
    assert!(!table.contains("CE score"), "{table}");
}

#[test]
fn measures_of_sparsity_say_which_criteria_they_meet() {
    let place = Place::new();
    place.run(&format!("{RUN} --activation topk --k 5 --out run"));
    let table = text(&place.run("eval run run/sae --store store --sparsity-measures").stdout);
    let line =
        |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect();
    let head: Vec<&str> = line("sparsity");
    assert_eq!(head, ["sparsity", "D1", "D2", "D3", "D4", "P1", "P2", "run", "run/sae"], "{table}");
    // 64 features of which 5 are active.
    let l0: Vec<&str> = line("l0 ");
    assert_eq!(l0, ["l0", "x", "x", "59.0", "59.0"], "{table}");
    let gini: Vec<&str> = line("gini");
    assert_eq!((gini.len(), gini[7]), (9, gini[8]), "{table}");
    let without = text(&place.run("eval run --store store").stdout);
    assert!(!without.contains("gini"), "{without}");
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_the_reason() {
    let place = Place::new();
    place.run(&format!("{RUN} --out run"));
    for (line, words) in [
        ("eval nothing --store store", "cannot read nothing"),
        ("eval run --store nothing", "nothing"),
        ("eval run --store store --target store", "leave --target out"),
        ("eval run --store store --store store --target store", "each --store needs its --target"),
        ("eval run --store store --model nothing", "nothing"),
    ] {
        let complaint = place.fail(line);
        assert!(complaint.contains(words), "{line}: {complaint}");
    }
    let output = place.command("eval run --store store --contexts 5").output().unwrap();
    assert!(text(&output.stderr).contains("--model"), "contexts need a model");
}
