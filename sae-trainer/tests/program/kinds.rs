//! Every kind of autoencoder on the command line: it trains, resumes after being killed, and is saved as what it is.

use std::time::Duration;

use sae::Sae;

use crate::fixture::{Place, json, lines, number, start, text, wait_for};

/// Flags of each kind, the name of its loss, and the architecture that SAELens knows it by.
const KINDS: [(&str, &str, &str); 11] = [
    ("--activation topk --k 4 --aux-k 8 --dead-rows 1k", "topk-4", "topk"),
    ("--activation batch-topk --k 4 --threshold-after 5", "batch-topk-4", "jumprelu"),
    (
        "--activation topk --k 4 --rank-by-decoder-norm --decoder-norm free --aux-k 8 --dead-rows 1k",
        "topk-4",
        "topk",
    ),
    (
        "--activation batch-topk --k 4 --rank-by-decoder-norm --decoder-norm free --decoder-init-norm free",
        "batch-topk-4",
        "jumprelu",
    ),
    ("--activation batch-topk --k 4 --matryoshka 0.125,0.5", "matryoshka-batch-topk-4", "jumprelu"),
    ("--activation jump-relu --mse sum --l0-coefficient 1e-2", "jump-relu-step", "jumprelu"),
    (
        "--activation jump-relu --loss quadratic --target-l0 6 --mse sum --l0-coefficient 1e-3 --bandwidth 0.2 \
         --jump-to-input --pre-activation-coefficient 1e-4 --dead-rows 1k",
        "jump-relu-quadratic",
        "jumprelu",
    ),
    (
        "--activation jump-relu --loss mean-quadratic --target-l0 6 --mse sum --l0-coefficient 1 --bandwidth 0.2",
        "jump-relu-mean-quadratic",
        "jumprelu",
    ),
    (
        "--loss l1 --mse sum --l1-coefficient 1e-2 --revive ghost --dead-rows 1k --pre-bias --clip-gradient 1",
        "l1",
        "standard",
    ),
    ("--matryoshka 8,32 --matryoshka-weight 0.5 --l0-coefficient 1e-2", "matryoshka-approx-l0", "standard"),
    ("--mean-density-coefficient 1e-2 --log-density-coefficient 1e-3 --loss tanh", "tanh", "standard"),
];

const RUN: &str = "--store store --features 64 --batch 128 --lr 3e-3 --log-every 9 --sparsity-window 25";

#[test]
fn every_kind_learns_and_is_saved_as_what_it_is() {
    let place = Place::new();
    for (number_of, (kind, name, architecture)) in KINDS.into_iter().enumerate() {
        let out = format!("run-{number_of}");
        let printed = place.run(&format!("{RUN} {kind} --steps 300 --out {out}"));
        let told = text(&printed.stdout);
        assert!(!told.contains(&format!("{name} 0 after")), "{told}");
        let summary = json(&place.path(&format!("{out}/summary.json")));
        assert_eq!(summary["loss"], name);
        let explained = number(&summary["evaluation"], "explained_variance");
        assert!(explained > 0.3, "{kind}: {explained}");
        let sae = Sae::load(&place.path(&format!("{out}/sae"))).unwrap();
        assert_eq!(sae.config.architecture, architecture, "{kind}");
        assert_eq!(sae.weights.threshold.is_some(), architecture == "jumprelu", "{kind}");
        if let Some(threshold) = &sae.weights.threshold {
            assert!(threshold.iter().all(|threshold| threshold.is_finite() && *threshold >= 0.0));
            assert!(threshold.iter().any(|threshold| *threshold > 0.0), "{kind}");
        }
        let metrics = place.metrics(&out);
        let first = number(&metrics[0], "loss");
        let last = number(&metrics[metrics.len() - 2], "loss");
        assert!(last < first, "{kind}: {first} {last}");
    }
}

#[test]
fn runs_of_every_kind_go_on_bit_for_bit_after_being_killed() {
    let place = Place::new();
    // Moments that no one chose: a kill lands in the middle of a step, a log line or a checkpoint.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut kills = 0;
    for (number_of, (kind, ..)) in KINDS.into_iter().enumerate() {
        let line = format!("{RUN} {kind} --steps 400 --checkpoint-every 40");
        let (straight, broken) = (format!("straight-{number_of}"), format!("broken-{number_of}"));
        place.run(&format!("{line} --out {straight}"));
        for _ in 0..3 {
            let mut child = start(&place, &format!("{line} --resume --out {broken}"));
            let metrics = place.path(&format!("{broken}/metrics.jsonl"));
            let before = lines(&metrics);
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let more = 1 + (random >> 33) as usize % 8;
            wait_for(&mut child, "some steps more", || lines(&metrics) > before + more);
            std::thread::sleep(Duration::from_micros(random >> 40 & 0x3fff));
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        place.run(&format!("{line} --resume --out {broken}"));
        assert_eq!(place.metrics(&broken), place.metrics(&straight), "{kind}");
        assert_eq!(place.sae_bytes(&broken), place.sae_bytes(&straight), "{kind}");
    }
    assert!(kills >= 20);
}

#[test]
fn contradictory_flags_are_refused_with_what_would_go() {
    let place = Place::new();
    for (flags, told) in [
        ("--bandwidth 0.1", "--bandwidth has no effect without --activation jump-relu"),
        ("--activation topk --k 4 --threshold-rate 0.1", "without --activation batch-topk"),
        ("--activation topk --k 4 --loss step", "--loss step needs --activation jump-relu"),
        ("--activation jump-relu --loss quadratic", "--target-l0"),
        ("--target-l0 5", "--target-l0 has no effect with --loss approx-l0"),
        ("--matryoshka 64", "narrower"),
        ("--matryoshka 32,8", "wider than the one before"),
        ("--matryoshka 0.5,x", "512 or 0.125"),
        ("--matryoshka-weight 2", "without --matryoshka"),
        ("--aux-coefficient 1", "without --aux-k"),
        ("--aux-k 4 --revive ghost", "--aux-k and --revive ghost"),
        ("--pre-activation-coefficient 1", "without --activation jump-relu"),
        ("--activation batch-topk --k 65", "at most the number of features"),
        ("--activation topk --k 4 --b-enc-init 0.1", "--b-enc-init has no effect with --activation topk"),
        ("--b-enc-init 10k", "asks for 10000 active features in a row, but there are 64"),
        ("--b-enc-init -1", "above 0, as in 0.2 or 7e-5, or zeros"),
        ("--rank-by-decoder-norm --decoder-norm free", "without --activation topk or batch-topk"),
        ("--rank-by-decoder-norm --activation topk --k 4", "without --decoder-norm free"),
        ("--activation jump-relu --loss mean-quadratic", "--loss mean-quadratic needs the L0 to aim at"),
        ("--loss mean-quadratic --target-l0 4", "--loss mean-quadratic needs --activation jump-relu"),
        (
            "--activation jump-relu --loss mean-quadratic --target-l0 4 --jump-to-input",
            "leave one of them out",
        ),
        ("--lr-decay-steps 120%", "at most 100%"),
        ("--warmup-steps x", "or a share, as in 20%"),
        ("--clip-gradient 0", "above 0"),
        ("--threshold-rate 2 --activation batch-topk --k 4", "at most 1"),
    ] {
        let output = place.command(&format!("{RUN} --steps 5 --out refused {flags}")).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{flags}");
        let complaint = text(&output.stderr);
        assert!(complaint.contains(told), "{flags}: {complaint}");
        assert!(!place.path("refused").exists(), "{flags}");
    }
}

#[test]
fn an_autoencoder_with_thresholds_goes_on_with_them() {
    let place = Place::new();
    place
        .run(&format!("{RUN} --activation jump-relu --mse sum --l0-coefficient 1e-2 --steps 50 --out first"));
    place.run("--store store --batch 128 --steps 1 --lr 1e-12 --mse sum --init-from first/sae --out second");
    let thresholds = |run: &str| Sae::load(&place.path(&format!("{run}/sae"))).unwrap().weights.threshold;
    assert_eq!(thresholds("second"), thresholds("first"));
    assert_eq!(json(&place.path("second/summary.json"))["loss"], "jump-relu-step");
    // Or as another kind.
    let relu = "--store store --batch 128 --steps 1 --lr 1e-12 --init-from first/sae --activation relu";
    place.run(&format!("{relu} --out third"));
    assert_eq!(thresholds("third"), None);
}

#[test]
fn ranks_by_decoder_norm_are_folded_into_what_is_saved() {
    let place = Place::new();
    let flags = "--rank-by-decoder-norm --decoder-norm free --decoder-init-norm free --input-scale mean-norm";
    for (kind, out) in [("topk", "topk"), ("batch-topk", "batch")] {
        place.run(&format!("{RUN} --activation {kind} --k 4 {flags} --steps 100 --out {out}"));
        let checkpoint = Sae::load(&place.path(out).join("checkpoints/step-00000100")).unwrap();
        let sae = Sae::load(&place.path(out).join("sae")).unwrap();
        let norms: Vec<f32> =
            checkpoint.weights.w_dec.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
        let (least, most) =
            norms.iter().fold((f32::MAX, 0.0_f32), |(a, b), norm| (a.min(*norm), b.max(*norm)));
        assert!(most > 1.05 * least, "{kind}: norms from {least} to {most}");
        assert_eq!(checkpoint.config.rescale_acts_by_decoder_norm, kind == "topk");
        assert!(!sae.config.rescale_acts_by_decoder_norm);
        match checkpoint.weights.threshold {
            None => {
                let scaled: Vec<f32> =
                    sae.weights.w_dec.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
                assert!(scaled.iter().all(|norm| (norm / scaled[0] - 1.0).abs() < 1e-5), "{scaled:?}");
            }
            // One threshold of what features are ranked by.
            Some(thresholds) => {
                let ranks: Vec<f32> = thresholds.iter().zip(&norms).map(|(a, b)| a * b).collect();
                assert!(ranks[0] > 0.0 && ranks.iter().all(|rank| (rank / ranks[0] - 1.0).abs() < 1e-5));
                assert_eq!(sae.weights.threshold.unwrap(), thresholds);
            }
        }
    }
}
