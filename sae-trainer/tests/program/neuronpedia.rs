//! `sae-trainer export --to neuronpedia`: its files against each other and against the schema of an upload. The numbers are compared with numpy's in tests/peers/test_neuronpedia.py.

use std::fs;
use std::io::Read;
use std::path::Path;

use activation_store::RowType;
use flate2::read::GzDecoder;
use sae::{Config, Metadata, Sae, Weights};
use serde_json::{Value, json};

use crate::faults::{compile_library, count_of, with_faults};
use crate::fixture::{
    Place, WIDTH, copy, json as sealed, mixtures, signal, start, text, wait_for, write_store,
};
use crate::neuronpedia_server::{check, with_key};

pub(crate) const EXPORT: &str = "export sae --to neuronpedia --tokenizer tokenizer.json --out out";
const FEATURES: usize = 300;

/// A place with an autoencoder of 300 features, a hundred of which never fire, its index, and a tokenizer in which token 7 has no text.
pub(crate) fn indexed() -> Place {
    let place = Place::new();
    let words = ["<s>", "one", " two", "three", "four", "five", "six", ""];
    let vocabulary: Value = words
        .iter()
        .enumerate()
        .map(|(id, word)| (word.to_string(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<s>"},
    });
    fs::write(place.path("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut weights = Weights::init(WIDTH, FEATURES, 0);
    for feature in 0..FEATURES {
        weights.b_enc[feature] = if feature % 3 == 0 { -1e6 } else { -1.0 };
    }
    let metadata = Metadata { hook_name: Some("blocks.1.hook_resid_pre".into()), ..Metadata::default() };
    let config = Config::standard(WIDTH, FEATURES, false, metadata);
    Sae { weights, config, log_sparsity: None }.save(&place.path("sae")).unwrap();
    place.run("features sae --store store");
    place
}

fn parsed(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The lines of a compressed file.
fn unpacked(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    GzDecoder::new(&fs::read(path).unwrap()[..]).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn batch_files_have_the_fields_of_sae_dashboard() {
    let place = indexed();
    let told = text(&place.run(EXPORT).stderr);
    assert!(told.contains("gpt2-small/1-res-300 for Neuronpedia: out"), "{told}");
    assert!(told.contains("without --model") && told.contains("features never fire"), "{told}");
    let mut seen = 0;
    for number in 0..3 {
        let batch = parsed(&place.path(&format!("out/dashboard/batch-{number}.json")));
        let keys: Vec<&String> = batch.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["features", "layer", "model_id", "sae_id_suffix", "sae_set"]);
        assert_eq!((&batch["layer"], &batch["sae_set"]), (&json!(1), &json!("res-300")));
        for feature in batch["features"].as_array().unwrap() {
            assert_eq!(feature["feature_index"], seen);
            seen += 1;
            let mut keys: Vec<&str> = feature.as_object().unwrap().keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(
                keys,
                [
                    "activations",
                    "correlated_features_indices",
                    "correlated_features_l1",
                    "correlated_features_pearson",
                    "correlated_neurons_indices",
                    "correlated_neurons_l1",
                    "correlated_neurons_pearson",
                    "dataset",
                    "decoder_weights_dist",
                    "feature_index",
                    "frac_nonzero",
                    "freq_hist_data_bar_heights",
                    "freq_hist_data_bar_values",
                    "logits_hist_data_bar_heights",
                    "logits_hist_data_bar_values",
                    "n_prompts_total",
                    "n_tokens_in_prompt",
                    "neg_str",
                    "neg_values",
                    "neuron_alignment_indices",
                    "neuron_alignment_l1",
                    "neuron_alignment_values",
                    "pos_str",
                    "pos_values",
                    "vector",
                ]
            );
            assert_eq!(
                (&feature["n_prompts_total"], &feature["n_tokens_in_prompt"]),
                (&json!(512), &json!(8))
            );
            for activation in feature["activations"].as_array().unwrap() {
                assert_eq!(
                    activation["tokens"],
                    json!(["one", " two", "three", "four", "five", "six", "<|outofrange|>"])
                );
                let at = activation["qualifying_token_index"].as_u64().unwrap() as usize;
                let (value, least) = (activation["values"][at].as_f64(), activation["bin_min"].as_f64());
                assert!(value >= least, "it is in the interval that it was chosen for");
            }
        }
    }
    assert_eq!(seen, FEATURES);
    assert!(!place.path("out/dashboard/batch-3.json").exists());
}

#[test]
fn the_three_kinds_of_files_say_the_same() {
    let place = indexed();
    place.run(&format!(
        "{EXPORT} --model-id my-model --layer 4 --set mine --suffix l0-3 --creator me --features 200"
    ));
    let source = place.path("out/bulk/my-model/4-mine__l0-3");
    let line = |name: &str| parsed(&source.join(name));
    assert_eq!(line("release.jsonl")["name"], "mine");
    assert_eq!(line("model.jsonl")["id"], "my-model");
    assert_eq!(line("sourceset.jsonl")["name"], "mine");
    let of_source = line("source.jsonl");
    assert_eq!((&of_source["id"], &of_source["setName"]), (&json!("4-mine__l0-3"), &json!("mine")));
    assert_eq!((&of_source["num_prompts"], &of_source["dataset"]), (&json!(512), &json!("openwebtext")));

    let mut requests = Vec::new();
    for (path, bytes) in place.files("out/requests") {
        if path.extension().is_some_and(|ending| ending == "json") {
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            check(&body).unwrap();
            assert_eq!((&body["modelId"], &body["source"]), (&json!("my-model"), &json!("4-mine__l0-3")));
            requests.extend(body["features"].as_array().unwrap().clone());
        }
    }
    let mut requests = requests.into_iter();
    let (mut ids, mut dead) = (Vec::new(), 0);
    for number in 0..2 {
        let batch = parsed(&place.path(&format!("out/dashboard/batch-{number}.json")));
        let neurons = unpacked(&source.join(format!("features/batch-{number}.jsonl.gz")));
        let mut lines = unpacked(&source.join(format!("activations/batch-{number}.jsonl.gz"))).into_iter();
        let features = batch["features"].as_array().unwrap();
        assert_eq!(neurons.len(), features.len());
        for (feature, neuron) in features.iter().zip(&neurons) {
            let index = feature["feature_index"].as_u64().unwrap().to_string();
            assert_eq!((&neuron["index"], &neuron["layer"]), (&json!(index), &json!("4-mine__l0-3")));
            for (name, value) in feature.as_object().unwrap() {
                if neuron.get(name).is_some() && name != "vector" {
                    assert_eq!(&neuron[name], value, "{name}");
                }
            }
            let contexts = feature["activations"].as_array().unwrap();
            let mut maximum = 0.0_f64;
            for context in contexts {
                let line = lines.next().unwrap();
                assert_eq!((&line["index"], &line["tokens"]), (&json!(index), &context["tokens"]));
                assert_eq!(
                    (&line["values"], &line["binContains"]),
                    (&context["values"], &context["bin_contains"])
                );
                let values = line["values"].as_array().unwrap();
                let largest = line["maxValue"].as_f64().unwrap();
                assert!(values.iter().all(|value| value.as_f64().unwrap() <= largest));
                assert_eq!(
                    values[line["maxValueTokenIndex"].as_u64().unwrap() as usize].as_f64(),
                    Some(largest)
                );
                maximum = maximum.max(largest);
                ids.push(line["id"].as_str().unwrap().to_owned());
            }
            assert_eq!(neuron["maxActApprox"].as_f64(), Some(maximum));
            if contexts.is_empty() {
                dead += 1;
                continue;
            }
            let request = requests.next().unwrap();
            assert_eq!(
                (&request["index"], &request["density"]),
                (&feature["feature_index"], &feature["frac_nonzero"])
            );
            let sent = request["activations"].as_array().unwrap();
            assert_eq!(sent.len(), contexts.len());
            for (sent, context) in sent.iter().zip(contexts) {
                assert_eq!((&sent["tokens"], &sent["values"]), (&context["tokens"], &context["values"]));
                let top = context["bin_min"] == -1.0;
                assert_eq!(sent.get("quantileFraction").is_none(), top);
                assert!(top || sent["quantileMax"] == context["bin_max"]);
            }
        }
        assert!(lines.next().is_none());
    }
    assert!(requests.next().is_none() && dead >= 67, "{dead}");
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert!(ids.len() == count && count > 1000 && ids.iter().all(|id| id.len() == 25), "{count}");
}

#[test]
fn the_same_export_has_the_same_bytes_whatever_the_threads() {
    let place = indexed();
    place.run(&format!("{EXPORT}/a --threads 1").replace("out/a", "one"));
    place.run(&format!("{EXPORT}/b --threads 4").replace("out/b", "four"));
    let bytes = |name: &str| place.files(name).into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
    assert!(bytes("one") == bytes("four") && bytes("one").len() > 10);
}

#[test]
fn an_index_is_made_where_there_is_none() {
    let place = indexed();
    fs::remove_dir_all(place.path("sae/features")).unwrap();
    let told = place.fail(EXPORT);
    assert!(told.contains("no activation index in sae/features") && told.contains("--store"), "{told}");
    place.run(&format!("{EXPORT} --store store --tokens 1k --features 10"));
    assert_eq!(sealed(&place.path("sae/features/index.json"))["contexts"], 125);
    let batch = parsed(&place.path("out/dashboard/batch-0.json"));
    assert_eq!(
        (batch["features"].as_array().unwrap().len(), &batch["features"][0]["n_prompts_total"]),
        (10, &json!(125))
    );
}

#[test]
fn numbers_of_contexts_follow_the_flags() {
    let place = indexed();
    place.run(&format!("{EXPORT} --top 3 --intervals 2 --interval-contexts 1"));
    let batch = parsed(&place.path("out/dashboard/batch-0.json"));
    let all = batch["features"].as_array().unwrap();
    let counts =
        |of: &Value| of["activations"].as_array().unwrap().iter().filter(|of| of["bin_min"] == -1.0).count();
    let busiest = all
        .iter()
        .max_by(|a, b| a["frac_nonzero"].as_f64().unwrap().total_cmp(&b["frac_nonzero"].as_f64().unwrap()))
        .unwrap();
    assert_eq!((counts(busiest), busiest["activations"].as_array().unwrap().len()), (3, 5));
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let place = indexed();
    write_store(&place.path("other"), WIDTH, &mixtures(96, 1), RowType::F32);
    copy(&place.path("tokenizer.json"), &place.path("damaged.json"));
    fs::write(place.path("damaged.json"), "{").unwrap();
    let to = "export sae --to neuronpedia --out out";
    for (line, words) in [
        (to.to_owned(), "the texts of tokens are not known"),
        (format!("{to} --tokenizer nothing"), "nothing"),
        (format!("{to} --tokenizer damaged.json"), "damaged.json"),
        (format!("{EXPORT} --store nothing"), "nothing"),
        (format!("{EXPORT} --store other"), "not of other"),
        (format!("{EXPORT} --store store --tokens 1k"), "--tokens has no effect"),
        (format!("{EXPORT} --index nothing"), "no activation index in nothing"),
        (format!("{EXPORT} --set Res"), "source set"),
        (format!("{EXPORT} --model-id a/b"), "--model-id"),
        (format!("{EXPORT} --model nothing"), "nothing"),
        (format!("{EXPORT} --upload --server ftp://x"), "--server takes"),
        (format!("{EXPORT} --upload --server http://neuronpedia.org"), "--server takes"),
        (format!("{EXPORT} --upload --server http://localhost@evil.org"), "--server takes"),
        ("export sae sae --to neuronpedia --out out".to_owned(), "one autoencoder"),
        ("export sae --to sae-lens --features 5 --out out".to_owned(), "weights alone"),
    ] {
        let told = place.fail(&line);
        assert!(told.contains(words), "{line}: {told}");
        assert!(!place.path("out").exists() && !place.path(".out.unfinished").exists(), "{line}");
    }
    let told =
        place.command(&format!("{EXPORT} --upload")).env_remove("NEURONPEDIA_API_KEY").output().unwrap();
    assert!(text(&told.stderr).contains("NEURONPEDIA_API_KEY"), "{}", text(&told.stderr));
    let told =
        place.command(&format!("{EXPORT} --upload")).env("NEURONPEDIA_API_KEY", "a\u{1b}b").output().unwrap();
    assert!(text(&told.stderr).contains("characters that no key has"), "{}", text(&told.stderr));
    assert!(!place.path("out").exists());

    // What is there is not touched, nor sent if it is something else.
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/mine"), "mine").unwrap();
    assert!(place.fail(EXPORT).contains("out exists"));
    let output = with_key(&place, &format!("{EXPORT} --upload --server http://127.0.0.1:1"));
    assert!(text(&output.stderr).contains("is no export for Neuronpedia"), "{}", text(&output.stderr));
    fs::remove_dir_all(place.path("out")).unwrap();
    place.run(EXPORT);
    let output = with_key(&place, &format!("{EXPORT} --set another --upload --server http://127.0.0.1:1"));
    assert!(
        text(&output.stderr).contains("under other names: gpt2-small/1-res-300"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_disk_without_room_leaves_no_half_an_export() {
    let place = indexed();
    compile_library(&place);
    let line = &format!("{EXPORT} --features 4 --threads 1");
    for call in ["write", "mkdir"] {
        let count = count_of(&place, call, line);
        fs::remove_dir_all(place.path("out")).unwrap();
        for at in 1..=count {
            let output = with_faults(&place, line, &[("FAULT_CALL", call), ("FAULT_AT", &at.to_string())]);
            let told = text(&output.stderr);
            if output.status.success() {
                fs::remove_dir_all(place.path("out")).unwrap();
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{call} {at}: {told}");
            assert!(told.contains("No space left on device"), "{call} {at}: {told}");
            assert!(!place.path("out").exists() && !place.path(".out.unfinished").exists(), "{call} {at}");
        }
    }
}

#[test]
fn an_interrupt_leaves_no_half_an_export() {
    let place = indexed();
    write_store(&place.path("large"), WIDTH, &mixtures(4_000, 1), RowType::F16);
    let config = Config::standard(WIDTH, 4096, false, Metadata::default());
    let mut weights = Weights::init(WIDTH, 4096, 0);
    // Few of them fire in a row, as of one that was trained.
    weights.b_enc.fill(-3.0);
    Sae { weights, config, log_sparsity: None }.save(&place.path("wide")).unwrap();
    place.run("features wide --store large");
    let mut child = start(&place, &format!("{} --threads 1", EXPORT.replace("sae --to", "wide --to")));
    let first = place.path(".out.unfinished/content/dashboard/batch-0.json");
    wait_for(&mut child, "the first features", || first.exists());
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nothing was kept"), "{}", text(&output.stderr));
    assert!(!place.path("out").exists() && !place.path(".out.unfinished").exists());
}
