//! Everything that reads untrusted files, as functions of their bytes, for fuzzers and for one test.
//!
//! A target replaces one file of a sound folder (`fuzz/ground`) and reads the folder. Whatever the bytes are, reading ends
//! with a result or an error: it does not panic, hang or allocate without bound ([`BoundedMemory`]). Where a checksum would
//! reject almost every input, it is recomputed to fit, as an attacker would do.

mod forge;
mod ground;
mod memory;
mod read;

pub use ground::Ground;
pub use memory::BoundedMemory;

use std::path::Path;

/// A way for bytes from elsewhere into the programs.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// The file of the ground that the bytes replace.
    pub file: &'static str,
    forge: Option<fn(&Path, &str)>,
    read: fn(&Path),
}

const fn plain(name: &'static str, file: &'static str, read: fn(&Path)) -> Target {
    Target { name, file, forge: None, read }
}

const fn forged(name: &'static str, file: &'static str, forge: fn(&Path, &str)) -> Target {
    Target { name, file, forge: Some(forge), read: read::store }
}

/// All of them.
pub const TARGETS: [Target; 34] = [
    forged("store-metadata", "store/zarr.json", forge::manifest),
    forged("store-array", "store/activations/zarr.json", forge::manifest),
    forged("store-manifest", "store/manifest", forge::line),
    forged("store-journal", "store/journal", forge::journal),
    forged("store-shard", "store/activations/c/0/0", forge::shard),
    forged("store-origin", "store/origin/c/0", forge::shard),
    forged("store-tokens", "store/tokens/c/0/0", forge::tokens),
    plain("unfinished-journal", "unfinished/journal", read::unfinished_store),
    plain("weights", "model/model.safetensors", read::model),
    plain("weights-index", "sharded/model.safetensors.index.json", read::sharded_model),
    plain("model-config", "model/config.json", read::model),
    plain("tokenizer", "model/tokenizer.json", read::tokenizer),
    plain("onnx", "model/graph.onnx", read::onnx),
    plain("autoencoder-config", "run/sae/cfg.json", read::autoencoder),
    plain("autoencoder-weights", "run/sae/sae_weights.safetensors", read::autoencoder),
    plain("torch-archive", "dictionary/ae.pt", read::dictionary),
    plain("torch-pickle", "pickled/data.pkl", read::pickle),
    plain("run-config", "run/config.json", read::run),
    plain("run-metrics", "run/metrics.jsonl", read::run),
    plain("run-summary", "run/summary.json", read::run),
    plain("checkpoint-step", "run/checkpoints/step-00000012/training.json", read::run),
    plain("checkpoint-tensors", "run/checkpoints/step-00000012/training.safetensors", read::run),
    plain("sweep", "sweep/sweep.json", read::sweep),
    plain("npy", "text/a.npy", |folder| read::documents(&folder.join("text/a.npy"))),
    plain("json-lines", "text/a.jsonl", |folder| read::documents(&folder.join("text/a.jsonl"))),
    plain("gzip", "text/a.jsonl.gz", |folder| read::documents(&folder.join("text/a.jsonl.gz"))),
    plain("zstd", "text/a.jsonl.zst", |folder| read::documents(&folder.join("text/a.jsonl.zst"))),
    plain("parquet", "text/a.parquet", |folder| read::documents(&folder.join("text/a.parquet"))),
    plain("import-array", "import/acts.npy", |folder| read::imported(&folder.join("import/acts.npy"))),
    plain("import-request", "import/states/a.safetensors", |folder| {
        read::imported(&folder.join("import/states"))
    }),
    plain("import-arrow", "import/cache/data-00000-of-00001.arrow", |folder| {
        read::imported(&folder.join("import/cache"));
    }),
    plain("import-state", "import/cache/state.json", |folder| read::imported(&folder.join("import/cache"))),
    plain("import-memory-map", "import/maps/shard_0.meta", |folder| {
        read::imported(&folder.join("import/maps"))
    }),
    plain("import-shards", "import/shards/metadata.json", |folder| {
        read::imported(&folder.join("import/shards"))
    }),
];

impl Target {
    /// The target `name`.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Puts `bytes` in the place of the target's file, reads, and puts the sound files back.
    pub fn run(&self, ground: &Ground, bytes: &[u8]) {
        ground.replace(self.file, bytes);
        if let Some(forge) = self.forge {
            forge(ground.path(), self.file.strip_prefix("store/").unwrap_or(self.file));
        }
        (self.read)(ground.path());
        ground.restore(self.file);
    }
}
