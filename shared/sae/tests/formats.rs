//! Autoencoders in other tools' files, made by the tools themselves: what is read of them computes what the tools do, what is written
//! is read back, and what is damaged is told. `tests/peers/make_tiny_autoencoders.py` makes the files.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
use sae::{
    Config, Error, Format, Given, InputScale, Metadata, Opened, Sae, Weights, export_file, export_into,
    format_of, open,
};
use safetensors::SafeTensors;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn opened(path: &Path) -> Opened {
    open(path, &Given::default()).unwrap_or_else(|error| panic!("{}: {}", path.display(), chain(&error)))
}

fn told(path: &Path) -> String {
    chain(&open(path, &Given::default()).unwrap_err())
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// Rows, features and reconstruction as the tool has them.
fn golden(folder: &Path) -> [Array2<f32>; 3] {
    let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    ["x", "features", "reconstruction"].map(|name| {
        let tensor = file.tensor(name).unwrap();
        let numbers =
            tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), numbers.collect()).unwrap()
    })
}

fn close(found: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>) -> bool {
    found.dim() == expected.dim()
        && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
}

/// That `sae` computes what the tool does, and that the test is about something.
fn check_golden(sae: &Sae, folder: &Path) {
    let [x, features, reconstruction] = golden(folder);
    let active = features.iter().filter(|a| **a > 0.0).count();
    assert!(active > 5 && active < features.len() - 5, "{active} active");
    assert!(close(sae.encode(x.view()).view(), features.view()), "{}", folder.display());
    assert!(close(sae.reconstruct(x.view()).view(), reconstruction.view()), "{}", folder.display());
}

const GOLDEN: [(&str, Format, &str); 12] = [
    ("dictionary_learning/standard", Format::DictionaryLearning, "standard"),
    ("dictionary_learning/standard_new", Format::DictionaryLearning, "standard"),
    ("dictionary_learning/topk", Format::DictionaryLearning, "topk"),
    ("dictionary_learning/batch_topk", Format::DictionaryLearning, "jumprelu"),
    ("dictionary_learning/matryoshka", Format::DictionaryLearning, "jumprelu"),
    ("dictionary_learning/jumprelu", Format::DictionaryLearning, "jumprelu"),
    ("sparsify/sae", Format::Sparsify, "topk"),
    ("sparsify/multi_topk", Format::Sparsify, "topk"),
    ("sparsify/transcoder", Format::Sparsify, "topk_transcoder"),
    ("sparsify/skip_transcoder", Format::Sparsify, "topk_skip_transcoder"),
    ("sae_lens/old", Format::SaeLens, "standard"),
    ("sae_lens/batchtopk_in_training", Format::SaeLens, "jumprelu"),
];

#[test]
fn what_is_read_computes_what_the_tool_computes() {
    for (name, format, architecture) in GOLDEN {
        let folder = data(name);
        let Opened { sae, format: found, .. } = opened(&folder);
        assert_eq!((found, &*sae.config.architecture), (format, architecture), "{name}");
        check_golden(&sae, &folder);
    }
}

#[test]
fn what_is_read_is_the_same_in_our_own_folder() {
    for (name, ..) in GOLDEN {
        let sae = opened(&data(name)).sae;
        let dir = tempfile::tempdir().unwrap();
        sae.save(dir.path()).unwrap();
        assert_eq!(Sae::load(dir.path()).unwrap(), sae, "{name}");
        let again = opened(dir.path());
        assert_eq!((again.sae, again.format, again.notes), (sae, Format::SaeLens, vec![]));
    }
}

#[test]
fn what_a_tool_wrote_is_written_back_as_it_was() {
    for (name, format, _) in GOLDEN.into_iter().filter(|(_, format, _)| *format != Format::SaeLens) {
        let sae = opened(&data(name)).sae;
        let dir = tempfile::tempdir().unwrap();
        export_into(&sae, format, dir.path()).unwrap();
        let again = opened(dir.path()).sae;
        check_golden(&again, &data(name));
        assert_eq!(again.config.architecture, sae.config.architecture);
        assert_eq!(again.weights, sae.weights, "{name}");
        let metadata = |sae: &Sae| sae.config.metadata.further.get("training_architecture_details").cloned();
        assert_eq!(metadata(&again), metadata(&sae));
    }
}

#[test]
fn the_weights_file_stands_for_its_folder() {
    for (name, format, file) in [
        ("sae_lens/old", Format::SaeLens, "sae_weights.safetensors"),
        ("sparsify/sae", Format::Sparsify, "sae.safetensors"),
        ("dictionary_learning/topk", Format::DictionaryLearning, "ae.pt"),
    ] {
        let path = data(name).join(file);
        assert_eq!(format_of(&path).unwrap(), Some(format));
        assert_eq!(opened(&path).sae, opened(&data(name)).sae);
    }
    assert_eq!(format_of(&data("sparsify")).unwrap(), None);
}

#[test]
fn the_training_of_a_batch_topk_autoencoder_is_remembered() {
    let further = opened(&data("dictionary_learning/matryoshka")).sae.config.metadata.further;
    assert_eq!(further["training_architecture"], "matryoshka_batchtopk");
    assert_eq!(
        further["training_architecture_details"].to_string(),
        r#"{"k":3,"matryoshka_widths":[3,6,12]}"#
    );
    let sae = opened(&data("dictionary_learning/batch_topk")).sae;
    assert_eq!(sae.config.metadata.further["training_architecture"], "batchtopk");
    let metadata = sae.config.metadata;
    assert_eq!(metadata.hook_name.as_deref(), Some("blocks.3.hook_resid_post"));
    assert_eq!(
        (metadata.model_name.as_deref(), metadata.context_size),
        (Some("EleutherAI/pythia-70m-deduped"), Some(128))
    );
}

#[test]
fn an_old_configuration_of_sae_lens_is_translated() {
    let Opened { sae, notes, .. } = opened(&data("sae_lens/old"));
    assert!(notes[0].contains("before version 6"), "{notes:?}");
    assert!(sae.config.apply_b_dec_to_input);
    assert_eq!((&*sae.config.dtype, &*sae.config.device), ("float32", "cpu"));
    let metadata = sae.config.metadata;
    assert_eq!(metadata.hook_name.as_deref(), Some("blocks.8.hook_resid_pre"));
    assert_eq!((metadata.prepend_bos, metadata.context_size), (Some(true), Some(128)));
    assert_eq!(metadata.sae_lens_version, "6.0.0");
}

/// A copy of the folder `name`, with another text in place of a text of its configuration.
fn changed(name: &str, config: &str, from: &str, to: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let text = fs::read_to_string(dir.path().join(config)).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(dir.path().join(config), text.replace(from, to)).unwrap();
    dir
}

#[test]
fn kinds_that_are_none_of_ours_are_refused_by_name() {
    let refused = |name, config, from, to, expected: &str| {
        let dir = changed(name, config, from, to);
        let told = told(dir.path());
        assert!(told.contains(expected), "{told}");
    };
    assert!(told(&data("dictionary_learning/gated")).contains("it is a GatedAutoEncoder"));
    let old = |from, to, expected| refused("sae_lens/old", "cfg.json", from, to, expected);
    old("\"relu\"", "\"tanh-relu\"", "its activation function is tanh-relu");
    old(
        "\"activation_fn_str\"",
        "\"architecture\": \"gated\", \"activation_fn_str\"",
        "`architecture` is \"gated\"",
    );
    old("hook_resid_pre", "attn.hook_z", "`reshape_activations` is \"hook_z\"");
    old(
        "\"normalize_activations\": false",
        "\"normalize_activations\": true",
        "\"expected_average_only_in\"",
    );
    let coder = |from, to, expected| refused("sparsify/sae", "cfg.json", from, to, expected);
    coder("\"topk\"", "\"groupmax\"", "`activation` is \"groupmax\"");
    coder("\"skip_connection\": false", "\"skip_connection\": true", "only transcoders can have one");
    coder("\"k\": 3", "\"k\": 13", "its k is 13, but it has 12 features");
    coder("\"d_in\": 4", "\"d_in\": 5", "`d_in` is 5");
    let dictionary =
        |from, to, expected| refused("dictionary_learning/topk", "config.json", from, to, expected);
    dictionary("\"dict_size\": 12", "\"dict_size\": 13", "says dict_size 13, but its tensors 12");
    dictionary("AutoEncoderTopK", "IdentityDict", "it is a IdentityDict");
}

#[test]
fn a_state_dict_alone_says_what_its_tensors_tell() {
    let alone = |name: &str, given: &Given| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ae_100.pt");
        fs::copy(data(name).join("ae.pt"), &file).unwrap();
        open(&file, given)
    };
    for name in ["standard", "standard_new", "matryoshka", "jumprelu"] {
        let folder = data("dictionary_learning").join(name);
        check_golden(&alone(&format!("dictionary_learning/{name}"), &Given::default()).unwrap().sae, &folder);
    }
    let told = alone("dictionary_learning/topk", &Given::default()).unwrap_err().to_string();
    assert!(told.contains("AutoEncoderTopK or a BatchTopKSAE") && told.contains("--k"), "{told}");
    let given = Given { k: Some(3), pre_bias: false };
    check_golden(&alone("dictionary_learning/topk", &given).unwrap().sae, &data("dictionary_learning/topk"));
    let told = alone("dictionary_learning/gated", &Given::default()).unwrap_err().to_string();
    assert!(told.contains("GatedAutoEncoder"), "{told}");
}

#[test]
fn files_of_torch_that_are_no_state_dict_are_refused() {
    assert!(told(&data("old.pt")).contains("torch before version 1.6"));
    let told = told(&data("module.pt"));
    assert!(
        told.contains("`dictionary_learning.dictionary.AutoEncoder`") && told.contains("state_dict()"),
        "{told}"
    );
}

fn sample(config: impl Fn(Config) -> Config) -> Sae {
    let mut weights = Weights::init(5, 7, 1);
    weights.b_enc.iter_mut().enumerate().for_each(|(i, b)| *b = i as f32 * 0.1 - 0.3);
    weights.b_dec.iter_mut().enumerate().for_each(|(i, b)| *b = 1.0 - i as f32 * 0.5);
    let metadata = Metadata { hook_name: Some("blocks.1.hook_resid_post".into()), ..Metadata::default() };
    let config = config(Config::standard(5, 7, false, metadata));
    weights.threshold = config.has_thresholds().then(|| (0..7).map(|i| 0.05 * i as f32).collect());
    weights.skip = config.has_skip().then(|| Array2::from_shape_fn((5, 5), |(k, l)| (5 * k + l) as f32));
    Sae { weights, config, log_sparsity: None }
}

fn rows() -> Array2<f32> {
    Array2::from_shape_fn((6, 5), |(i, k)| ((3 * i + 7 * k) % 11) as f32 / 5.0 - 1.0)
}

fn kinds() -> Vec<Sae> {
    let pre_bias = |config: Config| Config { apply_b_dec_to_input: true, ..config };
    vec![
        sample(|config| config),
        sample(pre_bias),
        sample(|config| config.topk(2)),
        sample(|config| pre_bias(config.topk(2)).ranked_by_decoder_norm(true)),
        sample(Config::jumprelu),
        sample(|config| pre_bias(config.jumprelu())),
        sample(|config| pre_bias(config.topk(2)).scaled(InputScale::Factor(0.5))),
        sample(|config| config.jumprelu().transcoder(true)),
        sample(|config| config.topk(2).transcoder(true)),
        sample(|config| config.topk(2).transcoder(false)),
    ]
}

#[test]
fn every_kind_is_exported_to_the_same_or_refused() {
    let mut written = Vec::new();
    for sae in kinds() {
        for format in [Format::SaeLens, Format::DictionaryLearning, Format::Sparsify, Format::Safetensors] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("sae.safetensors");
            let done = match format {
                Format::Safetensors => export_file(&sae, &file).map(|()| Vec::new()),
                _ => export_into(&sae, format, dir.path()),
            };
            match done {
                Ok(_) => {
                    let path = if format == Format::Safetensors { &file } else { dir.path() };
                    let again = opened(path);
                    assert_eq!(again.format, format);
                    let (x, kind) = (rows(), &sae.config.architecture);
                    let (found, expected) = (again.sae.encode(x.view()), sae.encode(x.view()));
                    assert!(expected.iter().any(|a| *a > 0.0));
                    assert!(
                        close(found.view(), expected.view()),
                        "{kind} by {}:\n{found}\n{expected}",
                        format.name()
                    );
                    let factor = sae.config.input_scale().unwrap().of_row(x.row(0));
                    let expected = sae.reconstruct(x.view()) / factor;
                    assert!(
                        close(again.sae.reconstruct(x.view()).view(), expected.view()),
                        "{kind} {}",
                        format.name()
                    );
                    written.push(format);
                }
                Err(Error::NotHeld { reason, .. }) => assert!(reason.contains("it is"), "{reason}"),
                Err(error) => panic!("{}", chain(&error)),
            }
        }
    }
    let count = |format| written.iter().filter(|of| **of == format).count();
    let counts =
        [Format::SaeLens, Format::DictionaryLearning, Format::Sparsify, Format::Safetensors].map(count);
    assert_eq!(counts, [8, 7, 5, 10]);
}

#[test]
fn rows_that_are_scaled_each_by_itself_are_for_sae_lens_alone() {
    let sae = sample(|config| config.topk(2).scaled(InputScale::RowNorm));
    let dir = tempfile::tempdir().unwrap();
    for format in [Format::DictionaryLearning, Format::Sparsify] {
        let told = export_into(&sae, format, dir.path()).unwrap_err().to_string();
        assert!(told.contains("scales each row"), "{told}");
    }
    let file = dir.path().join("sae.safetensors");
    assert!(export_file(&sae, &file).unwrap_err().to_string().contains("scales each row"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    export_into(&sae, Format::SaeLens, dir.path()).unwrap();
    assert_eq!(opened(dir.path()).sae.config.input_scale(), Some(InputScale::RowNorm));
}

/// A safetensors file of these tensors, their numbers counting up.
fn tensors(dir: &Path, named: &[(&str, &[usize])]) -> PathBuf {
    let path = dir.join("weights.safetensors");
    let numbers: Vec<Vec<u8>> = named
        .iter()
        .map(|(_, shape)| {
            (0..shape.iter().product()).flat_map(|i: usize| (i as f32 / 10.0).to_le_bytes()).collect()
        })
        .collect();
    let views = named.iter().zip(&numbers).map(|((name, shape), numbers)| {
        (
            *name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), numbers).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

#[test]
fn one_file_is_known_by_its_names_and_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let biases: [(&str, &[usize]); 2] = [("b_enc", &[3]), ("b_dec", &[2])];
    let read = |matrices: &[(&str, &[usize])], given: &Given| {
        open(&tensors(dir.path(), &[&biases[..], matrices].concat()), given).unwrap()
    };
    let none = Given::default();
    let plain = read(&[("W_enc", &[2, 3]), ("W_dec", &[3, 2])], &none);
    assert_eq!(plain.sae.config.architecture, "standard");
    assert!(plain.notes[0].contains("read as ReLU, for want of thresholds or a k"), "{:?}", plain.notes);
    // Turned round, each as its shape tells.
    let turned = read(&[("W_enc", &[3, 2]), ("W_dec", &[2, 3])], &none);
    assert_eq!(turned.sae.weights.w_enc[[0, 1]], 0.2);
    assert_eq!((plain.sae.weights.w_enc[[0, 1]], turned.sae.weights.w_dec[[1, 0]]), (0.1, 0.1));
    let given = Given { k: Some(2), pre_bias: true };
    let topk = read(&[("encoder.weight", &[3, 2]), ("decoder.weight", &[2, 3])], &given);
    assert_eq!((topk.sae.config.largest(), topk.sae.config.apply_b_dec_to_input), (Some(2), true));
    assert_eq!(topk.sae.weights, turned.sae.weights);
    let jumps = read(&[("W_enc", &[2, 3]), ("W_dec", &[3, 2]), ("threshold", &[])], &none);
    assert_eq!(jumps.sae.config.architecture, "jumprelu");

    // A square matrix is what its name says.
    let square = |encoder: &str| {
        let named: [(&str, &[usize]); 4] =
            [("b_enc", &[2]), ("b_dec", &[2]), (encoder, &[2, 2]), ("W_dec", &[2, 2])];
        opened(&tensors(dir.path(), &named)).sae.weights.w_enc[[0, 1]]
    };
    assert_eq!((square("W_enc"), square("encoder.weight")), (0.1, 0.2));
}

#[test]
fn a_file_of_other_tensors_says_what_it_lacks_or_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut named: Vec<(&str, &[usize])> = vec![("b_enc", &[3]), ("b_dec", &[2]), ("W_enc", &[2, 3])];
    let message = told(&tensors(dir.path(), &named));
    assert!(message.contains("no tensor W_dec or decoder.weight (it has: W_enc, b_dec, b_enc)"), "{message}");
    named.push(("W_dec", &[3, 2]));
    named.push(("r_mag", &[3]));
    assert!(told(&tensors(dir.path(), &named)).contains("a tensor `r_mag`"));
    named.pop();
    named[2].1 = &[3, 3];
    assert!(told(&tensors(dir.path(), &named)).contains("`W_enc` has shape [3, 3], expected [2, 3]"));
    named[0].1 = &[0];
    assert!(told(&tensors(dir.path(), &named)).contains("not that of a bias"));
    let text = dir.path().join("a.txt");
    fs::write(&text, "hello").unwrap();
    assert!(told(&text).contains("neither a safetensors file nor one of torch"));
    let given = Given { k: Some(2), pre_bias: false };
    let message = open(&data("sparsify/sae"), &given).unwrap_err().to_string();
    assert!(message.contains("leave --k and --pre-bias out"), "{message}");
}

#[test]
fn a_transcoder_of_a_set_is_read_with_the_hooks_of_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let named: [(&str, &[usize]); 6] = [
        ("W_enc", &[3, 2]),
        ("W_dec", &[3, 2]),
        ("b_enc", &[3]),
        ("b_dec", &[2]),
        ("W_skip", &[2, 2]),
        ("activation_function.threshold", &[3]),
    ];
    let layer = |n: usize| dir.path().join(format!("layer_{n}.safetensors"));
    fs::rename(tensors(dir.path(), &named), layer(5)).unwrap();
    let yaml = |activation: &str| {
        let hooks = "feature_input_hook: ln2.hook_normalized\nfeature_output_hook: \"hook_mlp_out\"";
        fs::write(dir.path().join("config.yaml"), format!("model_name: gpt2\n{hooks}\n{activation}\n"))
            .unwrap();
    };
    yaml("");
    let Sae { config, weights, .. } = opened(dir.path()).sae;
    assert_eq!(config.architecture, "jumprelu_skip_transcoder");
    assert_eq!(config.metadata.hook_name.as_deref(), Some("blocks.5.ln2.hook_normalized"));
    assert_eq!(config.metadata.further["hook_name_out"], "blocks.5.hook_mlp_out");
    assert_eq!(weights.w_enc[[0, 1]], 0.2);
    assert_eq!(weights.skip.unwrap()[[0, 1]], 0.1);
    yaml("activation: topk\nk: 2");
    let topk = opened(&layer(5));
    assert_eq!(
        (topk.sae.config.largest(), &*topk.sae.config.architecture),
        (Some(2), "topk_skip_transcoder")
    );
    assert!(topk.notes[0].contains("negative"), "{:?}", topk.notes);
    yaml("activation: gated");
    assert!(told(&layer(5)).contains("`activation: gated`"));
    fs::copy(layer(5), layer(6)).unwrap();
    assert!(told(dir.path()).contains("a set of 2 transcoders: name the file of one"));
}

#[test]
fn a_file_cut_or_changed_anywhere_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ae.pt");
    let sound = data("dictionary_learning/batch_topk");
    fs::copy(sound.join("config.json"), dir.path().join("config.json")).unwrap();
    let (whole, sae) = (fs::read(sound.join("ae.pt")).unwrap(), opened(&sound).sae);
    for at in (0..whole.len()).step_by(5) {
        fs::write(&file, &whole[..at]).unwrap();
        assert!(told(&file).contains("ae.pt"), "{at}");
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&file, bytes).unwrap();
        // Each file in the archive has a checksum, so that numbers are those that were written.
        if let Ok(found) = open(&file, &Given::default()) {
            assert_eq!(found.sae.weights, sae.weights, "byte {at}");
        }
    }
}
