//! What is written is what is read.

use crate::small_stores::*;
use activation_store::{
    BatchStream, RowFilter, RowType, Store, StoreError, StoreSpec, StoreWriter, StreamOptions, WriterOptions,
    bf16,
};
use ndarray::s;

/// Reads the whole store and holds every row against the value that was appended.
fn check_every_row(store: &Store, spec: &StoreSpec) {
    let expected = rows(spec, 0, spec.contexts);
    let read = store.read_rows(0..store.rows()).unwrap();
    let origins = store.origin(0..store.rows()).unwrap();
    for (row, &origin) in read.rows().into_iter().zip(&origins) {
        let original = expected.rows().into_iter().nth(origin as usize).unwrap();
        for (found, &value) in row.iter().zip(original) {
            assert_eq!(found.to_bits(), stored(spec, value).to_bits(), "row from {origin}");
        }
    }
    let all = tokens(spec, 0, spec.contexts);
    let mut seen: Vec<u64> = origins.clone();
    seen.sort_unstable();
    let kept = |origin: &u64| !spec.drop_bos || all.as_slice().unwrap()[*origin as usize] != BOS;
    assert_eq!(seen, (0..all.len() as u64).filter(kept).collect::<Vec<_>>());
    assert_ne!(seen, origins, "the rows are shuffled");
    assert_eq!(store.context_tokens(0..spec.contexts).unwrap(), all);
}

#[test]
fn every_row_and_token_comes_back_bit_for_bit() {
    for row_type in [RowType::F16, RowType::F32] {
        for drop_bos in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut spec = small_spec(107);
            spec.row_type = row_type;
            spec.drop_bos = drop_bos;
            let summary = write_store(dir.path(), &spec, 5);
            let store = Store::open(dir.path()).unwrap();
            assert_eq!(store.contexts(), 107);
            assert_eq!(store.rows(), if drop_bos { 1070 - 107 - 36 } else { 1070 });
            assert_eq!(summary.rows, store.rows());
            assert_eq!(
                summary.stored_bytes,
                files(dir.path()).values().map(|file| file.len() as u64).sum::<u64>()
            );
            check_every_row(&store, &spec);
        }
    }
}

#[test]
fn parts_of_rows_and_contexts_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(50);
    write_store(dir.path(), &spec, 50);
    let store = Store::open(dir.path()).unwrap();
    let all = store.read_rows(0..500).unwrap();
    let raw = store.read_raw_rows(0..500).unwrap();
    for (start, end) in [(0, 0), (0, 1), (15, 17), (63, 65), (100, 400), (499, 500)] {
        let part = store.read_rows(start as u64..end as u64).unwrap();
        assert_eq!(part, all.slice(s![start..end, ..]));
        let raw_part = store.read_raw_rows(start as u64..end as u64).unwrap();
        assert_eq!(raw_part, raw[start * 24..end * 24]);
        let halves =
            raw_part.chunks_exact(2).map(|bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
        assert!(halves.eq(part.iter().copied()));
        assert_eq!(
            store.origin(start as u64..end as u64).unwrap(),
            store.origin(0..500).unwrap()[start..end]
        );
    }
    assert_eq!(store.context_tokens(7..9).unwrap(), tokens(&spec, 7, 2));
    assert!(matches!(store.read_rows(499..501), Err(StoreError::OutOfRange { .. })));
    assert!(matches!(store.origin(500..501), Err(StoreError::OutOfRange { .. })));
    assert!(matches!(store.context_tokens(50..51), Err(StoreError::OutOfRange { .. })));
}

#[test]
fn rows_are_read_in_any_order_and_as_often_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(50);
    write_store(dir.path(), &spec, 10);
    let store = Store::open(dir.path()).unwrap();
    let all = store.read_rows(0..500).unwrap();
    let wanted = [499, 3, 16, 15, 3, 250, 0, 64, 63];
    let mut out = vec![0.0_f32; wanted.len() * 12];
    store.read_into(wanted.into_iter().zip(out.chunks_exact_mut(12)).collect()).unwrap();
    for (row, read) in wanted.iter().zip(out.chunks_exact(12)) {
        assert_eq!(all.row(*row as usize).as_slice().unwrap(), read, "row {row}");
    }
    let mut brain = [bf16::ZERO; 12];
    store.read_into(vec![(7, &mut brain[..])]).unwrap();
    assert!(brain.iter().zip(all.row(7)).all(|(found, &exact)| *found == bf16::from_f32(exact)));
    let (first, rest) = out.split_at_mut(12);
    let error = store.read_into(vec![(0, first), (500, &mut rest[..12])]).unwrap_err();
    assert!(matches!(error, StoreError::OutOfRange { start: 500, available: 500, .. }), "{error}");
}

#[test]
fn large_vocabularies_and_long_dumps_take_wider_integers() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = small_spec(1 << 40);
    spec.vocabulary = 1 << 17;
    let options = WriterOptions { skip_space_check: true, ..WriterOptions::default() };
    let mut writer = StoreWriter::open(dir.path(), &spec, &options).unwrap();
    let mut tokens = tokens(&spec, 0, 3);
    tokens[[2, 9]] = (1 << 17) - 1;
    writer.append(tokens.view(), rows(&spec, 0, 3).view()).unwrap();
    writer.finish().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.context_tokens(0..3).unwrap(), tokens);
    let text = std::fs::read_to_string(dir.path().join("origin/zarr.json")).unwrap();
    assert!(text.contains("\"uint64\""));
    let text = std::fs::read_to_string(dir.path().join("tokens/zarr.json")).unwrap();
    assert!(text.contains("\"uint32\""));
}

#[test]
fn the_bytes_do_not_depend_on_batches_or_threads() {
    let spec = small_spec(100);
    let reference = tempfile::tempdir().unwrap();
    write_store(reference.path(), &spec, 1);
    for (batch, threads) in [(100, 1), (7, 3), (33, 8)] {
        let dir = tempfile::tempdir().unwrap();
        let options = WriterOptions { threads, ..WriterOptions::default() };
        let mut writer = StoreWriter::open(dir.path(), &spec, &options).unwrap();
        append_all(&mut writer, &spec, batch).unwrap();
        writer.finish().unwrap();
        assert_same_files(reference.path(), dir.path());
    }
    let other = tempfile::tempdir().unwrap();
    write_store(other.path(), &StoreSpec { seed: 8, ..spec }, 1);
    assert_ne!(files(reference.path())["activations/c/0/0"], files(other.path())["activations/c/0/0"]);
}

#[test]
fn statistics_are_those_of_the_stored_rows() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(107);
    write_store(dir.path(), &spec, 10);
    let store = Store::open(dir.path()).unwrap();
    let data: Vec<f64> = rows(&spec, 0, 107).iter().map(|&value| f64::from(stored(&spec, value))).collect();
    let stats = store.stats();
    assert_eq!(stats.rows, 1070);
    for channel in 0..12 {
        let column = || data.iter().skip(channel).step_by(12);
        let mean = column().sum::<f64>() / 1070.0;
        let variance = column().map(|value| (value - mean).powi(2)).sum::<f64>() / 1070.0;
        assert!((stats.mean[channel] - mean).abs() <= 1e-12 * mean.abs().max(1.0));
        assert!((stats.variance[channel] - variance).abs() <= 1e-10 * variance.max(1.0));
    }
    let norms = data.chunks_exact(12).map(|row| row.iter().map(|value| value * value).sum::<f64>().sqrt());
    assert!((stats.mean_norm - norms.sum::<f64>() / 1070.0).abs() < 1e-9);
}

#[test]
fn an_epoch_of_the_stream_has_every_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let spec = small_spec(107);
    write_store(dir.path(), &spec, 10);
    for drop_bos in [false, true] {
        let store = Store::open(dir.path()).unwrap();
        let options = StreamOptions {
            batch: 7,
            mixing_chunks: Some(5),
            rows: RowFilter { drop_bos, ..RowFilter::default() },
            threads: 3,
            ..StreamOptions::default()
        };
        let mut stream = BatchStream::new(vec![store], options).unwrap();
        let expected: Vec<f32> = (0..1070)
            .filter(|&row| !drop_bos || tokens(&spec, 0, 107)[[row / 10, row % 10]] != BOS)
            .map(|row| stored(&spec, row as f32))
            .collect();
        assert_eq!(stream.rows_per_epoch(), expected.len() as u64);
        let mut seen = Vec::new();
        while seen.len() < expected.len() * 2 {
            // Component 0 names the row.
            seen.extend(stream.next_batch().unwrap().column(0));
        }
        let mut epochs = seen.chunks_exact(expected.len());
        let (first, second) = (epochs.next().unwrap(), epochs.next().unwrap());
        assert_ne!(first, second);
        for epoch in [first, second] {
            let mut sorted = epoch.to_vec();
            sorted.sort_by(f32::total_cmp);
            assert_eq!(sorted, expected);
        }
    }
}
