//! The order of a stream: every row once per epoch, the same however a step is reached and for any number of threads.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::small_stores::*;
use activation_store::{
    BatchStream, Layout, Part, RowFilter, RowMask, Store, StoreError, StoreSpec, StreamOptions, bf16, f16,
    held_out_contexts, median_norm,
};
use ndarray::{Array3, aview2};
use proptest::prelude::*;

/// Three stores of one width, with different lengths, layouts and row types.
static STORES: LazyLock<(tempfile::TempDir, Vec<StoreSpec>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let mut specs = vec![small_spec(107), small_spec(31), small_spec(64)];
    specs[1].layout = Layout { window_rows: 128, shard_rows: 128, chunk_rows: 32, zstd_level: 3 };
    specs[1].row_type = activation_store::RowType::F32;
    specs[2].drop_bos = true;
    for (number, spec) in specs.iter().enumerate() {
        write_store(&dir.path().join(number.to_string()), spec, 10);
    }
    (dir, specs)
});

fn stores(numbers: &[usize]) -> Vec<Store> {
    numbers.iter().map(|number| Store::open(&STORES.0.path().join(number.to_string())).unwrap()).collect()
}

fn rows_of_batches(stream: &mut BatchStream, batches: usize) -> Vec<Vec<u32>> {
    let mut rows = Vec::new();
    for _ in 0..batches {
        let batch = stream.next_batch().unwrap();
        rows.extend(batch.rows().into_iter().map(|row| row.iter().map(|value| value.to_bits()).collect()));
    }
    rows
}

/// Every 50th token of the tests' vocabulary.
fn some_tokens() -> Vec<u32> {
    (2..500).step_by(50).collect()
}

/// Tokens, held-out contexts and norms, in all combinations.
fn some_filter() -> impl Strategy<Value = RowFilter> {
    let part = prop_oneof![
        Just(Part::All),
        Just(Part::Training { held_out: 0.2 }),
        Just(Part::HeldOut { held_out: 0.2 })
    ];
    let tokens = prop_oneof![Just(Vec::new()), Just(some_tokens())];
    (any::<bool>(), tokens, part).prop_map(|(drop_bos, drop_tokens, part)| RowFilter {
        drop_bos,
        drop_tokens,
        part,
        mask: None,
    })
}

/// With the rows left out whose norm is beyond `limit`.
fn within(filter: &RowFilter, numbers: &[usize], limit: Option<f64>) -> RowFilter {
    let mask = |limit| Arc::new(RowMask::within_norm(&stores(numbers), limit, |_| {}).unwrap());
    RowFilter { mask: limit.map(mask), ..filter.clone() }
}

/// The rows of the stores that a filter keeps, each with how often it occurs.
fn census(numbers: &[usize], filter: &RowFilter, limit: Option<f64>) -> HashMap<Vec<u32>, usize> {
    let mut census = HashMap::new();
    for &number in numbers {
        let spec = &STORES.1[number];
        let all_tokens = tokens(spec, 0, spec.contexts);
        let held_out = held_out(spec, 0.2);
        let in_part = |context: usize| match filter.part {
            Part::All => true,
            Part::Training { .. } => !held_out.contains(&(context as u64)),
            Part::HeldOut { .. } => held_out.contains(&(context as u64)),
        };
        for (at, (row, token)) in rows(spec, 0, spec.contexts).rows().into_iter().zip(all_tokens).enumerate()
        {
            let norm = row.iter().map(|&value| f64::from(stored(spec, value)).powi(2)).sum::<f64>().sqrt();
            if (token != BOS || !(filter.drop_bos || spec.drop_bos))
                && !filter.drop_tokens.contains(&token)
                && in_part(at / spec.context_length)
                && limit.is_none_or(|limit| norm <= limit)
            {
                let row = row.iter().map(|&value| stored(spec, value).to_bits()).collect();
                *census.entry(row).or_default() += 1;
            }
        }
    }
    census
}

/// The contexts that are held out, as the format describes it: those with the lowest outputs of SplitMix64.
fn held_out(spec: &StoreSpec, fraction: f64) -> Vec<u64> {
    let mut state = spec.seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let mut hashes: Vec<(u64, u64)> = (0..spec.contexts).map(|context| (next(), context)).collect();
    hashes.sort_unstable();
    let count = (fraction * spec.contexts as f64).ceil() as usize;
    hashes[..count].iter().map(|(_, context)| *context).collect()
}

fn count(rows: &[Vec<u32>]) -> HashMap<Vec<u32>, usize> {
    let mut counts = HashMap::new();
    for row in rows {
        *counts.entry(row.clone()).or_default() += 1;
    }
    counts
}

fn some_stores() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![0]), Just(vec![1]), Just(vec![2, 0]), Just(vec![0, 1, 2]), Just(vec![1, 1])]
}

/// Rows have norms of about 300 to 1,112, the number of the row.
fn some_limit() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![Just(None), (350.0..1000.0).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn an_epoch_has_every_kept_row_of_every_store_once(
        numbers in some_stores(), seed: u64, filter in some_filter(), limit in some_limit(), batch in 1_usize..300,
        k in 1_usize..200, threads in 1_usize..5,
    ) {
        let rows = within(&filter, &numbers, limit);
        let options = StreamOptions { batch, seed, mixing_chunks: Some(k), rows, threads, prefetch: 3, every: 1 };
        let mut stream = BatchStream::new(stores(&numbers), options).unwrap();
        let per_epoch = stream.rows_per_epoch() as usize;
        let rows = rows_of_batches(&mut stream, (3 * per_epoch).div_ceil(batch));
        let expected = census(&numbers, &filter, limit);
        prop_assert_eq!(expected.values().sum::<usize>(), per_epoch);
        let epochs: Vec<_> = rows.chunks_exact(per_epoch).take(3).collect();
        for epoch in &epochs {
            prop_assert!(count(epoch) == expected);
        }
        prop_assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    }

    #[test]
    fn seeking_is_replaying_and_threads_change_nothing(
        numbers in some_stores(), seed: u64, rows in some_filter(), batch in 1_usize..300, k in 1_usize..200,
        threads in 1_usize..6, prefetch in 0_usize..6, steps in prop::collection::vec(0_u64..40, 1..6),
    ) {
        let options = StreamOptions { batch, seed, mixing_chunks: Some(k), rows, threads: 1, prefetch: 1, every: 1 };
        let mut replayed = BatchStream::new(stores(&numbers), options.clone()).unwrap();
        let all = rows_of_batches(&mut replayed, 43);
        let options = StreamOptions { threads, prefetch, ..options };
        let mut stream = BatchStream::new(stores(&numbers), options).unwrap();
        for step in steps {
            stream.seek(step).unwrap();
            prop_assert_eq!(stream.step(), step);
            let rows = rows_of_batches(&mut stream, 3);
            prop_assert!(rows[..] == all[step as usize * batch..][..3 * batch], "step {}", step);
            prop_assert_eq!(stream.step(), step + 3);
        }
    }

    #[test]
    fn readers_that_share_the_steps_have_each_batch_once(
        numbers in some_stores(), seed: u64, rows in some_filter(), batch in 1_usize..100, k in 1_usize..20,
        threads in 1_usize..4, readers in 1_u64..9, from in 0_u64..30,
    ) {
        let options = StreamOptions { batch, seed, mixing_chunks: Some(k), rows, threads, prefetch: 2, every: 1 };
        let mut alone = BatchStream::new(stores(&numbers), options.clone()).unwrap();
        alone.seek(from).unwrap();
        let all = rows_of_batches(&mut alone, 4 * readers as usize);
        for reader in 0..readers {
            let options = StreamOptions { every: readers, ..options.clone() };
            let mut stream = BatchStream::new(stores(&numbers), options).unwrap();
            stream.seek(from + reader).unwrap();
            for turn in 0..4 {
                let first = (turn * readers + reader) as usize * batch;
                prop_assert!(rows_of_batches(&mut stream, 1)[..] == all[first..first + batch]);
            }
            prop_assert_eq!(stream.step(), from + reader + 4 * readers);
        }
    }
}

#[test]
fn batches_that_are_kept_are_those_of_the_stream() {
    let options = StreamOptions { batch: 50, seed: 3, threads: 2, ..StreamOptions::default() };
    let mut lent = BatchStream::new(stores(&[0]), options.clone()).unwrap();
    let mut stream = BatchStream::<f32>::new(stores(&[0]), options).unwrap();
    let patience = Duration::from_secs(60);
    let (mut kept, mut batch) = (Vec::new(), Vec::new());
    for turn in 0..40 {
        assert!(stream.next_into(&mut batch, patience).unwrap());
        assert_eq!(&batch[..], lent.next_batch().unwrap().as_slice().unwrap());
        // Some are kept, others filled again.
        if turn % 3 == 0 {
            kept.push((turn, std::mem::take(&mut batch)));
        }
    }
    for (turn, batch) in kept {
        lent.seek(turn).unwrap();
        assert_eq!(&batch[..], lent.next_batch().unwrap().as_slice().unwrap());
    }
    assert_eq!(stream.step(), 40);
}

#[test]
fn who_does_not_wait_has_no_batch_and_misses_none() {
    let options = StreamOptions { batch: 50, ..StreamOptions::default() };
    let mut stream = BatchStream::<f32>::new(stores(&[0]), options.clone()).unwrap();
    let mut batch = vec![7.0; 3];
    // No thread can have decoded anything by then; if one has, the batch is the first all the same.
    while !stream.next_into(&mut batch, Duration::ZERO).unwrap() {
        assert_eq!((&batch[..], stream.step()), (&[7.0; 3][..], 0));
    }
    let mut other = BatchStream::new(stores(&[0]), options).unwrap();
    assert_eq!(&batch[..], other.next_batch().unwrap().as_slice().unwrap());
}

#[test]
fn a_stream_that_stays_at_a_step_is_refused() {
    let options = StreamOptions { every: 0, ..StreamOptions::default() };
    let error = BatchStream::<f32>::new(stores(&[0]), options).unwrap_err();
    assert!(error.to_string().contains("for ever"), "{error}");
}

#[test]
fn batches_of_sixteen_bits_are_the_float32_batches_rounded_once() {
    // A store of float32, one of float16, both at once.
    for numbers in [vec![0], vec![1], vec![2, 1]] {
        let options = StreamOptions { batch: 77, seed: 5, ..StreamOptions::default() };
        let mut wide = BatchStream::new(stores(&numbers), options.clone()).unwrap();
        let mut half = BatchStream::<f16>::with_element(stores(&numbers), options.clone()).unwrap();
        let mut brain = BatchStream::<bf16>::with_element(stores(&numbers), options).unwrap();
        half.seek(3).unwrap();
        brain.seek(3).unwrap();
        wide.seek(3).unwrap();
        for _ in 0..30 {
            let wide = wide.next_batch().unwrap();
            let expected_half = wide.iter().map(|&value| f16::from_f32(value).to_bits());
            assert!(half.next_batch().unwrap().iter().map(|value| value.to_bits()).eq(expected_half));
            let expected_brain = wide.iter().map(|&value| bf16::from_f32(value).to_bits());
            assert!(brain.next_batch().unwrap().iter().map(|value| value.to_bits()).eq(expected_brain));
        }
    }
}

#[test]
fn a_value_beyond_float16_is_an_error_of_a_float16_batch_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = StoreSpec::new(1, 8, 16);
    spec.row_type = activation_store::RowType::F32;
    let mut writer =
        activation_store::StoreWriter::open(dir.path(), &spec, &activation_store::WriterOptions::default())
            .unwrap();
    let mut rows = Array3::from_elem((16, 8, 1), 1.5);
    rows[[5, 0, 0]] = 70_000.0;
    writer.append(aview2(&[[0; 8]; 16]), rows.view()).unwrap();
    writer.finish().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let options = StreamOptions { batch: 128, ..StreamOptions::default() };
    let mut half = BatchStream::<f16>::with_element(vec![store.clone()], options.clone()).unwrap();
    let error = half.next_batch().unwrap_err();
    assert!(matches!(error, StoreError::BatchOverflow { element: "float16" }), "{error}");
    let mut brain = BatchStream::<bf16>::with_element(vec![store.clone()], options.clone()).unwrap();
    assert!(brain.next_batch().unwrap().iter().any(|&value| value == bf16::from_f32(70_000.0)));
    let mut wide = BatchStream::new(vec![store], options).unwrap();
    assert!(wide.next_batch().unwrap().iter().any(|&value| value == 70_000.0));
}

#[test]
fn training_and_held_out_rows_are_all_rows_for_every_seed() {
    let part = |numbers: &[usize], part, seed| {
        let rows = RowFilter { part, ..RowFilter::default() };
        let options = StreamOptions { batch: 1, seed, rows, ..StreamOptions::default() };
        let mut stream = BatchStream::new(stores(numbers), options).unwrap();
        let per_epoch = stream.rows_per_epoch() as usize;
        count(&rows_of_batches(&mut stream, per_epoch))
    };
    // Of 107 and 31 contexts; the rows of each store are all different.
    for (number, expected) in [(0, 60), (1, 20)] {
        let held_out = part(&[number], Part::HeldOut { held_out: 0.05 }, 1);
        assert_eq!(held_out.values().sum::<usize>(), expected);
        assert_eq!(held_out, part(&[number], Part::HeldOut { held_out: 0.05 }, 2));
        let mut all = part(&[number], Part::Training { held_out: 0.05 }, 3);
        assert!(held_out.keys().all(|row| !all.contains_key(row)));
        all.extend(held_out);
        assert_eq!(all, part(&[number], Part::All, 4));
    }
    // Each store has its own share, whatever it is read with.
    let together = part(&[1, 0], Part::HeldOut { held_out: 0.05 }, 1);
    let mut apart = part(&[0], Part::HeldOut { held_out: 0.05 }, 1);
    apart.extend(part(&[1], Part::HeldOut { held_out: 0.05 }, 1));
    assert_eq!(together, apart);
}

#[test]
fn nothing_held_out_is_the_order_of_all_rows() {
    let order = |part| {
        let rows = RowFilter { part, ..RowFilter::default() };
        let options = StreamOptions { batch: 64, seed: 3, rows, ..StreamOptions::default() };
        rows_of_batches(&mut BatchStream::new(stores(&[0, 1]), options).unwrap(), 30)
    };
    assert_eq!(order(Part::All), order(Part::Training { held_out: 0.0 }));
    assert_ne!(order(Part::All), order(Part::Training { held_out: 0.01 }));
    assert_eq!(held_out_contexts(107, 0.01), 2);
}

#[test]
fn the_median_norm_is_that_of_the_rows() {
    // All rows of stores as small as these are in the sample.
    let numbers = [0, 1];
    let mut norms: Vec<f64> = numbers
        .iter()
        .flat_map(|&number| {
            let store = &stores(&[number])[0];
            let rows = store.read_rows(0..store.rows()).unwrap();
            let norm = |row: ndarray::ArrayView1<'_, f32>| {
                row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
            };
            rows.rows().into_iter().map(norm).collect::<Vec<_>>()
        })
        .collect();
    norms.sort_by(f64::total_cmp);
    let median = median_norm(&stores(&numbers)).unwrap();
    assert!((median / norms[norms.len() / 2] - 1.0).abs() < 1e-12, "{median}");
    let mask = RowMask::within_norm(&stores(&numbers), median, |_| {}).unwrap();
    let beyond = norms.iter().filter(|&&norm| norm > median).count() as u64;
    assert_eq!(mask.left_out(), beyond);
}

#[test]
fn seeds_and_k_give_different_orders() {
    let order = |seed, k| {
        let options = StreamOptions { batch: 64, seed, mixing_chunks: Some(k), ..StreamOptions::default() };
        rows_of_batches(&mut BatchStream::new(stores(&[0]), options).unwrap(), 4)
    };
    assert_eq!(order(1, 4), order(1, 4));
    assert_ne!(order(1, 4), order(2, 4));
    assert_ne!(order(1, 4), order(1, 5));
}

#[test]
fn far_steps_are_reached_at_once_and_impossible_ones_refused() {
    let mut stream =
        BatchStream::new(stores(&[0]), StreamOptions { batch: 64, ..StreamOptions::default() }).unwrap();
    stream.seek(1 << 50).unwrap();
    assert_eq!(stream.next_batch().unwrap().dim(), (64, 12));
    assert!(matches!(stream.seek(u64::MAX), Err(StoreError::Step(u64::MAX))));
    assert_eq!(stream.step(), (1 << 50) + 1);
    assert_eq!(stream.next_batch().unwrap().dim(), (64, 12));
}

/// Pairs of rows of one context within a batch, summed over an epoch's batches, divided by what a uniform permutation
/// of all rows gives in expectation.
fn pairs_against_uniform(store: Store, batch: usize, mixing_chunks: Option<usize>, seed: u64) -> f64 {
    let length = store.context_length();
    let options = StreamOptions { batch, seed, mixing_chunks, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![store], options).unwrap();
    let rows = stream.rows_per_epoch();
    let batches = rows / batch as u64;
    let mut pairs = 0_u64;
    for _ in 0..batches {
        let mut in_context: HashMap<u64, u64> = HashMap::new();
        for &row in stream.next_batch().unwrap().column(0) {
            *in_context.entry(row as u64 / length as u64).or_default() += 1;
        }
        pairs += in_context.values().map(|n| n * (n - 1) / 2).sum::<u64>();
    }
    let in_batch = batch as f64 * (batch as f64 - 1.0) / 2.0;
    let uniform = batches as f64 * in_batch * (length as f64 - 1.0) / (rows as f64 - 1.0);
    pairs as f64 / uniform
}

#[test]
fn rows_of_a_context_meet_at_most_twice_as_often_as_by_chance() {
    // 64 windows of 2048 rows, chunks of 32 rows: the shape of a store of 64M rows, 1/512 as long.
    let dir = tempfile::tempdir().unwrap();
    let mut spec = StoreSpec::new(2, 128, 1024);
    spec.row_type = activation_store::RowType::F32; // component 0 names the row exactly
    spec.layout = Layout { window_rows: 2048, shard_rows: 2048, chunk_rows: 32, zstd_level: 1 };
    (spec.vocabulary, spec.bos_token) = (500, BOS);
    write_store(dir.path(), &spec, 1024);
    let ratio = |k| {
        // Batches well below a mixing block, so that K counts and not the batch.
        let seeds = 0..8;
        let n = seeds.end as f64;
        seeds.map(|seed| pairs_against_uniform(Store::open(dir.path()).unwrap(), 128, k, seed)).sum::<f64>()
            / n
    };
    // By default K = max(64, R/W) = 64 chunks: 1 + R/(W·K) = 2, less 1/64 for the pairs that one block cannot have.
    let default = ratio(None);
    assert!((1.8..2.2).contains(&default), "{default}");
    // The formula behind the default, where it is far from 1.
    let few = ratio(Some(16));
    assert!((4.6..5.4).contains(&few), "{few}");
    let all = ratio(Some(usize::MAX));
    assert!((0.9..1.1).contains(&all), "{all}");
}
