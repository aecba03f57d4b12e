//! What a run can be told about how it trains: schedules, optimizer, initial weights.

use activation_store::RowType;
use ndarray::Array2;
use sae::{InputScale, Sae};

use crate::fixture::{Place, WIDTH, flip, json, mixtures, text, write_store};

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

#[test]
fn each_feature_fires_on_the_share_of_the_rows_asked_for() {
    let place = Place::new();
    // All rows are in the sample, and the evaluation is of all.
    let run = format!("{SMALL} --held-out 0 --steps 1 --lr 1e-12");
    for (flags, l0) in [
        ("--b-enc-init 0.25", 16.0),
        ("--b-enc-init 8 --activation jump-relu --threshold-init 0.5 --mse sum", 8.0),
        ("--b-enc-init 0.5 --pre-bias --b-dec-init mean --input-scale mean-square", 32.0),
    ] {
        let out = format!("l0-{l0}");
        place.run(&format!("{run} {flags} --out {out}"));
        let summary = json(&place.path(&format!("{out}/summary.json")));
        let found = summary["evaluation"]["l0"].as_f64().unwrap();
        // Rounding may decide about a row or two of a feature.
        assert!((found - l0).abs() < 0.05, "{flags}: {found}");
    }
    let output = place.command("--store store --init-from l0-16/sae --b-enc-init 0.1").output().unwrap();
    assert!(text(&output.stderr).contains("cannot be used with"), "{}", text(&output.stderr));
    let told = place.fail("--resume --out l0-16 --b-enc-init 0.5");
    assert!(told.contains("b_enc_init is 0.25 there and 0.5 here"), "{told}");
}

#[test]
fn a_schedule_can_be_told_in_shares_of_the_run() {
    let place = Place::new();
    let run =
        format!("{SMALL} --lr 1e-3 --lr-decay-steps 20% --coefficient-warmup-steps 100% --warmup-steps 2");
    place.run(&format!("{run} --steps 10 --out whole"));
    let config = json(&place.path("whole/config.json"));
    assert_eq!(config["arguments"]["lr_decay_steps"], "20%");
    let settings = &config["settings"];
    assert_eq!((&settings["lr_decay_steps"], &settings["coefficient_warmup_steps"]), (&2.into(), &10.into()));
    let scales: Vec<f64> =
        place.metrics("whole").iter().filter_map(|line| line["coefficient_scale"].as_f64()).collect();
    assert_eq!(scales, (1..=10).map(|step| f64::from(step) / 10.0).collect::<Vec<_>>());
    let told = place.fail("--resume --out whole --steps 20");
    assert!(told.contains("coefficient_warmup_steps is 10 there and 20 here"), "{told}");
    // The file that it is printed as means the same.
    let printed = text(&place.run(&format!("{run} --steps 10 --print-config")).stdout);
    assert!(printed.contains("lr-decay-steps = \"20%\"\n"), "{printed}");
    std::fs::write(place.path("printed.toml"), &printed).unwrap();
    place.run("--config printed.toml --out again");
    assert_eq!(place.sae_bytes("again"), place.sae_bytes("whole"));
}

#[test]
fn the_recipes_for_jump_relu_train_and_are_resumed() {
    let place = Place::new();
    for (preset, flags, loss) in [
        (
            "anthropic-2025",
            "--encoder-init-scale 0.25 --b-enc-init 0.3 --tanh-coefficient 0.01",
            "jump-relu-tanh",
        ),
        ("gemma-scope-2", "--target-l0 4", "matryoshka-jump-relu-quadratic"),
        ("dictionary-learning-jump-relu", "--target-l0 4", "jump-relu-mean-quadratic"),
    ] {
        let run = format!("{SMALL} --preset {preset} {flags} --lr 1e-3 --steps 30");
        place.run(&format!("{run} --out {preset}"));
        assert_eq!(json(&place.path(&format!("{preset}/summary.json")))["loss"], loss);
        let line = |step: usize, name: &str| place.metrics(preset)[step - 1][name].as_f64().unwrap();
        assert!(line(30, "mse") < line(1, "mse"), "{preset}: {} {}", line(1, "mse"), line(30, "mse"));
        place.run(&format!("{run} --checkpoint-every 10 --out straight"));
        assert_eq!(place.sae_bytes("straight"), place.sae_bytes(preset), "{preset}");
        std::fs::remove_dir_all(place.path("straight/checkpoints/step-00000030")).unwrap();
        place.run("--resume --log-every 1 --out straight");
        assert_eq!(place.sae_bytes("straight"), place.sae_bytes(preset), "{preset}, resumed");
        std::fs::remove_dir_all(place.path("straight")).unwrap();
    }
}

#[test]
fn a_preset_a_file_and_flags_make_one_run() {
    let place = Place::new();
    let file = "lr = 1e-3\nbatch = 128\nlog-every = 1\nout = \"run\"\nstore = \"store\"\n";
    std::fs::write(place.path("f.toml"), file).unwrap();
    let line = "--preset l1-reference --config f.toml --features 64 --steps 5 --device cpu";
    let printed = text(&place.run(&format!("{line} --print-config")).stdout);
    assert!(printed.contains("l1-coefficient = 8e-5\n") && printed.contains("lr = 1e-3\n"), "{printed}");
    assert!(!place.path("run").exists());
    place.run(line);
    let config = json(&place.path("run/config.json"));
    let arguments = &config["arguments"];
    assert_eq!((&arguments["l1_coefficient"], &arguments["lr"]), (&8e-5.into(), &1e-3.into()));
    assert_eq!((&arguments["features"], &arguments["expansion"]), (&64.into(), &serde_json::Value::Null));
    assert!(config["command_line"].as_str().unwrap().ends_with(line));

    // What was printed is the same run.
    std::fs::write(place.path("printed.toml"), &printed).unwrap();
    place.run("--config printed.toml --out again");
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("again"));
    assert_eq!(json(&place.path("again/config.json"))["arguments"], *arguments);
    assert_eq!(text(&place.run("--config printed.toml --print-config").stdout), printed);
    // It is continued without its file, or with it.
    place.run("--resume --out run --steps 7");
    place.run("--resume --config f.toml --steps 9");
    assert_eq!(place.metrics("run").last().unwrap()["step"], 9);

    std::fs::write(place.path("bad.toml"), "# mine\nl1_coefficient = 8e-5\n").unwrap();
    let told = place.fail("--config bad.toml");
    let expected = "bad.toml, line 2: there is no flag --l1_coefficient; did you mean l1-coefficient?";
    assert!(told.contains(expected), "{told}");
    let told = place.fail("--preset post --l1-coefficient 1e-3 --print-config");
    assert!(told.contains("--l1-coefficient has no effect with --loss approx-l0"), "{told}");
    let unknown = place.command("--preset l1-refrence").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("l1-reference"), "{}", text(&unknown.stderr));
    let help = text(&place.run("--help").stdout);
    assert!(help.contains("- post:") && help.contains("- l1-reference:"), "{help}");
}

#[test]
fn a_sweep_takes_its_lists_from_a_file() {
    let place = Place::new();
    let file = "l0-coefficient = [5e-5, 7e-5]\nepsilon = [[0.2], [0.2, 0.1]]\nbatch = 128\nfeatures = 64\n\
                store = \"store\"\nsteps = 3\n";
    std::fs::write(place.path("f.toml"), file).unwrap();
    place.run("sweep --config f.toml --preset post --out sweep");
    let points: Vec<String> = ["l0-coefficient-5e-5", "l0-coefficient-7e-5"]
        .iter()
        .flat_map(|coefficient| {
            ["0.2", "0.2,0.1"].map(|epsilon| format!("sweep/{coefficient}_epsilon-{epsilon}"))
        })
        .collect();
    for point in &points {
        let config = json(&place.path(point).join("config.json"));
        assert_eq!(config["settings"]["init"]["decoder_norm"], serde_json::Value::Null, "{point}");
    }
    let printed = text(&place.run("sweep --config f.toml --preset post --print-config").stdout);
    assert!(printed.contains("epsilon = [[0.2], [0.2, 0.1]]\n"), "{printed}");
    std::fs::write(place.path("printed.toml"), &printed).unwrap();
    place.run("sweep --config printed.toml --out again");
    for point in &points {
        assert_eq!(place.sae_bytes(point), place.sae_bytes(&point.replace("sweep/", "again/")), "{point}");
    }
    let told = place.fail("--config f.toml");
    assert!(
        told.contains("f.toml, line 1: l0-coefficient takes one value; only sae-trainer sweep"),
        "{told}"
    );
}

/// The steps and scalars of an event file, taken apart by the format's definition alone.
fn events(path: &std::path::Path) -> Vec<(u64, Vec<(String, f32)>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }
    /// The fields of a message: number, and content, of integers the value.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }
    let bytes = std::fs::read(path).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = fields(&bytes[at + 12..at + 12 + length]);
        at += length + 16;
        let field =
            |number: u64| event.iter().find(|(of, _)| *of == number).map(|(_, content)| content.clone());
        let Some(summary) = field(5) else { continue };
        let scalars = fields(&summary).into_iter().map(|(_, value)| {
            let value = fields(&value);
            (text(&value[0].1), f32::from_le_bytes(value[1].1[..].try_into().unwrap()))
        });
        found.push((u64::from_le_bytes(field(2).unwrap().try_into().unwrap()), scalars.collect()));
    }
    found
}

/// What the event file of `run` has to hold: the scalars of its log, without times.
fn assert_events_are_the_log(place: &Place, run: &str) {
    let timeless = |(name, _): &(String, f32)| !name.contains("timing/");
    let path = place.path(run).join("tensorboard/events.out.tfevents.sae-trainer");
    let found: Vec<_> = events(&path)
        .into_iter()
        .map(|(step, scalars)| (step, scalars.into_iter().filter(timeless).collect::<Vec<_>>()))
        .collect();
    let expected: Vec<_> = place
        .metrics(run)
        .iter()
        .map(|line| {
            let kind = if line["kind"] == "step" {
                String::new()
            } else {
                format!("{}/", line["kind"].as_str().unwrap())
            };
            let mut scalars = Vec::new();
            for (name, value) in line.as_object().unwrap() {
                if let (Some(number), true) = (value.as_f64(), name != "step") {
                    scalars.push((format!("{kind}{name}"), number as f32));
                }
                if let Some(histogram) = value.as_object() {
                    for part in ["bin_width", "lowest"] {
                        scalars
                            .push((format!("{kind}{name}/{part}"), histogram[part].as_f64().unwrap() as f32));
                    }
                }
            }
            (line["step"].as_u64().unwrap(), scalars)
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn tensorboard_sees_what_the_log_says_however_often_a_run_stops() {
    let place = Place::new();
    let run = format!("{SMALL} --revive resample --revive-every 3 --tensorboard");
    place.run(&format!("{run} --steps 5 --out run"));
    assert_events_are_the_log(&place, "run");
    assert!(place.metrics("run").iter().any(|line| line["kind"] == "resample"));
    // The evaluation of a run that goes on is forgotten; the flag need not be repeated.
    place.run("--resume --steps 8 --log-every 1 --out run");
    assert_events_are_the_log(&place, "run");
    assert_eq!(place.metrics("run").iter().filter(|line| line["kind"] == "evaluation").count(), 1);
    // Half a record, as a kill leaves it.
    let path = place.path("run/tensorboard/events.out.tfevents.sae-trainer");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    place.run("--resume --steps 9 --log-every 1 --out run");
    assert_events_are_the_log(&place, "run");
    let verified = text(&place.run("verify run").stdout);
    assert!(verified.contains("sound      run/tensorboard/events.out.tfevents.sae-trainer"), "{verified}");
    flip(&path, 8 * 60);
    assert!(text(&place.command("verify run").output().unwrap().stdout).contains("record at byte 40"));
    place.run("--resume --steps 10 --log-every 1 --out run");
    assert_events_are_the_log(&place, "run");
    // A run without it gets it later, and not unasked.
    place.run(&format!("{SMALL} --steps 3 --out plain"));
    assert!(!place.path("plain/tensorboard").exists());
    place.run("--resume --steps 4 --log-every 1 --tensorboard --out plain");
    assert_events_are_the_log(&place, "plain");
}

#[test]
fn a_run_on_scaled_rows_is_the_run_on_a_store_of_scaled_rows() {
    let place = Place::new();
    // All rows, so that their mean norm is known.
    let run = "--features 64 --batch 128 --lr 3e-3 --log-every 10 --steps 60 --pre-bias --b-dec-init mean \
               --held-out 0";
    let rows = Array2::from_shape_vec((4096, WIDTH), mixtures(512, 1)).unwrap();
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = rows.rows().into_iter().map(|row| norm(row.as_slice().unwrap())).collect();
    for kind in ["mean-norm", "row-norm"] {
        place.run(&format!("{run} --store store --input-scale {kind} --out {kind}"));
        let checkpoint = Sae::load(&place.path(kind).join("checkpoints/step-00000060")).unwrap();
        let scale = checkpoint.config.input_scale().unwrap();
        match scale {
            InputScale::Factor(factor) => {
                let expected = 4.0 / (norms.iter().sum::<f64>() / 4096.0);
                assert!(
                    kind == "mean-norm" && (factor / expected - 1.0).abs() < 1e-12,
                    "{factor}, {expected}"
                );
            }
            other => assert_eq!((kind, other), ("row-norm", InputScale::RowNorm)),
        }
        let mut scaled = rows.clone();
        for mut row in scaled.rows_mut() {
            let factor = scale.of_row(row.view());
            row.mapv_inplace(|x| x * factor);
        }
        let (store, alone) = (format!("{kind}-store"), format!("{kind}-alone"));
        write_store(&place.path(&store), WIDTH, scaled.as_slice().unwrap(), RowType::F32);
        place.run(&format!("{run} --store {store} --out {alone}"));
        assert_eq!(place.metrics(kind), place.metrics(&alone));
        let expected = Sae::load(&place.path(&alone).join("sae")).unwrap();
        assert_eq!(checkpoint.weights, expected.weights);

        // What a user gets is for rows as they are.
        let sae = Sae::load(&place.path(kind).join("sae")).unwrap();
        let features = sae.encode(rows.view());
        let apart = (&features - &expected.encode(scaled.view())).fold(0.0_f32, |far, x| far.max(x.abs()));
        assert!(apart < 1e-4, "{apart}");
        let normalization = if kind == "mean-norm" { "none" } else { "constant_norm_rescale" };
        assert_eq!(sae.config.normalize_activations, normalization);
    }
}

#[test]
fn a_run_on_scaled_rows_resumes_and_serves_as_a_start() {
    let place = Place::new();
    for kind in ["mean-norm", "row-norm"] {
        let run = format!("{SMALL} --lr 3e-3 --input-scale {kind}");
        place.run(&format!("{run} --steps 20 --out {kind}"));
        place.run(&format!("{run} --steps 10 --out {kind}-parts"));
        place.run(&format!("--resume --steps 20 --log-every 1 --out {kind}-parts"));
        assert_eq!(place.sae_bytes(kind), place.sae_bytes(&format!("{kind}-parts")));
        assert_eq!(place.metrics(kind), place.metrics(&format!("{kind}-parts")));
    }
    // From the folded weights and from those of the checkpoint, on rows scaled again.
    let l0 = |run: &str| place.metrics(run).pop().unwrap()["l0"].as_f64().unwrap();
    for (at, from) in ["mean-norm/sae", "mean-norm/checkpoints/step-00000020"].iter().enumerate() {
        let start = "--store store --batch 128 --steps 1 --lr 1e-12 --input-scale mean-norm";
        place.run(&format!("{start} --init-from {from} --out start-{at}"));
        let (found, expected) = (l0(&format!("start-{at}")), l0("mean-norm"));
        // A z at zero may fall on either side of it.
        assert!((found - expected).abs() < 1e-2, "{found}, expected {expected}");
    }
    place.run("--store store --batch 128 --steps 1 --lr 1e-12 --init-from row-norm/sae --out start-row");
    assert_eq!(l0("start-row"), l0("row-norm"));
    assert_eq!(json(&place.path("start-row/config.json"))["settings"]["input_scale"], "row-norm");

    let told = place.fail("--store store --init-from row-norm/sae --input-scale none --out other");
    assert!(told.contains("--input-scale does not fit --init-from"), "{told}");
    let told = place.fail("--resume --out mean-norm --input-scale row-norm");
    assert!(told.contains("input_scale is \"mean-norm\" there and \"row-norm\" here"), "{told}");
    let sweep = place.command("sweep --store store --input-scale none,row-norm").output().unwrap();
    assert!(
        text(&sweep.stderr).contains("--input-scale takes one value in a sweep"),
        "{}",
        text(&sweep.stderr)
    );
    write_store(&place.path("zero"), WIDTH, &vec![0.0; 4096 * WIDTH], RowType::F32);
    let zeros = "--store zero --batch 128 --features 64 --input-scale mean-norm --held-out 0 --out zeros";
    let told = place.fail(zeros);
    assert!(told.contains("the mean norm of the first 4096 rows is 0"), "{told}");
}
