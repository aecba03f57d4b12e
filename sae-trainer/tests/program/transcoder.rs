//! Transcoders: rows of one hook are read and those of another are reconstructed.

use activation_store::{BatchStream, Part, RowFilter, RowType, Store, StreamOptions};
use ndarray::{Array2, Axis};
use sae::Sae;
use serde_json::{Value, json};

use crate::fixture::{CONTEXT, Place, WIDTH, mixtures, text, write_hook_store, write_store};

const RUN: &str =
    "--store in --target out --features 64 --batch 128 --lr 3e-3 --l0-coefficient 1e-3 --log-every 10";

/// The target of a row: what a layer could make of it.
fn target(row: &[f32]) -> impl Iterator<Item = f32> {
    (0..WIDTH).map(|k| 2.0 - row[(5 * k + 3) % WIDTH] + 0.5 * row[k])
}

/// A place with the stores `in` and `out` of two hooks of one dump.
fn two_hooks(row_type: RowType) -> Place {
    let place = Place::new();
    let rows = mixtures(512, 1);
    write_hook_store(&place.path("in"), "blocks.1.hook_mlp_in", WIDTH, &rows, row_type);
    let targets: Vec<f32> = rows.chunks(WIDTH).flat_map(target).collect();
    write_hook_store(&place.path("out"), "blocks.1.hook_mlp_out", WIDTH, &targets, row_type);
    place
}

fn evaluation(place: &Place, run: &str) -> Value {
    place.metrics(run).pop().unwrap()
}

#[test]
fn a_transcoder_reconstructs_the_rows_of_the_other_hook() {
    let place = two_hooks(RowType::F32);
    let output = place.run(&format!("{RUN} --held-out 0.25 --steps 400 --b-dec-init mean --out run"));
    assert!(
        text(&output.stderr).contains("out: blocks.1.hook_mlp_out, for a transcoder"),
        "{}",
        text(&output.stderr)
    );
    let found = evaluation(&place, "run");
    assert_eq!(found["evaluated_on"], "held-out-rows");

    // The figures are those of the saved weights on held-out pairs, here formed without reading the target's store.
    let filter = RowFilter { part: Part::HeldOut { held_out: 0.25 }, ..RowFilter::default() };
    let options = StreamOptions { batch: 1024, rows: filter, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![Store::open(&place.path("in")).unwrap()], options).unwrap();
    assert_eq!((stream.rows_per_epoch(), &found["rows"]), (1024, &json!(1024)));
    let x = stream.next_batch().unwrap().to_owned();
    let y: Vec<f32> =
        x.rows().into_iter().flat_map(|row| target(row.as_slice().unwrap()).collect::<Vec<_>>()).collect();
    let y = Array2::from_shape_vec((1024, WIDTH), y).unwrap();
    let sae = Sae::load(&place.path("run/sae")).unwrap();
    let reconstruction = sae.reconstruct(x.view());
    let mean = y.mapv(f64::from).sum_axis(Axis(0)) / 1024.0;
    let error: f64 = y.iter().zip(&reconstruction).map(|(y, found)| f64::from(y - found).powi(2)).sum();
    let variance: f64 = y
        .rows()
        .into_iter()
        .flat_map(|row| row.to_vec().into_iter().zip(mean.to_vec()))
        .map(|(y, mean)| (f64::from(y) - mean).powi(2))
        .sum();
    let expected = 1.0 - error / variance;
    let explained = found["explained_variance"].as_f64().unwrap();
    assert!((explained - expected).abs() < 1e-4, "{explained}, expected {expected}");
    assert!(explained > 0.8, "{explained}");
    assert_eq!(sae.config.metadata.hook_name.as_deref(), Some("blocks.1.hook_mlp_in"));
    assert_eq!(sae.config.metadata.further["hook_name_out"], "blocks.1.hook_mlp_out");
}

#[test]
fn a_transcoder_resumes_to_the_same_bytes_and_sweeps() {
    let place = two_hooks(RowType::F16);
    let run = format!("{RUN} --drop-bos --max-norm 1.5 --revive resample --revive-every 20 --dead-rows 1k");
    place.run(&format!("{run} --steps 70 --out straight"));
    place.run(&format!("{run} --steps 33 --out parts"));
    place.run("--resume --steps 70 --log-every 10 --out parts");
    assert_eq!(place.sae_bytes("parts"), place.sae_bytes("straight"));
    assert_eq!(evaluation(&place, "parts"), evaluation(&place, "straight"));
    place.run(&format!("sweep {run} --steps 70 --decoder-norm unit,free --out front"));
    assert_eq!(place.sae_bytes("front/decoder-norm-unit"), place.sae_bytes("straight"));
    place.run(&format!("{RUN} --steps 2"));
    assert!(place.path("runs/in-to-out-approx-l0-1e-3/sae").is_dir());
    let told = place.fail(&format!("{} --resume --out straight", run.replace("--target out", "--target in")));
    assert!(told.contains("targets are"), "{told}");
}

#[test]
fn several_stores_have_their_targets_in_order() {
    let place = two_hooks(RowType::F32);
    let rows = mixtures(64, 2);
    let spec = |place: &Place, name, hook, rows: &[f32]| {
        write_hook_store(&place.path(name), hook, WIDTH, rows, RowType::F32);
    };
    spec(&place, "in-2", "blocks.1.hook_mlp_in", &rows);
    spec(&place, "out-2", "blocks.1.hook_mlp_out", &rows.chunks(WIDTH).flat_map(target).collect::<Vec<_>>());
    place.run(&format!("{RUN} --store in-2 --target out-2 --held-out 0 --steps 300 --out run"));
    let found = evaluation(&place, "run");
    assert_eq!(found["rows_available"], 4096 + 64 * CONTEXT);
    assert!(found["explained_variance"].as_f64().unwrap() > 0.8, "{found}");
    let told = place.fail(&format!("{RUN} --store in-2 --steps 5 --out no"));
    assert!(told.contains("--target names 1 stores and --store 2"), "{told}");
    let told = place.fail(&format!(
        "{} --store in-2 --target out-2 --target out --steps 5 --out no",
        RUN.replace("--target out", "")
    ));
    assert!(told.contains("not of the same tokens"), "{told}");
}

#[test]
fn targets_that_are_no_other_hook_of_the_dump_are_refused() {
    let place = two_hooks(RowType::F32);
    let run = format!("{} --steps 5 --out no --target", RUN.replace("--target out", ""));
    write_store(&place.path("short"), WIDTH, &mixtures(511, 1), RowType::F32);
    let told = place.fail(&format!("{run} short"));
    assert!(told.contains("not of the same tokens") && told.contains("two hooks of one dump"), "{told}");
    write_store(&place.path("narrow"), 8, &mixtures(512, 1)[..4096 * 8], RowType::F32);
    let told = place.fail(&format!("{run} narrow"));
    assert!(told.contains("two hooks of one width"), "{told}");
    for flags in ["--pre-bias", "--eval-store store"] {
        let output = place.command(&format!("{run} out {flags}")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}");
        assert!(text(&output.stderr).contains("cannot be used with"), "{}", text(&output.stderr));
    }
    assert!(!place.path("no").exists());
}

#[test]
fn the_decoder_bias_of_a_transcoder_starts_at_the_mean_of_the_targets() {
    let place = two_hooks(RowType::F32);
    let run = RUN.replace("--lr 3e-3", "--lr 1e-12");
    place.run(&format!("{run} --held-out 0 --steps 1 --b-dec-init mean --out run"));
    let bias = Sae::load(&place.path("run/sae")).unwrap().weights.b_dec;
    let targets = crate::fixture::rows(&place.path("out"));
    for (k, bias) in bias.iter().enumerate() {
        let mean = targets.iter().skip(k).step_by(WIDTH).map(|y| f64::from(*y)).sum::<f64>() / 4096.0;
        assert!((f64::from(*bias) - mean).abs() < 1e-4, "component {k}: {bias}, expected {mean}");
    }
}

#[test]
fn a_skip_connection_is_trained_resumed_and_started_from() {
    let place = two_hooks(RowType::F32);
    let run = format!("{RUN} --held-out 0");
    place.run(&format!("{run} --steps 200 --out plain"));
    place.run(&format!("{run} --skip --steps 200 --out straight"));
    place.run(&format!("{run} --skip --steps 93 --out parts"));
    place.run("--resume --steps 200 --log-every 10 --out parts");
    assert_eq!(place.sae_bytes("parts"), place.sae_bytes("straight"));
    assert_eq!(evaluation(&place, "parts"), evaluation(&place, "straight"));
    // The target is linear in the row, and that is what the matrix is for.
    let error = |run: &str| evaluation(&place, run)["mse_sum"].as_f64().unwrap();
    assert!(error("straight") < 0.9 * error("plain"), "{}, without {}", error("straight"), error("plain"));

    let sae = |run: &str| Sae::load(&place.path(&format!("{run}/sae"))).unwrap();
    assert_eq!(sae("plain").config.architecture, "transcoder");
    assert_eq!(sae("straight").config.architecture, "skip_transcoder");
    let still = run.replace("--lr 3e-3", "--lr 1e-12").replace("--features 64", "");
    place.run(&format!("{still} --steps 1 --init-from straight/sae --out next"));
    let (next, straight) = (sae("next").weights.skip.unwrap(), sae("straight").weights.skip.unwrap());
    assert!((next - straight).iter().all(|off| off.abs() < 1e-6));

    let told = place.fail("--store in --skip --steps 5 --out no");
    assert!(told.contains("add --target"), "{told}");
    let told = place.fail("--store in --init-from straight/sae --steps 5 --out no");
    assert!(told.contains("needs --target"), "{told}");
}

#[test]
fn a_set_is_exported_once_and_whole() {
    let place = two_hooks(RowType::F32);
    place.run(&format!("{RUN} --steps 5 --out run"));
    let export = "export run/sae --to circuit-tracer --out set";
    let printed = text(&place.run(export).stderr).to_owned();
    assert!(printed.contains("each block from 0 on") && !printed.contains("TopK"), "{printed}");
    let mut names: Vec<_> = std::fs::read_dir(place.path("set"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.yaml", "layer_1.safetensors"]);
    assert!(place.fail(export).contains("exists"), "a folder is not written over");
    let told = place.fail("export run/sae run/sae --to circuit-tracer --out twice");
    assert!(told.contains("both of block 1"), "{told}");
    place.run(
        "--store in --target out --features 64 --batch 128 --activation topk --k 4 --steps 5 --out sparse",
    );
    let printed = text(&place.run("export sparse/sae --to circuit-tracer --out of-k").stderr).to_owned();
    assert!(printed.contains("knows TopK since"), "{printed}");
    place.run("--store in --features 64 --batch 128 --steps 5 --out plain");
    let told = place.fail("export plain/sae --to circuit-tracer --out no");
    assert!(told.contains("no transcoder"), "{told}");
    assert!(!place.path("twice").exists() && !place.path("no").exists());
}
