//! Bad input is refused with what, where and what to do, and never damages what is there.

use std::fs;

use std::sync::Arc;

use crate::small_stores::*;
use activation_store::{
    BatchStream, ExportFormat, Layout, Part, RowFilter, RowMask, Store, StoreError, StoreSpec, StoreWriter,
    StreamOptions, WriterOptions, export,
};
use ndarray::{Array2, aview2};

fn open(dir: &std::path::Path, spec: &StoreSpec) -> Result<StoreWriter, StoreError> {
    StoreWriter::open(dir, spec, &WriterOptions::default())
}

#[test]
fn an_unstorable_value_is_named_by_context_and_position() {
    for (value, text) in [
        (f32::NAN, "the activation of context 23, position 4, channel 5 is NaN"),
        (f32::NEG_INFINITY, "the activation of context 23, position 4, channel 5 is -inf"),
        (1e5, "the activation 100000 of context 23, position 4, channel 5 is beyond float16"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let spec = small_spec(40);
        let mut writer = open(dir.path(), &spec).unwrap();
        writer.append(tokens(&spec, 0, 20).view(), rows(&spec, 0, 20).view()).unwrap();
        let mut bad = rows(&spec, 20, 20);
        bad[[3, 4, 5]] = value;
        let error = writer.append(tokens(&spec, 20, 20).view(), bad.view()).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
        let nothing = writer.append(tokens(&spec, 20, 0).view(), rows(&spec, 20, 0).view());
        assert!(matches!(nothing, Err(StoreError::Stopped(_))));
        assert!(matches!(writer.finish(), Err(StoreError::Stopped(_))));
        // What came before it is safe, and the dump can go on.
        write_store(dir.path(), &spec, 10);
        let reference = tempfile::tempdir().unwrap();
        write_store(reference.path(), &spec, 10);
        assert_same_files(reference.path(), dir.path());
    }
}

#[test]
fn clipped_values_are_counted_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = small_spec(40);
    spec.clip = true;
    let mut bad = rows(&spec, 0, 40);
    (bad[[0, 1, 5]], bad[[16, 6, 8]]) = (1e9, f32::NEG_INFINITY);
    let mut writer = open(dir.path(), &spec).unwrap();
    writer.append(tokens(&spec, 0, 40).view(), bad.view()).unwrap();
    assert_eq!(writer.finish().unwrap().clipped, 2);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.clipped(), 2);
    let all = store.read_rows(0..400).unwrap();
    assert_eq!(all.iter().filter(|value| value.abs() == 65504.0).count(), 2);
}

#[test]
fn another_dumps_store_is_left_alone_and_differences_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(40);
    write_store(dir.path(), &spec, 10);
    let before = files(dir.path());
    let mut other = spec.clone();
    other.seed = 99;
    other.provenance.hook = "blocks.3.hook_resid_pre".to_owned();
    let error = open(dir.path(), &other).unwrap_err().to_string();
    assert!(error.contains("seed is 7 there, 99 here"), "{error}");
    assert!(error.contains("provenance.hook is \"\" there, \"blocks.3.hook_resid_pre\" here"), "{error}");
    assert_eq!(files(dir.path()), before);
    // The command line is no part of what a dump is.
    let mut same = spec;
    same.provenance.command_line = "dump --threads 8".to_owned();
    let writer = open(dir.path(), &same).unwrap();
    assert!(writer.is_complete());
    assert_eq!(writer.contexts_done(), 40);
    assert_eq!(writer.finish().unwrap().rows, 400);
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_dump_that_stored_nothing_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, mut other) = (small_spec(40), small_spec(40));
    drop(open(dir.path(), &spec).unwrap());
    other.seed = 99;
    let writer = open(dir.path(), &other).unwrap();
    assert_eq!(writer.contexts_done(), 0);
    drop(writer);
    write_store(dir.path(), &other, 10);
    assert_eq!(Store::open(dir.path()).unwrap().spec().seed, 99);
    // Something that is no store's makes it one that is left alone.
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &spec).unwrap());
    fs::write(dir.path().join("notes"), "text").unwrap();
    assert!(matches!(open(dir.path(), &other), Err(StoreError::Mismatch { .. })));
}

#[test]
fn a_store_ends_with_the_command_line_that_ended_it() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(40);
    let mut writer = open(dir.path(), &spec).unwrap();
    append_all(&mut writer, &spec, 10).unwrap();
    drop(writer);
    let mut other = spec;
    other.provenance.command_line = "dump --threads 8".to_owned();
    write_store(dir.path(), &other, 10);
    assert_eq!(Store::open(dir.path()).unwrap().spec().provenance.command_line, "dump --threads 8");
}

#[test]
fn a_folder_of_other_files_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "text").unwrap();
    let error = open(dir.path(), &small_spec(1)).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore(_)), "{error}");
    fs::write(dir.path().join("zarr.json"), r#"{"zarr_format":3,"node_type":"group"}"#).unwrap();
    assert!(matches!(open(dir.path(), &small_spec(1)), Err(StoreError::NotAStore(_))));
    assert!(matches!(Store::open(dir.path()), Err(StoreError::NotAStore(_))));
    assert_eq!(files(dir.path()).len(), 2);
    assert!(matches!(Store::open(&dir.path().join("nothing")), Err(StoreError::NotFound(_))));
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(40);
    let mut first = open(dir.path(), &spec).unwrap();
    let error = open(dir.path(), &spec).unwrap_err();
    assert!(error.to_string().contains("another process is writing"), "{error}");
    append_all(&mut first, &spec, 10).unwrap();
    first.finish().unwrap();
    assert!(Store::open(dir.path()).is_ok());
}

#[test]
fn an_unfinished_store_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(100);
    let mut writer = open(dir.path(), &spec).unwrap();
    writer.append(tokens(&spec, 0, 50).view(), rows(&spec, 0, 50).view()).unwrap();
    drop(writer);
    // Two windows of 192 rows, 10 rows a context.
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { contexts_done: 38, .. }), "{error}");
}

#[test]
fn a_dump_that_does_not_fit_the_disk_is_refused_beforehand() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("deep/store");
    let mut spec = StoreSpec::new(4096, 128, 1 << 40);
    spec.layout = Layout::for_memory(4096, spec.row_type, 100_000_000);
    let error = open(&target, &spec).unwrap_err();
    assert!(error.to_string().contains("MB free"), "{error}");
    assert!(!dir.path().join("deep").exists());
}

#[cfg(unix)]
#[test]
fn what_the_system_refuses_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file.join("store"), &small_spec(1)).unwrap_err();
    assert!(error.to_string().contains("file/store"), "{error}");
}

#[test]
fn foreign_tokens_and_contexts_beyond_the_plan_are_refused() {
    let spec = small_spec(4);
    let attempt = |tokens: &Array2<u32>, n| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(dir.path(), &spec).unwrap();
        writer.append(tokens.view(), rows(&spec, 0, n).view()).unwrap_err().to_string()
    };
    let mut foreign = tokens(&spec, 0, 4);
    foreign[[2, 5]] = 500;
    assert!(attempt(&foreign, 4).contains("token 500 of context 2, position 5"));
    assert!(attempt(&tokens(&spec, 0, 5), 5).contains("planned for 4 contexts"));
    let complete = tempfile::tempdir().unwrap();
    write_store(complete.path(), &spec, 4);
    let mut writer = open(complete.path(), &spec).unwrap();
    let error = writer.append(tokens(&spec, 0, 1).view(), rows(&spec, 0, 1).view()).unwrap_err();
    assert!(matches!(&error, StoreError::Complete(dir) if dir == complete.path()), "{error}");
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open(dir.path(), &spec).unwrap().finish(), Err(StoreError::Empty(_))));
}

#[test]
#[should_panic(expected = "rows for contexts of 10 tokens")]
fn rows_of_another_shape_are_the_callers_mistake() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), small_spec(4));
    let _ = open(dir.path(), &spec).unwrap().append(tokens(&spec, 0, 4).view(), rows(&spec, 0, 3).view());
}

#[test]
fn impossible_specifications_are_refused() {
    let good = small_spec(10);
    let layout = good.layout;
    let bad = [
        StoreSpec { width: 0, ..good.clone() },
        StoreSpec { context_length: 0, ..good.clone() },
        StoreSpec { contexts: u64::MAX, ..good.clone() },
        StoreSpec { mantissa_bits: Some(11), ..good.clone() },
        StoreSpec { mantissa_bits: Some(0), ..good.clone() },
        StoreSpec { vocabulary: 0, ..good.clone() },
        StoreSpec { layout: Layout { chunk_rows: 0, ..layout }, ..good.clone() },
        StoreSpec { layout: Layout { shard_rows: 63, ..layout }, ..good.clone() },
        StoreSpec { layout: Layout { window_rows: 100, ..layout }, ..good.clone() },
        StoreSpec { layout: Layout { zstd_level: 99, ..layout }, ..good.clone() },
    ];
    for spec in bad {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path(), &spec), Err(StoreError::Specification(_))), "{spec:?}");
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn a_layout_for_any_width_and_memory_is_valid_and_fits() {
    for width in [1, 64, 576, 768, 4096, 16384, 1 << 20] {
        for memory in [0, 1_000_000, 100_000_000, 2_000_000_000, 50_000_000_000] {
            let mut spec = StoreSpec::new(width, 128, 1000);
            spec.layout = Layout::for_memory(width, spec.row_type, memory);
            spec.validate().unwrap();
            let buffers = (spec.layout.window_rows + spec.layout.shard_rows) as u64 * spec.row_bytes() as u64;
            let smallest = 2 * (spec.layout.chunk_rows * spec.row_bytes()) as u64;
            assert!(buffers <= memory.max(smallest), "{width} {memory} {:?}", spec.layout);
        }
    }
    let layout = StoreSpec::new(768, 128, 1).layout;
    assert_eq!((layout.chunk_rows, layout.shard_rows), (2048, 32768));
}

#[test]
fn streams_that_cannot_be_are_refused() {
    let (dir, narrow) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spec = small_spec(20);
    write_store(dir.path(), &spec, 10);
    write_store(narrow.path(), &StoreSpec { width: 4, ..spec.clone() }, 10);
    let store = |dir: &tempfile::TempDir| Store::open(dir.path()).unwrap();
    let message = |stores, options| BatchStream::new(stores, options).unwrap_err().to_string();
    assert!(message(vec![], StreamOptions::default()).contains("no store"));
    assert!(message(vec![store(&dir), store(&narrow)], StreamOptions::default()).contains("12 elements"));
    assert!(
        message(vec![store(&dir)], StreamOptions { batch: 0, ..StreamOptions::default() }).contains("empty")
    );
    let mut only_bos = StoreWriter::open(
        &narrow.path().join("bos"),
        &StoreSpec { contexts: 1, ..spec.clone() },
        &WriterOptions::default(),
    )
    .unwrap();
    only_bos.append(aview2(&[[BOS; 10]]), rows(&spec, 0, 1).view()).unwrap();
    only_bos.finish().unwrap();
    let all_bos = Store::open(&narrow.path().join("bos")).unwrap();
    let without = |rows| StreamOptions { rows, ..StreamOptions::default() };
    let no_bos = RowFilter { drop_bos: true, ..RowFilter::default() };
    assert!(message(vec![all_bos.clone()], without(no_bos)).contains("every one is left out"));
    // Of a single context none is held out.
    let held_out = RowFilter { part: Part::HeldOut { held_out: 0.5 }, ..RowFilter::default() };
    assert!(message(vec![all_bos.clone()], without(held_out)).contains("every one is left out"));
    let mask = RowMask::within_norm(&[all_bos], 1e9, |_| {}).unwrap();
    let of_others = RowFilter { mask: Some(Arc::new(mask)), ..RowFilter::default() };
    assert!(message(vec![store(&dir)], without(of_others)).contains("that of other stores"));
    let stream = BatchStream::new(vec![store(&dir)], StreamOptions::default()).unwrap();
    drop(stream);
}

#[test]
fn an_export_that_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = StoreSpec { context_length: 20, contexts: 1, ..small_spec(1) };
    write_store(&dir.path().join("store"), &StoreSpec { drop_bos: true, ..spec }, 1);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let attempt = |format, name: &str| export(&store, format, &dir.path().join(name), &mut |_| {});
    // 19 rows do not fill a record of 20.
    let error = attempt(ExportFormat::SaeLens, "cache").unwrap_err().to_string();
    assert!(error.contains("19 rows do not fill one record of 20"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the store alone");
    let summary = attempt(ExportFormat::Npy, "npy").unwrap();
    assert_eq!((summary.rows, summary.rows_left_out, summary.files), (19, 0, 3));
    let before = files(&dir.path().join("npy"));
    assert!(matches!(attempt(ExportFormat::Npy, "npy"), Err(StoreError::Durable(_))));
    assert_eq!(files(&dir.path().join("npy")), before);

    // What lies beside the export is its owner's, whatever its name.
    for theirs in ["cache.partial", ".cache.unfinished"] {
        let theirs = dir.path().join(theirs);
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("thesis.tex"), "years of work").unwrap();
        let _ = attempt(ExportFormat::Npy, "cache");
        assert_eq!(std::fs::read(theirs.join("thesis.tex")).unwrap(), b"years of work");
    }
}
