//! What a run can be told about how it trains: schedules, optimizer, initial weights.

use sae::Sae;

use crate::fixture::{Place, json, text};

const SMALL: &str = "--store store --features 64 --batch 128 --log-every 1";

#[test]
fn a_cosine_is_logged_resumed_and_varied_in_a_sweep() {
    let place = Place::new();
    let run = format!("{SMALL} --lr 1e-3 --warmup-steps 2 --lr-decay cosine --lr-decay-steps 2 --steps 8");
    let output = place.run(&format!("{run} --out run"));
    assert!(text(&output.stderr).contains("lr 1e-3 to 1e-4 along a cosine"), "{}", text(&output.stderr));
    let rates: Vec<f64> =
        place.metrics("run").iter().filter_map(|line| line["lr"].as_f64()).map(|lr| lr * 1e4).collect();
    let expected = [5.0, 10.0, 10.0, 8.68198, 5.5, 2.31802, 1.0, 0.5];
    assert_eq!(rates.len(), expected.len());
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{rates:?}");

    // Where the last step lies decides about every step.
    let told = place.fail("--resume --out run --steps 16");
    assert!(told.contains("steps is 8 there and 16 here"), "{told}");
    let told = place.fail("--resume --out run --lr-end 1e-5");
    assert!(told.contains("cosine.end is 0.0001 there and 0.00001 here"), "{told}");
    let told = place.fail(&format!("{SMALL} --lr-end 1e-5 --out other"));
    assert!(told.contains("--lr-end has no effect without --lr-decay cosine"), "{told}");
    place.run(&format!("sweep {SMALL} --steps 3 --lr-decay linear,cosine --lr-end 1e-5,1e-6 --out sweep"));
    let cosine =
        |point: &str| json(&place.path(&format!("sweep/{point}/config.json")))["settings"]["cosine"].clone();
    assert_eq!(cosine("lr-decay-cosine_lr-end-1e-6")["end"], 1e-6);
    assert!(cosine("lr-decay-linear").is_null());
}

#[test]
fn the_betas_of_adam_arrive_and_are_resumed() {
    let place = Place::new();
    let run = format!("{SMALL} --lr 1e-3 --beta1 0 --beta2 0.99");
    place.run(&format!("{run} --steps 20 --out whole"));
    place.run(&format!("{run} --steps 10 --out parts"));
    place.run("--resume --steps 20 --log-every 1 --out parts");
    assert_eq!(place.sae_bytes("whole"), place.sae_bytes("parts"));
    let adam = &json(&place.path("whole/config.json"))["settings"]["step"]["adam"];
    assert_eq!((&adam["beta1"], &adam["beta2"]), (&0.0.into(), &0.99.into()));
    // In the first step Adam divides the betas out again; from the second on they count.
    place.run(&format!("{SMALL} --lr 1e-3 --steps 3 --out default"));
    let loss = |run: &str, step: usize| place.metrics(run)[step - 1]["loss"].clone();
    assert_eq!(loss("whole", 1), loss("default", 1));
    assert_ne!(loss("whole", 3), loss("default", 3));
    let told = place.fail("--resume --out parts --beta1 0.9");
    assert!(told.contains("adam.beta1 is 0.0 there and 0.9 here"), "{told}");
}

#[test]
fn a_run_starts_from_the_weights_it_was_asked_to() {
    let place = Place::new();
    let start = |flags: &str, out: &str| {
        place.run(&format!("{SMALL} --steps 1 --lr 1e-12 --decoder-norm free {flags} --out {out}"));
        Sae::load(&place.path(out).join("sae")).unwrap().weights
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
    assert!(close(start("", "default").decoder_norm_mean(), 1.0));
    let tenth = start("--decoder-init-norm 0.1 --encoder-init transpose --encoder-init-scale 3", "tenth");
    assert!(close(tenth.decoder_norm_mean(), 0.1));
    for (encoder, decoder) in tenth.w_enc.iter().zip(tenth.w_dec.t()) {
        assert!((encoder - 3.0 * decoder).abs() < 1e-6);
    }
    let drawn = start("--decoder-init-norm free", "drawn").decoder_norm_mean();
    assert!((1.3..1.5).contains(&drawn), "{drawn}");
    // Normalised in the first step.
    let tied = start("--decoder-init-norm 0.1", "free");
    place
        .run(&format!("{SMALL} --steps 1 --lr 1e-12 --decoder-init-norm 0.1 --decoder-norm tied --out tied"));
    let scaled = Sae::load(&place.path("tied/sae")).unwrap().weights;
    assert!(close(scaled.decoder_norm_mean(), 1.0));
    assert!(scaled.w_enc.iter().zip(&tied.w_enc).all(|(scaled, free)| (10.0 * scaled - free).abs() < 1e-5));

    let output =
        place.command("--store store --init-from tenth/sae --encoder-init transpose").output().unwrap();
    assert!(text(&output.stderr).contains("cannot be used with"), "{}", text(&output.stderr));
    let told = place.fail("--resume --out tenth --decoder-init-norm free");
    assert!(told.contains("init.decoder_norm is 0.1 there and null here"), "{told}");
}
