//! `sae-trainer report`: what the pages are given, against the files of runs and indexes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use activation_store::RowType;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::DeflateDecoder;
use sae::{Config, Metadata, Sae, Weights};
use serde_json::{Value, json};

use crate::faults::{compile_library, count_of, with_faults};
use crate::fixture::{
    CONTEXT, Place, WIDTH, copy, json as sealed, mixtures, signal, start, text, wait_for, write_store,
};

const RUN: &str = "--store store --features 96 --batch 128 --lr 3e-3 --steps 60 --log-every 10";

/// What a script of data gives the page.
fn taken(text: &str) -> Value {
    let mut json = String::new();
    DeflateDecoder::new(&STANDARD.decode(text).unwrap()[..]).read_to_string(&mut json).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn data(report: &Path, name: &str) -> Value {
    let script = fs::read_to_string(report.join("data").join(format!("{name}.js"))).unwrap();
    let text = script.strip_prefix(&format!("report.take(\"{name}\",\"")).unwrap();
    taken(text.strip_suffix("\")\n").unwrap())
}

fn column(table: &Value, name: &str) -> Vec<f64> {
    table[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Equal to the digits that a page gets.
fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-3 * expected.abs() + 1e-12
}

/// A place with the runs `a`, which has an index, and `b`.
fn two_runs() -> Place {
    let place = Place::new();
    place.run(&format!("{RUN} --out a"));
    place.run(&format!("{RUN} --activation topk --k 5 --seed 1 --out b"));
    place.run("features a --store store");
    place
}

#[test]
fn the_overview_has_what_the_runs_recorded() {
    let place = two_runs();
    fs::write(place.path("eval.json"), place.run("eval a b/sae --store store --json").stdout).unwrap();
    let told = text(&place.run("report a b --eval eval.json").stderr);
    assert!(told.contains("b has no activation index"), "{told}");
    let overview = data(&place.path("report"), "overview");
    for (run, name) in overview["runs"].as_array().unwrap().iter().zip(["a", "b"]) {
        let summary = sealed(&place.path(name).join("summary.json"));
        assert_eq!((&run["name"], &run["summary"]["evaluation"]), (&json!(name), &summary["evaluation"]));
        assert_eq!(run["settings"], sealed(&place.path(name).join("config.json"))["settings"]);
        assert_eq!(
            run["on_rows"]["rows"], summary["evaluation"]["rows"],
            "{name} is found by its folder or its sae/"
        );
        let steps: Vec<Value> =
            place.metrics(name).into_iter().filter(|line| line["kind"] == "step").collect();
        let course = &run["course"];
        assert_eq!(course["tokens"], steps.iter().map(|step| step["tokens"].clone()).collect::<Value>());
        for of in ["l0", "l1", "mse_centered"] {
            let found = column(course, of);
            assert!(
                found.iter().zip(&steps).all(|(found, step)| near(*found, step[of].as_f64().unwrap())),
                "{of}"
            );
        }
    }
    assert!(overview["runs"][0]["index"].is_object() && overview["runs"][1]["index"].is_null());
    // Of the reference loss: a/(a + 0.2) and 0.2/(a + 0.2)².
    let curves = &overview["runs"][0]["curves"];
    for (a, (p, slope)) in column(curves, "a")
        .into_iter()
        .zip(column(curves, "penalty").into_iter().zip(column(curves, "derivative")))
    {
        assert!(near(p, a / (a + 0.2)) && near(slope, 0.2 / (a + 0.2).powi(2)), "{a}: {p}, {slope}");
    }
    let matches = overview["matches"].as_array().unwrap();
    let compared: Value = serde_json::from_slice(&place.run("compare a b --features --json").stdout).unwrap();
    assert_eq!((matches.len(), &matches[0]["found"]["decoder"]), (2, &compared["matches"][0]["decoder"]));
}

#[test]
fn the_pages_of_features_say_what_the_index_says() {
    let place = two_runs();
    place.run("report a b --contexts 20");
    let report = place.path("report");
    let table = data(&report, "0-features");
    let lines = fs::read_to_string(place.path("a/sae/features/features.jsonl")).unwrap();
    let figures: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(figures.len(), 96);
    for (name, of) in [
        ("density", "density"),
        ("maximum", "maximum"),
        ("positional", "positional_share"),
        ("firings", "firings"),
    ] {
        let found = column(&table, name);
        assert!(
            found.iter().zip(&figures).all(|(found, line)| near(*found, line[of].as_f64().unwrap())),
            "{name}"
        );
    }
    let kinds = ["dead", "dense", "very-dense", "positional", "punctuation", "twin"];
    for (bits, line) in column(&table, "kinds").into_iter().zip(&figures) {
        let named: Vec<&str> = kinds
            .into_iter()
            .enumerate()
            .filter(|(at, _)| bits as u32 >> at & 1 == 1)
            .map(|(_, kind)| kind)
            .collect();
        assert_eq!(json!(named), line["kinds"]);
    }
    let chunk = table["chunk"].as_u64().unwrap() as usize;
    let mut firing = 0;
    for feature in 0..96 {
        let page = &data(&report, &format!("0-features-{}", feature / chunk))[feature % chunk];
        let shown: Value =
            serde_json::from_slice(&place.run(&format!("features a --id {feature} --json")).stdout).unwrap();
        assert_eq!(page["feature"], feature);
        let top = page["top"].as_array().unwrap();
        for (found, expected) in top.iter().zip(shown["top"].as_array().unwrap()) {
            assert_excerpt(found, expected);
            firing += 1;
        }
        assert_eq!(top.len(), shown["top"].as_array().unwrap().len().min(15));
        let [near_tenth, last] = [&page["samples"][4], &shown["samples"][10]];
        assert_eq!(near_tenth["of"], last["of"]);
        for (found, expected) in near_tenth["excerpts"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(last["excerpts"].as_array().into_iter().flatten())
        {
            assert_excerpt(found, expected);
        }
        for (list, value) in [("cofiring", "jaccard"), ("neighbours", "cosine")] {
            let found = page[list].as_array().unwrap();
            let expected = shown[list].as_array().unwrap();
            assert_eq!(found.len(), expected.len(), "{feature}: {list}");
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found[0], expected["feature"], "{feature}: {list}");
                assert!(near(found[1].as_f64().unwrap(), expected[value].as_f64().unwrap()));
            }
        }
    }
    assert!(firing > 200, "the comparison is about something");

    // The contexts, against the excerpts' own numbers.
    let contexts = data(&report, "0-contexts");
    assert_eq!(contexts["contexts"].as_array().unwrap().len(), 20);
    let mut at_tokens: BTreeMap<(u64, u64), Vec<(u64, f64)>> = BTreeMap::new();
    for chunk in 0..20_usize.div_ceil(contexts["chunk"].as_u64().unwrap() as usize) {
        let of_chunk = data(&report, &format!("0-contexts-{chunk}"));
        for (at, context) in of_chunk.as_array().unwrap().iter().enumerate() {
            let number = contexts["contexts"][chunk * 8 + at].as_u64().unwrap();
            assert_eq!(context.as_array().unwrap().len(), CONTEXT);
            for (position, features) in context.as_array().unwrap().iter().enumerate() {
                let features = features.as_array().unwrap().iter();
                let pair = |of: &Value| (of[0].as_u64().unwrap(), of[1].as_f64().unwrap());
                let features: Vec<_> = features.map(pair).collect();
                assert!(features.is_sorted_by(|a, b| a.1 >= b.1));
                at_tokens.insert((number, position as u64), features);
            }
        }
    }
    let mut compared = 0;
    for feature in 0..96_u64 {
        let page =
            &data(&report, &format!("0-features-{}", feature as usize / chunk))[feature as usize % chunk];
        for excerpt in page["top"].as_array().unwrap() {
            let [context, _, first] = [0, 1, 2].map(|at| excerpt[at].as_u64().unwrap());
            for active in excerpt[4].as_array().unwrap() {
                let position = first + active[0].as_u64().unwrap();
                if let Some(features) = at_tokens.get(&(context, position)) {
                    let value = active[1].as_f64().unwrap();
                    match features.iter().find(|(other, _)| *other == feature) {
                        Some((_, found)) => assert_eq!(*found, value),
                        None => assert!(features.len() == 24 && features[23].1 >= value),
                    }
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 20, "the comparison is about something: {compared}");
}

/// An excerpt of a page against the one that `features --id` prints.
fn assert_excerpt(found: &Value, expected: &Value) {
    assert_eq!(
        (&found[0], &found[1], &found[2]),
        (&expected["context"], &expected["position"], &expected["start"])
    );
    assert_eq!(found[3], expected["tokens"]);
    let mut activations = vec![0.0; expected["tokens"].as_array().unwrap().len()];
    for active in found[4].as_array().unwrap() {
        activations[active[0].as_u64().unwrap() as usize] = active[1].as_f64().unwrap();
    }
    let expected = expected["activations"].as_array().unwrap();
    assert!(
        activations.iter().zip(expected).all(|(found, expected)| near(*found, expected.as_f64().unwrap()))
    );
}

#[test]
fn one_file_holds_the_same_and_fewer_features_if_asked() {
    let place = two_runs();
    place.run("report a --features 10");
    place.run("report a --features 10 --single-file --out a.html");
    let (page, report) = (fs::read_to_string(place.path("a.html")).unwrap(), place.path("report"));
    let names: Vec<String> = fs::read_dir(report.join("data"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(names.len() > 4, "{names:?}");
    for name in names {
        let (_, rest) = page.split_once(&format!("id=\"data-{name}\">")).unwrap();
        assert_eq!(taken(rest.split_once('<').unwrap().0), data(&report, &name), "{name}");
    }
    let table = data(&report, "0-features");
    assert_eq!((column(&table, "density").len(), &table["features"]), (10, &json!(96)));
    // Nothing that a page could fetch.
    for (path, bytes) in place.files("report") {
        if path.extension().is_some_and(|ending| ending == "html" || ending == "css") {
            assert!(!text(&bytes).contains("://"), "{}", path.display());
        }
    }
}

#[test]
fn what_cannot_be_reported_is_refused_and_nothing_is_left() {
    let place = two_runs();
    fs::write(place.path("not.json"), "{").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    place.run(&format!("{RUN} --out unfinished"));
    fs::remove_file(place.path("unfinished/summary.json")).unwrap();
    for (line, words) in [
        ("report a --out a", "a exists"),
        ("report empty", "cfg.json"),
        ("report unfinished", "--resume --out unfinished"),
        ("report a --eval not.json", "eval --json"),
        ("report a --model empty", "empty"),
        ("report a --tokenizer nothing", "nothing"),
    ] {
        let complaint = place.fail(line);
        assert!(complaint.contains(words), "{line}: {complaint}");
        assert!(!place.path("report").exists(), "{line}");
    }
    // An index of other weights, and one that lacks a file.
    let mut sae = Sae::load(&place.path("a/sae")).unwrap();
    sae.weights.w_dec[[0, 0]] += 1.0;
    sae.save(&place.path("changed")).unwrap();
    copy(&place.path("a/sae/features"), &place.path("changed/features"));
    let complaint = place.fail("report changed");
    assert!(complaint.contains("as it is now; remove it and make it again"), "{complaint}");
    fs::remove_file(place.path("changed/features/features.jsonl")).unwrap();
    assert!(place.fail("report changed").contains("features.jsonl"), "an index that lacks a file");
    assert!(!place.path("report").exists());
}

#[test]
fn a_disk_without_room_leaves_no_half_a_report() {
    let place = two_runs();
    compile_library(&place);
    let line = "report a --features 4 --contexts 2 --threads 1";
    for call in ["write", "mkdir"] {
        let count = count_of(&place, call, line);
        fs::remove_dir_all(place.path("report")).unwrap();
        for at in 1..=count {
            let output = with_faults(&place, line, &[("FAULT_CALL", call), ("FAULT_AT", &at.to_string())]);
            let told = text(&output.stderr);
            if output.status.success() {
                fs::remove_dir_all(place.path("report")).unwrap();
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{call} {at}: {told}");
            assert!(told.contains("No space left on device"), "{call} {at}: {told}");
            assert!(
                !place.path("report").exists() && !place.path(".report.unfinished").exists(),
                "{call} {at}"
            );
        }
    }
}

#[test]
fn an_interrupt_leaves_no_half_a_report() {
    let place = Place::new();
    write_store(&place.path("large"), WIDTH, &mixtures(1_000, 1), RowType::F16);
    let config = Config::standard(WIDTH, 8192, false, Metadata::default());
    let sae = Sae { weights: Weights::init(WIDTH, 8192, 0), config, log_sparsity: None };
    sae.save(&place.path("sae")).unwrap();
    place.run("features sae --store large");
    let mut child = start(&place, "report sae --threads 1");
    let first = place.path(".report.unfinished/content/data/0-features-0.js");
    wait_for(&mut child, "the first features", || first.exists());
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nothing was kept"), "{}", text(&output.stderr));
    assert!(!place.path("report").exists() && !place.path(".report.unfinished").exists());
}
