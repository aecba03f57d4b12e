//! `sae-trainer compare`.

use serde_json::Value;

use crate::fixture::{Place, json, text};

#[test]
fn runs_stand_side_by_side() {
    let place = Place::new();
    let small = "--store store --features 64 --batch 128 --steps 30";
    place.run(&format!("{small} --out l0"));
    place.run(&format!("{small} --loss l1 --out l1"));

    let table = text(&place.run("compare l0 l1").stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("run") && lines[0].contains("explained variance"), "{table}");
    assert!(lines[1].starts_with("l0") && lines[1].contains("approx-l0 7e-5"), "{table}");
    assert!(lines[2].starts_with("l1") && lines[2].contains("l1 8e-5"), "{table}");
    assert!(lines[3].contains("48 held-out rows"), "{table}");

    let json: Value = serde_json::from_slice(&place.run("compare l0 l1 --json").stdout).unwrap();
    let expected = place.metrics("l1").pop().unwrap();
    assert_eq!(json[1]["evaluation"]["l0"], expected["l0"]);
    assert_eq!(json[1]["run"], "l1");
}

#[test]
fn features_are_matched_between_runs() {
    let place = Place::new();
    let small = "--store store --features 64 --batch 128 --steps 30";
    place.run(&format!("{small} --out a"));
    place.run(&format!("{small} --seed 1 --out b"));

    let shown = text(&place.run("compare a a b --features --matches matches.csv").stdout);
    let over: Vec<&str> =
        shown.lines().find(|line| line.contains("over 0.9")).unwrap().split_whitespace().collect();
    assert!(shown.contains("features of a"), "{shown}");
    assert_eq!(over, ["over", "0.9", "100.0", "%", "100.0", "%"], "{shown}");
    let csv = std::fs::read_to_string(place.path("matches.csv")).unwrap();
    let own: Vec<&str> = csv.lines().filter(|line| line.starts_with("a,")).collect();
    assert!(!own.is_empty() && csv.lines().count() == 2 * own.len() + 1, "{csv}");
    for line in own {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!((fields[1], fields[1]), (fields[2], fields[4]), "a feature is its own best match");
    }

    // Folders of autoencoders have no row in the table.
    let json: Value = serde_json::from_slice(&place.run("compare a/sae b --features --json").stdout).unwrap();
    assert_eq!(json["runs"].as_array().unwrap().len(), 1);
    let found = &json["matches"][0];
    assert_eq!((&found["a"], &found["b"]), (&"a/sae".into(), &"b".into()));
    let (median, chance) = (found["decoder"]["median"].as_f64(), found["decoder"]["chance"].as_f64());
    assert!(median.unwrap() < 0.999 && chance.unwrap() > 0.0, "{found}");

    let refused = place.fail("compare a --features");
    assert!(refused.contains("name at least two"), "{refused}");
}

#[test]
fn names_from_files_are_shown_and_never_obeyed() {
    let place = Place::new();
    let hostile = "a\u{1b}[2J\u{7}<b>&\"\n\u{202e}\u{ffff}";
    let run = |out: &str| {
        let output =
            place.command("--store store --features 64 --batch 128 --steps 5 --out").arg(out).output();
        output.unwrap()
    };
    assert!(run(hostile).status.success());
    let path = place.path(hostile).join("summary.json");
    let mut summary = json(&path);
    summary["loss"] = "l1\u{1b}]0;x\u{7}\nerror: no".into();
    std::fs::write(&path, serde_json::to_vec(&summary).unwrap()).unwrap();
    let compare = place.command("compare --plot picture.svg").arg(hostile).output().unwrap();
    let again = run(hostile);
    assert_eq!(again.status.code(), Some(1));
    for written in [&compare.stdout, &compare.stderr, &again.stderr] {
        let written = text(written);
        assert!(written.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{written:?}");
        assert!(!written.lines().any(|line| line.starts_with("error: no")), "{written}");
    }
    assert_eq!(text(&compare.stdout).lines().count(), 3, "{}", text(&compare.stdout));
    assert_eq!(text(&again.stderr).lines().count(), 1, "{}", text(&again.stderr));
    // What XML cannot hold or gives a meaning is not in the picture.
    let svg = std::fs::read_to_string(place.path("picture.svg")).unwrap();
    assert!(svg.contains("\\u001b[2J\\u0007&lt;b&gt;&amp;&quot;\\n"), "{svg}");
    assert!(svg.chars().all(|c| (c == '\n' || c >= ' ') && !matches!(c, '\u{fffe}' | '\u{ffff}')));
}

#[test]
fn runs_are_drawn_in_one_picture() {
    let place = Place::new();
    let small = "--store store --features 64 --batch 128 --steps 30 --log-every 5";
    place.run(&format!("sweep {small} --l0-coefficient 7e-5,7e-3 --out front"));
    place.run(&format!("{small} --loss l1 --out l1"));
    let shown = place.run("compare front l1 --plot picture.svg");
    // The table is there as well.
    assert_eq!(shown.stdout, place.run("compare front l1").stdout);
    let svg = std::fs::read_to_string(place.path("picture.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for name in [
        "front/l0-coefficient-7e-5",
        "front/l0-coefficient-7e-3",
        "approx-l0 7e-3",
        "l1 8e-5",
        "tokens trained on",
    ] {
        assert!(svg.contains(name), "{name}");
    }
    // The front of two points, and for each of three runs a histogram and two curves of 7 logged steps.
    let lines: Vec<usize> = svg
        .split("<polyline")
        .skip(1)
        .filter(|line| line.contains("fill=\"none\""))
        .map(|line| {
            line.split("points=\"").nth(1).unwrap().split('"').next().unwrap().split_whitespace().count()
        })
        .collect();
    let count = |points: usize| lines.iter().filter(|&&of| of == points).count();
    assert_eq!((count(80), count(7)), (3, 6), "{lines:?}");

    let complaint = place.fail("compare l1 --plot nowhere/picture.svg");
    assert!(complaint.contains("cannot write nowhere/picture.svg"), "{complaint}");
}

#[test]
fn what_is_no_finished_run_is_named() {
    let place = Place::new();
    assert!(place.fail("compare nowhere").contains("there is no run in nowhere"));
    place.run("--store store --features 64 --batch 128 --steps 3 --out run");
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let complaint = place.fail("compare run");
    assert!(complaint.contains("not finished") && complaint.contains("--resume --out run"), "{complaint}");
}
