//! An autoencoder's folder: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.
//!
//! The format is SAELens' (its version 6); `SAE.load_from_disk` opens what [`Sae::save`] wrote.

use std::fs;
use std::path::Path;

use durable_files::CheckedFolder;
use ndarray::{ArrayViewD, aview1};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Config, Error, Sae, Weights};

/// The configuration.
pub const CONFIG_FILE: &str = "cfg.json";
/// `W_enc` [d, F], `b_enc` [F], `W_dec` [F, d], `b_dec` [d], with "jumprelu" `threshold` [F], with a skip connection `W_skip` [d, d].
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// `sparsity` [F]: log10(firing frequency + 1e-10). May be absent.
pub const SPARSITY_FILE: &str = "sparsity.safetensors";

impl Sae {
    /// Writes the folder `folder`: whole and synced to disk, or not at all. What was there is replaced. Checksums of the
    /// files lie beside them, see [`durable_files::write_sums`].
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        durable_files::replace_folder(folder, |new| {
            self.write_into(new)?;
            Ok(durable_files::write_sums(new)?)
        })
    }

    /// Writes the autoencoder's files into an existing folder, for callers that put more beside them.
    pub fn write_into(&self, folder: &Path) -> Result<(), Error> {
        self.weights.check_shapes()?;
        write_config(folder, &self.config)?;
        write_tensors(&folder.join(WEIGHTS_FILE), &self.weights.tensors())?;
        match &self.log_sparsity {
            Some(sparsity) => write_log_sparsity(folder, sparsity),
            None => Ok(()),
        }
    }

    /// Reads a folder of SAELens' format: one that [`Sae::save`] wrote, or one of SAELens' own with the
    /// standard, topk or jumprelu architecture in float32, or a transcoder's of the same. Checks names, types, shapes, that all numbers are finite, and the files'
    /// checksums if the folder has them.
    pub fn load(folder: &Path) -> Result<Sae, Error> {
        let files = CheckedFolder::open(folder)?;
        let config = parse_config(&folder.join(CONFIG_FILE), &files.read(CONFIG_FILE)?)?;
        let (d, f) = (config.d_in, config.d_sae);
        let path = folder.join(WEIGHTS_FILE);
        let bytes = files.read(WEIGHTS_FILE)?;
        let file = parse(&path, &bytes)?;
        let numbers = |name, shape: &[usize]| tensor(&path, &file, name, shape);
        let weights = Weights::from_numbers(d, f, config.optional(), numbers)?;
        let path = folder.join(SPARSITY_FILE);
        let log_sparsity = if files.has(SPARSITY_FILE) {
            let bytes = files.read(SPARSITY_FILE)?;
            Some(tensor(&path, &parse(&path, &bytes)?, "sparsity", &[f])?)
        } else {
            None
        };
        Ok(Sae { weights, config, log_sparsity })
    }
}

fn parse_config(path: &Path, text: &[u8]) -> Result<Config, Error> {
    let config: Config =
        serde_json::from_slice(text).map_err(|source| Error::Json { path: path.into(), source })?;
    check_config(path, &config)?;
    Ok(config)
}

/// Refuses what the configuration in the file `path` asks for and this crate does not compute.
pub(crate) fn check_config(path: &Path, config: &Config) -> Result<(), Error> {
    if config.activation() == "topk" && config.k.is_none_or(|k| k == 0 || k > config.d_sae) {
        let found = config.k.map_or("absent".to_owned(), |k| k.to_string());
        return Err(Error::Unsupported { path: path.into(), key: "k", expected: "1 to d_sae", found });
    }
    let shifted = config.apply_b_dec_to_input && config.is_transcoder();
    let known = matches!(config.activation(), "standard" | "topk" | "jumprelu");
    for (key, fits, expected, found) in [
        ("architecture", known, "standard", config.architecture.clone()),
        ("d_out", config.d_out.is_none_or(|d| d == config.d_in), "d_in", format!("{:?}", config.d_out)),
        // The bias is one of the target.
        ("apply_b_dec_to_input", !shifted, "false", shifted.to_string()),
        (
            "rescale_acts_by_decoder_norm",
            !config.rescale_acts_by_decoder_norm || config.activation() == "topk",
            "false",
            config.rescale_acts_by_decoder_norm.to_string(),
        ),
        // A factor that the file does not tell cannot be applied.
        (
            "normalize_activations",
            config.input_scale().is_some(),
            "none",
            config.normalize_activations.clone(),
        ),
        (
            "reshape_activations",
            config.reshape_activations == "none",
            "none",
            config.reshape_activations.clone(),
        ),
    ] {
        if !fits {
            return Err(Error::Unsupported { path: path.into(), key, expected, found });
        }
    }
    Ok(())
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Error> {
    SafeTensors::deserialize(bytes).map_err(|source| Error::Safetensors { path: path.into(), source })
}

/// One float32 tensor of an expected shape, all numbers finite.
fn tensor(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &'static str,
    shape: &[usize],
) -> Result<Vec<f32>, Error> {
    let path = || path.to_path_buf();
    let Ok(view) = file.tensor(name) else {
        let mut present = file.names();
        present.sort();
        return Err(Error::MissingTensor { path: path(), tensor: name, present: present.join(", ") });
    };
    if view.dtype() != Dtype::F32 {
        return Err(Error::Dtype { path: path(), tensor: name, found: format!("{:?}", view.dtype()) });
    }
    if view.shape() != shape {
        let (expected, found) = (shape.to_vec(), view.shape().to_vec());
        return Err(Error::Shape { path: path(), tensor: name, expected, found });
    }
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { path: path(), tensor: name, index, value: values[index] }),
        None => Ok(values),
    }
}

/// Writes the [`CONFIG_FILE`] of an autoencoder in `folder`.
///
/// # Errors
/// Those of the disk.
pub fn write_config(folder: &Path, config: &Config) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(config).expect("a configuration is plain data");
    let path = folder.join(CONFIG_FILE);
    fs::write(&path, text).map_err(Error::io("write", path))
}

/// Writes the [`SPARSITY_FILE`] of an autoencoder in `folder`: log10(firing frequency + 1e-10) of every feature, [F].
///
/// # Errors
/// Those of the disk.
pub fn write_log_sparsity(folder: &Path, log_sparsity: &[f32]) -> Result<(), Error> {
    write_tensors(&folder.join(SPARSITY_FILE), &[("sparsity", aview1(log_sparsity).into_dyn())])
}

/// Writes a safetensors file of these tensors, row-major.
///
/// # Errors
/// Those of the disk.
pub fn write_tensors(path: &Path, tensors: &[(&'static str, ArrayViewD<'_, f32>)]) -> Result<(), Error> {
    let error = |source| Error::Safetensors { path: path.into(), source };
    let row_major: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name, tensor.as_standard_layout())).collect();
    let mut views = Vec::new();
    for (name, tensor) in &row_major {
        let numbers = tensor.as_slice().expect("the layout is row-major");
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytemuck::cast_slice(numbers));
        views.push((*name, view.map_err(error)?));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|source| match source {
        safetensors::SafeTensorError::IoError(source) => Error::io("write", path)(source),
        source => error(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InputScale;
    use crate::Metadata;

    fn sample() -> Sae {
        let mut weights = Weights::init(5, 7, 1);
        weights.b_enc.iter_mut().enumerate().for_each(|(i, b)| *b = i as f32 * 0.1 - 0.3);
        weights.b_dec.iter_mut().enumerate().for_each(|(i, b)| *b = 1.0 - i as f32);
        let metadata = Metadata {
            model_name: Some("gpt2-small".into()),
            hook_name: Some("blocks.1.hook_resid_pre".into()),
            context_size: Some(128),
            prepend_bos: Some(true),
            ..Metadata::default()
        };
        let log_sparsity = Some((0..7).map(|i| -(i as f32)).collect());
        Sae { weights, config: Config::standard(5, 7, true, metadata), log_sparsity }
    }

    fn saved(sae: &Sae) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sae");
        sae.save(&folder).unwrap();
        (dir, folder)
    }

    /// A folder without checksums, as SAELens writes it.
    fn unchecked(sae: &Sae) -> (tempfile::TempDir, std::path::PathBuf) {
        let (dir, folder) = saved(sae);
        fs::remove_file(folder.join(durable_files::SUMS_FILE)).unwrap();
        (dir, folder)
    }

    fn rewrite_weights(folder: &Path, tensors: &[(&'static str, ArrayViewD<'_, f32>)]) -> String {
        write_tensors(&folder.join(WEIGHTS_FILE), tensors).unwrap();
        Sae::load(folder).unwrap_err().to_string()
    }

    #[test]
    fn what_is_loaded_is_what_was_saved() {
        let sae = sample();
        let (_dir, folder) = saved(&sae);
        assert_eq!(Sae::load(&folder).unwrap(), sae);
    }

    #[test]
    fn saving_twice_gives_the_same_bytes() {
        let (_dir, folder) = saved(&sample());
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let first = [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE].map(read);
        sample().save(&folder).unwrap();
        assert_eq!(first, [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE].map(read));
    }

    #[test]
    fn every_flipped_bit_of_a_saved_folder_is_found() {
        let (_dir, folder) = saved(&sample());
        for name in [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE] {
            let path = folder.join(name);
            let whole = fs::read(&path).unwrap();
            for bit in (0..8 * whole.len()).step_by(37) {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, bytes).unwrap();
                let error = Sae::load(&folder).unwrap_err();
                let told = error.to_string();
                assert!(told.contains(name) && told.contains("is damaged"), "{name}, bit {bit}: {told}");
            }
            fs::write(&path, whole).unwrap();
        }
        Sae::load(&folder).unwrap();
        fs::remove_file(folder.join(SPARSITY_FILE)).unwrap();
        assert!(Sae::load(&folder).is_err(), "a file that is gone is damage too");
    }

    #[cfg(unix)]
    #[test]
    fn all_files_may_be_read_by_whoever_may_read_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, folder) = saved(&sample());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o666;
        for name in [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE] {
            assert_eq!(mode(&folder.join(name)), mode(&folder), "{name}");
        }
    }

    #[test]
    fn keys_that_we_do_not_know_survive() {
        let mut sae = sample();
        sae.config.metadata.further.insert("residual_centred".into(), true.into());
        let (_dir, folder) = saved(&sae);
        assert_eq!(Sae::load(&folder).unwrap().config, sae.config);
    }

    #[test]
    fn a_missing_file_is_named() {
        let (_dir, folder) = saved(&sample());
        fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap();
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(
            message.starts_with("cannot read") && message.ends_with("sae/sae_weights.safetensors"),
            "{message}"
        );
    }

    #[test]
    fn a_cut_file_is_an_error_at_every_length() {
        let (_dir, folder) = unchecked(&sample());
        let path = folder.join(WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = Sae::load(&folder).unwrap_err();
            assert!(matches!(error, Error::Safetensors { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn missing_misshapen_and_nan_tensors_are_named() {
        let sae = sample();
        let (_dir, folder) = unchecked(&sae);
        let mut tensors = sae.weights.tensors().to_vec();
        let decoder = tensors.remove(2);
        let message = rewrite_weights(&folder, &tensors);
        assert!(message.ends_with("has no tensor `W_dec` (it has: W_enc, b_dec, b_enc)"), "{message}");
        let flipped = decoder.1.to_shape((5, 7)).unwrap();
        tensors.push(("W_dec", flipped.view().into_dyn()));
        let message = rewrite_weights(&folder, &tensors);
        assert!(message.ends_with("tensor `W_dec` has shape [5, 7], expected [7, 5]"), "{message}");
        let mut broken = decoder.1.to_owned();
        broken[[1, 4]] = f32::NAN;
        tensors.pop();
        tensors.push(("W_dec", broken.view()));
        let message = rewrite_weights(&folder, &tensors);
        assert!(
            message.ends_with("tensor `W_dec` holds NaN at index 9, expected finite numbers"),
            "{message}"
        );
    }

    #[test]
    fn half_precision_is_refused_with_the_remedy() {
        let (_dir, folder) = unchecked(&sample());
        let zeros = [0_u8; 2 * 35];
        let view = TensorView::new(Dtype::F16, vec![5, 7], &zeros).unwrap();
        safetensors::serialize_to_file([("W_enc", view)], None, &folder.join(WEIGHTS_FILE)).unwrap();
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(
            message.ends_with("tensor `W_enc` is F16, expected F32; save it as float32 first"),
            "{message}"
        );
    }

    #[test]
    fn other_architectures_are_refused() {
        let mut sae = sample();
        sae.config.architecture = "gated".into();
        let (_dir, folder) = saved(&sae);
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(message.contains("`architecture` is \"gated\", expected \"standard\""), "{message}");
    }

    #[test]
    fn a_scaling_is_read_where_it_can_be_applied() {
        let mut sae = sample();
        for scale in [InputScale::RowNorm, InputScale::Factor(0.3)] {
            sae.config = sae.config.scaled(scale);
            let (_dir, folder) = saved(&sae);
            assert_eq!(Sae::load(&folder).unwrap().config.input_scale(), Some(scale));
        }
        sae.config.metadata.further.clear();
        for normalization in ["expected_average_only_in", "layer_norm"] {
            sae.config.normalize_activations = normalization.into();
            let (_dir, folder) = saved(&sae);
            let message = Sae::load(&folder).unwrap_err().to_string();
            let expected = format!("`normalize_activations` is \"{normalization}\", expected \"none\"");
            assert!(message.contains(&expected), "{message}");
        }
    }

    #[test]
    fn a_topk_autoencoder_needs_its_k_and_others_ignore_one() {
        let mut sae = sample();
        sae.config = sae.config.topk(3);
        let (_dir, folder) = saved(&sae);
        assert_eq!(Sae::load(&folder).unwrap().config.largest(), Some(3));
        for (k, told) in [(None, "absent"), (Some(0), "0"), (Some(8), "8")] {
            sae.config.k = k;
            let (_dir, folder) = saved(&sae);
            let message = Sae::load(&folder).unwrap_err().to_string();
            assert!(message.contains(&format!("`k` is \"{told}\", expected \"1 to d_sae\"")), "{message}");
        }
        sae.config.architecture = "standard".into();
        let (_dir, folder) = saved(&sae);
        assert_eq!(Sae::load(&folder).unwrap().config.largest(), None);
    }

    #[test]
    fn a_jumprelu_autoencoder_has_thresholds() {
        let mut sae = sample();
        sae.config = sae.config.jumprelu();
        sae.weights.threshold = Some(vec![0.25; 7].into());
        let (_dir, folder) = saved(&sae);
        assert_eq!(Sae::load(&folder).unwrap(), sae);
        sae.weights.threshold = None;
        let (_dir, folder) = saved(&sae);
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(message.contains("has no tensor `threshold`"), "{message}");
    }

    #[test]
    fn transcoders_are_loaded_with_what_they_are_made_of() {
        let plain = sample().config;
        let kinds = [(plain.clone(), ""), (plain.clone().topk(3), "topk_"), (plain.jumprelu(), "jumprelu_")];
        for (config, prefix) in kinds {
            for skip in [false, true] {
                let mut sae = sample();
                sae.config = Config { apply_b_dec_to_input: false, ..config.clone() }.transcoder(skip);
                let name = if skip { "skip_transcoder" } else { "transcoder" };
                assert_eq!(sae.config.architecture, format!("{prefix}{name}"));
                let thresholds = sae.config.has_thresholds();
                sae.weights.threshold = thresholds.then(|| vec![0.25; 7].into());
                sae.weights.skip =
                    skip.then(|| ndarray::Array2::from_shape_fn((5, 5), |(k, l)| (5 * k + l) as f32));
                let (_dir, folder) = saved(&sae);
                let found = Sae::load(&folder).unwrap();
                assert_eq!((found.config.largest(), &found), (sae.config.k, &sae));
                if skip {
                    sae.weights.skip = None;
                    let (_dir, folder) = saved(&sae);
                    let message = Sae::load(&folder).unwrap_err().to_string();
                    assert!(message.contains("has no tensor `W_skip`"), "{message}");
                }
            }
        }
    }

    #[test]
    fn transcoders_of_other_shapes_are_refused() {
        let mut sae = sample();
        sae.config = sae.config.transcoder(false);
        let (_dir, folder) = saved(&sae);
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(message.contains("`apply_b_dec_to_input` is \"true\", expected \"false\""), "{message}");
        sae.config.apply_b_dec_to_input = false;
        sae.config.d_out = Some(6);
        let (_dir, folder) = saved(&sae);
        let message = Sae::load(&folder).unwrap_err().to_string();
        assert!(message.contains("`d_out` is") && message.contains("expected \"d_in\""), "{message}");
    }

    #[test]
    fn a_configuration_without_a_width_is_refused() {
        let (_dir, folder) = unchecked(&sample());
        fs::write(folder.join(CONFIG_FILE), "{\"d_sae\": 7}").unwrap();
        let error = Sae::load(&folder).unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
}
