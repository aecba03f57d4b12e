//! Two stores are read in pairs only if their rows are of the same tokens.

use crate::small_stores::*;
use activation_store::{RowType, Store, StoreError, StoreSpec, StoreWriter, WriterOptions};

/// The store of another hook of the dump of `spec`, after `change`.
fn other(change: impl FnOnce(&mut StoreSpec)) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = small_spec(40);
    spec.provenance.hook = "blocks.3.hook_mlp_out".to_owned();
    change(&mut spec);
    write_store(dir.path(), &spec, 10);
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn two_hooks_of_one_dump_are_aligned_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write_store(dir.path(), &small_spec(40), 10);
    let store = Store::open(dir.path()).unwrap();
    let (_dir, aligned) = other(|spec| {
        (spec.provenance.layer, spec.provenance.centered) = (3, true);
        spec.row_type = RowType::F32;
        spec.provenance.command_line = "moved".to_owned();
    });
    store.check_aligned(&aligned).unwrap();

    type Change = fn(&mut StoreSpec);
    let changes: [(&str, Change); 7] = [
        ("seed is 7 there, 8 here", |spec| spec.seed = 8),
        ("layout.chunk_rows is 16 there, 32 here", |spec| spec.layout.chunk_rows = 32),
        ("contexts is 40 there, 39 here", |spec| spec.contexts = 39),
        ("rows are 400 there", |spec| spec.drop_bos = true),
        ("context_length is 10 there, 20 here", |spec| (spec.context_length, spec.contexts) = (20, 20)),
        ("provenance.model_hash", |spec| spec.provenance.model_hash = "beef".to_owned()),
        ("provenance.dataset_hash", |spec| spec.provenance.dataset_hash = "beef".to_owned()),
    ];
    for (expected, change) in changes {
        let (_dir, other) = other(change);
        let error = store.check_aligned(&other).unwrap_err();
        assert!(matches!(error, StoreError::NotAligned { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("two hooks of one dump"), "{error}");
    }
}

#[test]
fn the_same_specification_over_another_text_is_not_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(40);
    write_store(dir.path(), &spec, 10);
    let store = Store::open(dir.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
    let mut text = tokens(&spec, 0, 40);
    text[[17, 5]] += 1;
    writer.append(text.view(), rows(&spec, 0, 40).view()).unwrap();
    writer.finish().unwrap();
    let error = store.check_aligned(&Store::open(dir.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the tokens are others"), "{error}");

    // Rows that are left out elsewhere make other places.
    let spec = StoreSpec { drop_bos: true, ..small_spec(40) };
    let [one, other] = [0, 1].map(|moved| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        let mut text = tokens(&spec, 0, 40);
        text.column_mut(7 + moved).fill(BOS);
        writer.append(text.view(), rows(&spec, 0, 40).view()).unwrap();
        writer.finish().unwrap();
        (Store::open(dir.path()).unwrap(), dir)
    });
    let error = one.0.check_aligned(&other.0).unwrap_err().to_string();
    assert!(error.contains("the rows come from other places"), "{error}");
}
