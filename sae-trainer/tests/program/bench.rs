//! `sae-trainer bench`.

use serde_json::Value;

use crate::fixture::{Place, text};

#[test]
fn a_step_is_timed_part_by_part_on_synthetic_and_on_real_data() {
    let place = Place::new();
    let small = "bench --width 32 --features 256 --batch 128 --l0 5 --repeats 2 --json";
    let report: Value = serde_json::from_slice(&place.run(small).stdout).unwrap();
    let l0 = report["l0"].as_f64().unwrap();
    assert!((1.0..20.0).contains(&l0), "synthetic rows have an L0 of {l0} for 5");
    assert_eq!(report["path"], "sparse");
    let parts = report["parts"].as_array().unwrap();
    assert!(parts.len() >= 4);
    for part in parts {
        assert!(part["seconds"].as_f64().unwrap() > 0.0, "{part}");
        assert!(part["share_of_bound"].as_f64().unwrap() > 0.0, "{part}");
    }

    place.run("--store store --features 64 --batch 128 --steps 3 --out run");
    let table = text(&place.run("bench --store store --from run/sae --batch 128 --repeats 1").stdout);
    assert!(table.contains("F 64") && table.contains("encode") && table.contains("tokens/s"), "{table}");
}

#[test]
fn sizes_that_make_no_step_are_refused() {
    let place = Place::new();
    assert!(place.fail("bench --features 64 --l0 65 --width 8 --batch 16").contains("--l0 65"));
    assert!(place.fail("bench --features 0 --width 8 --batch 16").contains("features"));
}
