//! Reads files as the programs do. The results are discarded.

use std::path::Path;

use crate::forge;
use activation_store::{BatchStream, Part, RowFilter, Store, StoreWriter, StreamOptions, WriterOptions};
use language_model::{Checkpoint, HookPoint, ModelPrecision, OnnxFile, prefix_graph};

/// Rows that are read of a store, the ground's has 120.
const ROWS: u64 = 200;

pub(crate) fn store(ground: &Path) {
    let folder = ground.join("store");
    let _ = activation_store::verify(&folder, &|_| {});
    let Ok(store) = Store::open(&folder) else { return };
    let rows = store.rows().min(ROWS);
    // Of rows of an invented width there would be much memory to clear.
    if rows.checked_mul(store.width() as u64).is_some_and(|numbers| numbers < 1 << 20) {
        let _ = store.read_rows(0..rows);
    }
    let _ = store.origin(0..rows);
    let _ = store.context_tokens(0..store.contexts().min(20));
    let part = Part::Training { held_out: 0.1 };
    let rows = RowFilter { drop_bos: true, part, ..RowFilter::default() };
    let options = StreamOptions { batch: 8, threads: 1, rows, ..StreamOptions::default() };
    if let Ok(mut stream) = BatchStream::new(vec![store], options) {
        let _ = stream.next_batch();
    }
}

/// Takes up the dump of a store that was not finished.
pub(crate) fn unfinished_store(ground: &Path) {
    let Ok(sound) = Store::open(&ground.join("store")) else { return };
    let _ = StoreWriter::open(&ground.join("unfinished"), sound.spec(), &WriterOptions::default());
}

pub(crate) fn model(ground: &Path) {
    checkpoint(&ground.join("model"));
}

pub(crate) fn sharded_model(ground: &Path) {
    checkpoint(&ground.join("sharded"));
}

fn checkpoint(folder: &Path) {
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };
    for precision in [ModelPrecision::Full, ModelPrecision::Half] {
        let _ = prefix_graph(&checkpoint, &[HookPoint::resid_pre(0)], true, precision);
        let _ = "blocks.0.hook_resid_post"
            .parse()
            .map(|hook| prefix_graph(&checkpoint, &[hook], false, precision));
    }
}

pub(crate) fn tokenizer(ground: &Path) {
    let _ = activation_dump::untrusted::tokenizer(&ground.join("model/tokenizer.json"));
}

pub(crate) fn onnx(ground: &Path) {
    let _ = OnnxFile::open(&ground.join("model/graph.onnx")).map(|file| file.hash());
}

pub(crate) fn autoencoder(ground: &Path) {
    let _ = sae::Sae::load(&ground.join("run/sae"));
}

/// dictionary_learning's file of torch.
pub(crate) fn dictionary(ground: &Path) {
    let _ = sae::open(&ground.join("dictionary"), &sae::Given::default());
}

/// The same with another pickle in the archive, whose checksums fit.
pub(crate) fn pickle(ground: &Path) {
    let folder = ground.join("pickled");
    forge::archive(&ground.join("dictionary/ae.pt"), &folder.join("data.pkl"), &folder.join("ae.pt"));
    let _ = sae::open(&folder, &sae::Given::default());
}

pub(crate) fn run(ground: &Path) {
    let _ = sae_trainer::untrusted::run(&ground.join("run"));
}

pub(crate) fn sweep(ground: &Path) {
    let _ = sae_trainer::untrusted::sweep(&ground.join("sweep"));
}

pub(crate) fn documents(file: &Path) {
    let _ = activation_dump::untrusted::documents(file);
}

pub(crate) fn imported(source: &Path) {
    let _ = activation_dump::untrusted::import(source);
}
