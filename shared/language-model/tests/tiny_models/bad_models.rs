//! Models, hooks and inputs that cannot work, and the errors they produce.

use std::fs;
use std::path::Path;

use crate::models::{copy, folder, runtime};
use language_model::{
    Checkpoint, Device, Error, HookPoint, ModelPrecision, PrefixModel, Products, SessionOptions, Site,
    prefix_graph,
};
use ndarray::{ArrayView2, aview2};

fn open_error(folder: &Path) -> String {
    Checkpoint::open(folder).expect_err("it should not open").to_string()
}

fn graph_error(folder: &Path) -> Error {
    let checkpoint = Checkpoint::open(folder).unwrap();
    prefix_graph(&checkpoint, &[HookPoint::resid_pre(1)], false, ModelPrecision::Full)
        .expect_err("it should not build")
}

fn edit_config(folder: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_folder_that_is_missing_or_no_model_is_named() {
    assert_says(&open_error(Path::new("no/such/folder")), &["no/such/folder", "does not exist"]);
    let empty = tempfile::tempdir().unwrap();
    assert_says(&open_error(empty.path()), &["has no config.json"]);
    let no_weights = copy("gpt2");
    fs::remove_file(no_weights.path().join("model.safetensors")).unwrap();
    assert_says(
        &open_error(no_weights.path()),
        &["neither model.safetensors nor model.safetensors.index.json"],
    );
    let no_shard = copy("gpt2-bare-f16-shards");
    fs::remove_file(no_shard.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_says(
        &open_error(no_shard.path()),
        &["model-00002-of-00002.safetensors is missing", "put it there"],
    );
}

#[test]
fn a_truncated_file_is_found_on_opening_wherever_it_ends() {
    let model = copy("gpt2");
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_says(&open_error(model.path()), &["model.safetensors", "download or convert the model again"]);
    }
    let longer = [whole, vec![0]].concat();
    fs::write(&path, longer).unwrap();
    assert_says(&open_error(model.path()), &["the header describes", "truncated or damaged"]);
}

#[test]
fn a_damaged_header_is_found_on_opening() {
    let model = copy("gpt2");
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = String::from_utf8_lossy(&whole).find("\"shape\"").unwrap();
    for (position, byte) in [(7, 0xff), (8, b'x'), (header + 1, b'z')] {
        let mut damaged = whole.clone();
        damaged[position] = byte;
        fs::write(&path, damaged).unwrap();
        assert_says(&open_error(model.path()), &["model.safetensors"]);
    }
}

#[test]
fn an_unsupported_architecture_is_named_with_supported_ones() {
    let model = copy("gpt2");
    edit_config(model.path(), |config| config["model_type"] = "mamba".into());
    assert_says(&open_error(model.path()), &["config.json", "`mamba`", "gpt2, gpt_neox, llama"]);
}

#[test]
fn a_configuration_that_would_change_the_graph_is_refused() {
    let cases: [(&str, &str, serde_json::Value, &str); 8] = [
        ("gpt2", "activation_function", "tanhshrink".into(), "`tanhshrink` is not supported"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", true.into(), "1/sqrt(head width)"),
        ("gpt2", "n_head", 5.into(), "does not divide into 5 heads"),
        ("gpt2", "n_layer", 0.into(), "number of layers is 0"),
        ("llama", "num_key_value_heads", 3.into(), "cannot share 3 key/value heads"),
        (
            "llama",
            "rope_parameters",
            serde_json::json!({"rope_type": "longrope"}),
            "`longrope` is not supported",
        ),
        (
            "llama",
            "rope_parameters",
            serde_json::json!({"rope_type": "yarn", "factor": 2}),
            "original_max_position",
        ),
        (
            "gpt-neox",
            "rope_parameters",
            serde_json::json!({"partial_rotary_factor": 0.4}),
            "not 3 of 8 components",
        ),
    ];
    for (name, key, value, part) in cases {
        let model = copy(name);
        edit_config(model.path(), |config| config[key] = value.clone());
        assert_says(&open_error(model.path()), &["config.json", part]);
    }
    let model = copy("gpt2");
    fs::write(model.path().join("config.json"), "{ not json").unwrap();
    assert_says(&open_error(model.path()), &["config.json", "line 1"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let model = copy("gpt2");
    let path = model.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let name = "transformer.h.0.mlp.c_fc.bias";
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    bytes[at + name.len() - 1] = b'X';
    fs::write(&path, bytes).unwrap();
    let error = graph_error(model.path());
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == name), "{error}");
    assert_says(&error.to_string(), &[name, "missing"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let model = copy("llama");
    edit_config(model.path(), |config| config["intermediate_size"] = 24.into());
    let error = graph_error(model.path());
    assert_says(&error.to_string(), &["model.layers.0.mlp.gate_proj.weight", "[20, 12]", "[24, 12]"]);
}

#[test]
fn a_layer_out_of_range_is_refused_with_the_range() {
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let hook = HookPoint { layer: 2, site: Site::MlpOut };
    let error = prefix_graph(&checkpoint, &[hook], false, ModelPrecision::Full).unwrap_err();
    assert_says(&error.to_string(), &["blocks.2.hook_mlp_out", "layers 0 to 1"]);
    assert!(matches!(prefix_graph(&checkpoint, &[], false, ModelPrecision::Full), Err(Error::NoHooks)));
}

#[test]
fn a_site_that_a_parallel_block_does_not_have_is_refused() {
    let checkpoint = Checkpoint::open(&folder("gpt-neox")).unwrap();
    let hook = HookPoint { layer: 1, site: Site::ResidMid };
    let error = prefix_graph(&checkpoint, &[hook], false, ModelPrecision::Full).unwrap_err();
    assert_says(&error.to_string(), &["blocks.1.hook_resid_mid", "side by side", "resid_post"]);
}

#[test]
fn contexts_end_where_a_sliding_window_would_begin_to_slide() {
    let positions = |model_type: &str, keys: serde_json::Value| {
        let model = copy("llama");
        edit_config(model.path(), |config| {
            config["model_type"] = model_type.into();
            for (key, value) in keys.as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        Checkpoint::open(model.path()).unwrap().config().max_positions
    };
    use serde_json::json;
    assert_eq!(positions("llama", json!({"sliding_window": 5})), 16);
    assert_eq!(positions("mistral", json!({"sliding_window": 5})), 5);
    assert_eq!(positions("mistral", json!({"sliding_window": null, "max_position_embeddings": 9000})), 9000);
    assert_eq!(positions("mistral", json!({"max_position_embeddings": 9000})), 4096);
    assert_eq!(positions("qwen2", json!({"sliding_window": 5, "use_sliding_window": false})), 16);
    assert_eq!(positions("qwen2", json!({"sliding_window": 5, "use_sliding_window": true})), 5);
}

#[test]
fn unfit_ids_and_contexts_are_refused_before_the_model_runs() {
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let options = SessionOptions {
        device: Device::Cpu,
        threads: 1,
        center: false,
        precision: None,
        products: Products::Exact,
    };
    let model = PrefixModel::load(&runtime(), &checkpoint, &[HookPoint::resid_pre(1)], &options).unwrap();
    let message = |ids: ArrayView2<'_, i64>| model.run(ids).unwrap_err().to_string();
    assert_says(&message(aview2(&[[1; 13]])), &["13 tokens", "12 positions"]);
    assert_says(&message(aview2::<_, 3>(&[])), &["0 contexts of 3"]);
    assert_says(&message(aview2(&[[]; 2])), &["2 contexts of 0"]);
    assert_says(
        &message(aview2(&[[1, 2], [3, 37]])),
        &["token id 37", "context 1, position 1", "vocabulary of 37"],
    );
    assert_says(&message(aview2(&[[-1]])), &["token id -1"]);
    assert!(model.run(aview2(&[[1; 12]])).is_ok());
}

#[test]
fn the_hash_is_that_of_the_weights() {
    let hash = |folder: &Path| Checkpoint::open(folder).unwrap().hash().unwrap();
    let model = copy("gpt2");
    edit_config(model.path(), |config| config["comment"] = "not a weight".into());
    assert_eq!(hash(model.path()), hash(&folder("gpt2")));
    let path = model.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(hash(model.path()), hash(&folder("gpt2")));
    assert_eq!(hash(&folder("gpt2-bare-f16-shards")).len(), 64);
}

#[test]
fn weights_are_found_through_links_as_in_the_hub_cache() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/main"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (number, entry) in fs::read_dir(folder("gpt2-bare-f16-shards")).unwrap().enumerate() {
        let file = entry.unwrap().path();
        fs::copy(&file, blobs.join(number.to_string())).unwrap();
        let link = snapshot.join(file.file_name().unwrap());
        std::os::unix::fs::symlink(format!("../../blobs/{number}"), link).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    let options = SessionOptions {
        device: Device::Cpu,
        threads: 1,
        center: false,
        precision: None,
        products: Products::Exact,
    };
    let model = PrefixModel::load(&runtime(), &checkpoint, &[HookPoint::resid_pre(1)], &options).unwrap();
    assert!(model.run(aview2(&[[1, 2, 3]])).is_ok());
}

#[test]
fn an_index_names_no_file_outside_of_its_folder() {
    for name in
        ["/etc/passwd", "../secret.safetensors", "a/../../secret.safetensors", "link.safetensors", "", "."]
    {
        let outer = tempfile::tempdir().unwrap();
        let model = outer.path().join("model");
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(folder("gpt2-bare-f16-shards")).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(model.join("model-00002-of-00002.safetensors"), outer.path().join("secret.safetensors"))
            .unwrap();
        std::os::unix::fs::symlink("../secret.safetensors", model.join("link.safetensors")).unwrap();
        let index = model.join("model.safetensors.index.json");
        let text = fs::read_to_string(&index).unwrap();
        fs::write(&index, text.replace("model-00002-of-00002.safetensors", name)).unwrap();
        assert_says(&open_error(&model), &["model.safetensors.index.json names", name]);
    }
}

#[test]
fn a_width_that_no_weight_has_is_refused_early() {
    let model = copy("llama");
    edit_config(model.path(), |config| config["head_dim"] = 1_000_000_000.into());
    let error = graph_error(model.path());
    assert_says(&error.to_string(), &["q_proj.weight", "config.json asks for"]);
    assert!(resident() < 1 << 30, "{} bytes are in use", resident());
}

/// The most memory that this process ever had, where the system tells.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
fn numbers_of_which_no_angle_or_norm_can_be_made_are_refused() {
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "attention_factor": -1});
    let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 8});
    for (key, value, word) in [
        ("rope_theta", serde_json::json!(0), "rotary base"),
        ("rope_theta", serde_json::json!(-10000.0), "rotary base"),
        ("rope_parameters", yarn, "attention_factor: -1"),
        ("rope_parameters", llama3, "high_freq_factor: 4"),
        ("rms_norm_eps", serde_json::json!(-1e-5), "epsilon"),
        ("rms_norm_eps", serde_json::json!(1e300), "number out of range"),
    ] {
        let model = copy("llama");
        edit_config(model.path(), |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config[key] = value.clone();
        });
        assert_says(&open_error(model.path()), &["config.json", word]);
    }
}

#[test]
fn foreign_names_cannot_reach_a_terminal_unseen() {
    let model = copy("gpt2");
    edit_config(model.path(), |config| config["model_type"] = "g\u{1b}]0;pwned\u{7}\nerror: none".into());
    let message = open_error(model.path());
    assert!(!message.contains(['\u{1b}', '\u{7}', '\n']), "{message:?}");
    assert_says(&message, &["\\u001b", "\\n"]);
}
