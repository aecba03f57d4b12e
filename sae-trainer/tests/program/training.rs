//! What a run computes and what it leaves behind.

use activation_store::RowType;
use ndarray::{Array2, Axis};
use sae::Sae;
use serde_json::Value;

use crate::fixture::{Place, WIDTH, json, mixtures, number, rows, text, write_store};

const SMALL: &str = "--store store --features 64 --batch 128 --lr 3e-3 --log-every 10";

#[test]
fn a_run_leaves_configuration_metrics_and_autoencoder() {
    let place = Place::new();
    let output = place.run(&format!("{SMALL} --steps 600 --l0-coefficient 2e-2 --out run"));
    assert!(text(&output.stdout).contains("L0"), "{}", text(&output.stdout));

    let metrics = place.metrics("run");
    let steps: Vec<u64> = metrics.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = [1].into_iter().chain((10..=600).step_by(10)).chain([600]).collect();
    assert_eq!(steps, expected);
    let (first, last) = (&metrics[0], &metrics[metrics.len() - 2]);
    assert!(number(last, "mse_centered") < 0.5 * number(first, "mse_centered"), "{first}\n{last}");
    assert!(number(last, "l0") < 0.7 * number(first, "l0"), "{first}\n{last}");
    assert_eq!(number(last, "tokens"), 600.0 * 128.0);
    assert_eq!(metrics.last().unwrap()["kind"], "evaluation");

    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["step"]["features"], 64);
    assert_eq!(config["stores"][0]["rows"], 4096);

    let sae = Sae::load(&place.path("run/sae")).unwrap();
    assert_eq!((sae.config.d_in, sae.config.d_sae), (WIDTH, 64));
    assert_eq!(sae.config.metadata.hook_name.as_deref(), Some("blocks.1.hook_resid_pre"));
    assert_eq!(sae.config.metadata.context_size, Some(8));
    assert_eq!(Sae::load(&place.path("run/checkpoints/step-00000600")).unwrap().weights, sae.weights);
}

#[test]
fn the_evaluation_is_that_of_the_saved_autoencoder() {
    let place = Place::new();
    place.run(&format!("{SMALL} --held-out 0 --steps 100 --pre-bias --out run"));
    let evaluation = place.metrics("run").pop().unwrap();
    // 4,096 rows are 32 whole batches: all rows are evaluated, each once.
    assert_eq!((number(&evaluation, "rows"), number(&evaluation, "rows_available")), (4096.0, 4096.0));

    let sae = Sae::load(&place.path("run/sae")).unwrap();
    let x = Array2::from_shape_vec((4096, WIDTH), rows(&place.path("store"))).unwrap();
    let features = sae.encode(x.view());
    let reconstruction = sae.decode(features.view());
    let mean = x.mapv(f64::from).sum_axis(Axis(0)) / 4096.0;
    let (mut error, mut variance, mut norm, mut relative) = (0.0, 0.0, 0.0, 0.0);
    for (row, xhat) in x.rows().into_iter().zip(reconstruction.rows()) {
        let e: f64 = row.iter().zip(xhat).map(|(x, y)| f64::from(y - x).powi(2)).sum();
        let n: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        error += e;
        norm += n;
        relative += e / (WIDTH as f64 * n.sqrt());
        variance += row.iter().zip(&mean).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum::<f64>();
    }
    let l0 = features.iter().filter(|a| **a > 0.0).count() as f64 / 4096.0;
    let l1 = features.iter().map(|a| f64::from(*a)).sum::<f64>() / 4096.0;
    let dead = features.columns().into_iter().filter(|column| column.iter().all(|a| *a == 0.0)).count();
    for (name, expected) in [
        ("l0", l0),
        ("l1", l1),
        ("mse_sum", error / 4096.0),
        ("mse_uncentered", relative / 4096.0),
        ("explained_variance", 1.0 - error / variance),
        ("explained_variance_uncentered", 1.0 - error / norm),
        ("dead_features", dead as f64),
    ] {
        let found = number(&evaluation, name);
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{name}: {found}, expected {expected}");
    }
    assert!((number(&evaluation, "decoder_norm_mean") - 1.0).abs() < 1e-5);
    // The frequencies saved with the autoencoder are those of the evaluation.
    let sparsity = sae.log_sparsity.unwrap();
    for (j, log) in sparsity.iter().enumerate() {
        let fired = features.iter().skip(j).step_by(64).filter(|a| **a > 0.0).count() as f64;
        let expected = (fired / 4096.0 + 1e-10).log10();
        assert!((f64::from(*log) - expected).abs() < 1e-2, "feature {j}: {log}, expected {expected}");
    }
}

#[test]
fn the_explained_variance_is_right_however_long_the_mean_row_is() {
    let place = Place::new();
    // Whole numbers up to 2^24 are exact in float32, so that the variance of these rows is that of the small ones.
    let small: Vec<f32> = mixtures(512, 1).iter().map(|x| (8.0 * x).round()).collect();
    let far: Vec<f32> = small.iter().map(|x| x + 1e7).collect();
    let variance = |rows: &[f32]| -> f64 {
        let mean = |k: usize| rows.iter().skip(k).step_by(WIDTH).map(|x| f64::from(*x)).sum::<f64>() / 4096.0;
        let means: Vec<f64> = (0..WIDTH).map(mean).collect();
        rows.chunks(WIDTH)
            .flat_map(|row| row.iter().zip(&means))
            .map(|(x, m)| (f64::from(*x) - m).powi(2))
            .sum()
    };
    assert_eq!(variance(&small), variance(&far));
    write_store(&place.path("far"), WIDTH, &far, RowType::F32);
    place.run(
        "--store far --held-out 0 --features 64 --batch 128 --steps 3 --mse sum --b-dec-init mean --log-every 1 --out run",
    );
    let evaluation = place.metrics("run").pop().unwrap();
    let expected = 1.0 - 4096.0 * number(&evaluation, "mse_sum") / variance(&far);
    let found = number(&evaluation, "explained_variance");
    assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found}, expected {expected}");
}

#[test]
fn what_rows_without_variance_explain_is_undefined() {
    let place = Place::new();
    let row: Vec<f32> = (0..WIDTH).map(|k| 0.1 + k as f32).collect();
    write_store(&place.path("equal"), WIDTH, &row.repeat(4096), RowType::F32);
    write_store(&place.path("zero"), WIDTH, &vec![0.0; 4096 * WIDTH], RowType::F32);
    for (store, undefined, defined) in [
        (
            "equal",
            &["explained_variance", "mse_centered"][..],
            &["explained_variance_uncentered", "l2_ratio"][..],
        ),
        (
            "zero",
            &[
                "explained_variance",
                "explained_variance_uncentered",
                "mse_uncentered",
                "cosine_similarity",
                "l2_ratio",
            ],
            &["mse_sum", "l0"],
        ),
    ] {
        let line = format!("--store {store} --features 64 --batch 128 --steps 5 --mse sum --out {store}-run");
        let output = place.run(&line);
        assert!(text(&output.stdout).contains("explained variance  undefined"), "{}", text(&output.stdout));
        assert!(text(&output.stderr).contains("EV undefined"), "{}", text(&output.stderr));
        for line in place.metrics(&format!("{store}-run")) {
            assert!(undefined.iter().all(|name| line[name].is_null()), "{line}");
            assert!(defined.iter().all(|name| line[name].is_number()), "{line}");
        }
        place.run("compare equal-run --plot picture.svg");
    }
}

#[test]
fn every_loss_error_and_norm_trains_without_going_wrong() {
    let place = Place::new();
    for (number_of_run, flags) in [
        "--loss l1",
        "--loss tanh --tanh-scale 3 --mse sum",
        "--loss log --epsilon 0.5,0.1 --mse uncentered",
        "--loss none --max-sparsity-coefficient 1e-5 --max-sparsity-target 0.05",
        "--loss approx-l0 --coefficient-warmup-steps 20 --decoder-norm tied --drop-bos",
        "--loss l1 --weight-by-decoder-norm --decoder-norm free --warmup-steps 10 --lr-decay-steps 20",
        "--loss l1 --pre-bias --b-dec-init geometric-median --min-sparsity-coefficient 1e-6",
    ]
    .iter()
    .enumerate()
    {
        let run = format!("run-{number_of_run}");
        place.run(&format!("{SMALL} --steps 120 {flags} --out {run}"));
        let metrics = place.metrics(&run);
        let (first, last) = (&metrics[0], &metrics[metrics.len() - 2]);
        assert!(number(last, "mse") < number(first, "mse"), "{flags}: {first}\n{last}");
        let evaluation = metrics.last().unwrap();
        assert!(number(evaluation, "explained_variance") > 0.2, "{flags}: {evaluation}");
    }
}

#[test]
fn schedules_reach_the_metrics() {
    let place = Place::new();
    place.run(&format!(
        "{SMALL} --steps 40 --warmup-steps 20 --lr-decay-steps 20 --epsilon 0.2,0.1 \
         --coefficient-warmup-steps 20 --out run"
    ));
    let metrics = place.metrics("run");
    let column = |name: &str| -> Vec<f64> { metrics[..5].iter().map(|line| number(line, name)).collect() };
    assert_eq!(column("step"), [1.0, 10.0, 20.0, 30.0, 40.0]);
    let lr: Vec<f64> = column("lr").iter().map(|lr| (lr / 3e-3 * 1e6).round() / 1e6).collect();
    assert_eq!(lr, [0.05, 0.5, 1.0, 0.55, 0.05]);
    assert_eq!(column("epsilon_scale"), [1.0, 1.0, 1.0, 0.5, 0.5]);
    assert_eq!(column("coefficient_scale"), [0.05, 0.5, 1.0, 1.0, 1.0]);
}

#[test]
fn the_number_of_threads_changes_nothing_and_the_seed_does() {
    let place = Place::new();
    place.run(&format!("{SMALL} --steps 30 --threads 1 --out one"));
    place.run(&format!("{SMALL} --steps 30 --threads 3 --out three"));
    place.run(&format!("{SMALL} --steps 30 --threads 1 --seed 1 --out other"));
    assert_eq!(place.sae_bytes("one"), place.sae_bytes("three"));
    assert_eq!(place.metrics("one"), place.metrics("three"));
    assert_ne!(place.sae_bytes("one"), place.sae_bytes("other"));
}

#[test]
fn two_stores_are_read_as_one() {
    let place = Place::new();
    write_store(&place.path("second"), WIDTH, &mixtures(128, 2), RowType::F16);
    place.run(&format!("{SMALL} --store second --steps 50 --held-out 0 --out run"));
    assert_eq!(number(place.metrics("run").last().unwrap(), "rows_available"), 5120.0);
}

#[test]
fn bos_rows_can_be_left_out() {
    let place = Place::new();
    place.run(&format!("{SMALL} --drop-bos --held-out 0 --steps 5 --out run"));
    assert_eq!(number(place.metrics("run").last().unwrap(), "rows_available"), 4096.0 * 7.0 / 8.0);
}

#[test]
fn the_decoder_bias_can_start_at_the_mean_of_the_rows() {
    let place = Place::new();
    place.run("--store store --features 64 --batch 128 --held-out 0 --steps 1 --lr 1e-12 --b-dec-init mean --out run");
    let sae = Sae::load(&place.path("run/sae")).unwrap();
    let x = rows(&place.path("store"));
    for (k, bias) in sae.weights.b_dec.iter().enumerate() {
        let mean = x.iter().skip(k).step_by(WIDTH).map(|x| f64::from(*x)).sum::<f64>() / 4096.0;
        assert!((f64::from(*bias) - mean).abs() < 1e-4, "component {k}: {bias}, expected {mean}");
    }
}

#[test]
fn training_can_start_from_a_saved_autoencoder() {
    let place = Place::new();
    place.run(&format!("{SMALL} --steps 50 --pre-bias --out first"));
    place.run("--store store --batch 128 --steps 1 --lr 1e-12 --init-from first/sae --out second");
    let evaluation = |run: &str| place.metrics(run).pop().unwrap();
    assert_eq!(number(&evaluation("first"), "l0"), number(&evaluation("second"), "l0"));
    assert!(Sae::load(&place.path("second/sae")).unwrap().config.apply_b_dec_to_input);
}

#[test]
fn dead_features_are_resampled_and_live() {
    let place = Place::new();
    // A penalty that kills most features; it is the revival alone that makes a difference.
    let run = format!(
        "{SMALL} --steps 600 --loss l1 --l1-coefficient 0.3 --dead-rows 4k --held-out 0 --eval-rows 4k"
    )
    .replace("--features 64", "--features 256");
    place.run(&format!("{run} --out none"));
    place.run(&format!("{run} --revive resample --revive-every 150 --out resample"));
    let metrics = place.metrics("resample");
    let revivals: Vec<&Value> = metrics.iter().filter(|line| line["kind"] == "resample").collect();
    let steps: Vec<f64> = revivals.iter().map(|line| number(line, "step")).collect();
    // Not after the last step, when nothing would train them any more.
    assert_eq!(steps, [150.0, 300.0, 450.0]);
    for line in &revivals {
        let (dead, resampled) = (number(line, "dead_features"), number(line, "resampled_features"));
        assert!(dead > 0.0 && resampled == dead.min(128.0), "{line}");
        let before = metrics.iter().find(|other| other["kind"] == "step" && other["step"] == line["step"]);
        assert_eq!(number(before.unwrap(), "dead_features"), dead);
    }
    let dead = |run: &str| number(place.metrics(run).last().unwrap(), "dead_features");
    assert!(dead("resample") < dead("none"), "{} and {} without", dead("resample"), dead("none"));
    // Up to the first revival both are the same run.
    let until = |run: &str| -> Vec<Value> {
        place.metrics(run).into_iter().take_while(|line| number(line, "step") < 150.0).collect()
    };
    assert_eq!(until("resample"), until("none"));
}

#[test]
fn json_is_one_object_on_standard_output_and_nothing_else() {
    let place = Place::new();
    let output = place.run(&format!("{SMALL} --steps 5 --json --out run"));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["steps"], 5);
    assert_eq!(summary["loss"], "approx-l0");
    assert_eq!(summary["evaluation"]["rows"], 48);
    assert!(summary["session"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    // The settings, a line of progress: for people, elsewhere.
    let told = text(&output.stderr);
    assert!(told.contains("blocks.1.hook_resid_pre of gpt2-small") && told.contains("step 5/5"), "{told}");
}

#[test]
fn without_out_the_folder_is_named_after_store_and_loss() {
    let place = Place::new();
    place.run(&format!("{SMALL} --steps 2"));
    assert!(place.path("runs/store-approx-l0-7e-5/sae").is_dir());
    place.run(&format!("{SMALL} --steps 2 --loss none"));
    assert!(place.path("runs/store-none/sae").is_dir());
}

#[test]
fn old_checkpoints_make_room_for_new_ones() {
    let place = Place::new();
    place.run(&format!("{SMALL} --steps 40 --checkpoint-every 10 --keep-checkpoints 3 --out run"));
    let mut names: Vec<_> = std::fs::read_dir(place.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000020", "step-00000030", "step-00000040"]);
}

#[test]
fn a_topk_run_resumes_sweeps_and_goes_on_from_its_autoencoder() {
    let place = Place::new();
    let topk = "--store store --features 64 --batch 128 --lr 2e-3 --activation topk";
    place.run(&format!("{topk} --k 4 --steps 60 --log-every 20 --out whole"));
    place.run(&format!("{topk} --k 4 --steps 30 --log-every 20 --out parts"));
    place.run("--resume --steps 60 --log-every 20 --out parts");
    assert_eq!(place.sae_bytes("whole"), place.sae_bytes("parts"));
    let evaluation = place.metrics("whole").pop().unwrap();
    assert!(number(&evaluation, "l0") <= 4.0 && number(&evaluation, "l0") > 3.0);
    let summary = json(&place.path("whole/summary.json"));
    assert_eq!((&summary["loss"], number(&summary, "coefficient")), (&"topk-4".into(), 0.0));
    // What goes on from it has its k, unless another is asked for.
    place.run("--store store --batch 128 --steps 1 --lr 1e-12 --init-from whole/sae --out same");
    let config = Sae::load(&place.path("same/sae")).unwrap().config;
    assert_eq!(config.largest(), Some(4));
    place.run(&format!("sweep {topk} --k 2,8 --steps 20 --out sweep"));
    for k in [2, 8] {
        assert_eq!(json(&place.path(&format!("sweep/k-{k}/summary.json")))["loss"], format!("topk-{k}"));
    }
}
