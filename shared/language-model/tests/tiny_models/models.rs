//! The tiny models of `tests/data` and the library that runs them.

use std::path::{Path, PathBuf};

use language_model::{Checkpoint, HookPoint, Runtime, Site};
use ndarray::Array2;
use safetensors::SafeTensors;

pub(crate) const NAMES: [&str; 5] =
    ["gpt2", "gpt2-bare-f16-shards", "llama", "llama-bf16-rope-scaled", "gpt-neox"];

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub(crate) fn runtime() -> Runtime {
    Runtime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn all_hooks(checkpoint: &Checkpoint) -> Vec<HookPoint> {
    let layers = 0..checkpoint.config().layers;
    let hooks = layers.flat_map(|layer| Site::ALL.map(|site| HookPoint { layer, site }));
    hooks.filter(|hook| !checkpoint.config().parallel || hook.site != Site::ResidMid).collect()
}

/// A copy of a model that a test may damage.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    copy
}

/// What `transformers` computed: token ids `[contexts, length]`, each hook's rows, and what the model predicts.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn read(name: &str) -> Golden {
        Golden(std::fs::read(folder(name).join("golden.safetensors")).unwrap())
    }

    pub(crate) fn ids(&self) -> Array2<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let ids = file.tensor("ids").unwrap();
        let values = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        Array2::from_shape_vec((ids.shape()[0], ids.shape()[1]), values).unwrap()
    }

    pub(crate) fn rows(&self, hook: HookPoint) -> Vec<f32> {
        self.numbers(&hook.to_string())
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let rows = file.tensor(name).unwrap();
        rows.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The largest absolute difference; NaN counts as infinitely far.
pub(crate) fn worst_difference<'a>(
    found: impl IntoIterator<Item = &'a f32, IntoIter: ExactSizeIterator>,
    expected: impl IntoIterator<Item = &'a f32, IntoIter: ExactSizeIterator>,
) -> f32 {
    let (found, expected) = (found.into_iter(), expected.into_iter());
    assert_eq!(found.len(), expected.len());
    let differences = found.zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}
