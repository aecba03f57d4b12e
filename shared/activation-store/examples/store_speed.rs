//! Measures size and speed of the store on real rows:
//!
//!     store_speed STORE [SCRATCH-FOLDER]
//!
//! Copies the rows of STORE into new stores with other layouts and element types, and prints for each: how many times
//! smaller it is than raw rows, and the throughput of writing (round, shuffle, compress, flush) and of reading through a
//! `BatchStream` (decompress, mix, widen to float32) out of the page cache. Throughputs are bytes of raw rows per second
//! of processor time ("a core") and of wall-clock time with one compressing or decoding thread; memcpy is that of the
//! same raw bytes.

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, process};

use activation_store::{
    BatchStream, Layout, RowType, Store, StoreSpec, StoreWriter, StreamOptions, WriterOptions,
};

/// Bytes of raw rows that each reading measurement goes through.
const READ_BYTES: u64 = 6_000_000_000;

fn main() {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let (store, scratch) = match &arguments[..] {
        [store] => (store, env::temp_dir()),
        [store, scratch] => (store, scratch.clone()),
        _ => {
            eprintln!("usage: store_speed STORE [SCRATCH-FOLDER]");
            process::exit(2);
        }
    };
    if let Err(error) = measure(store, &scratch) {
        eprintln!("error: {error}");
        process::exit(1);
    }
}

/// The rows of a store in the order of its text.
struct Rows {
    spec: StoreSpec,
    tokens: Vec<u32>,
    rows: Vec<f32>,
}

fn measure(store: &Path, scratch: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let source = load(&Store::open(store)?)?;
    let count = source.rows.len() / source.spec.width;
    println!("{count} rows of {} elements from {}", source.spec.width, store.display());
    println!("memcpy: {:.2} GB/s", memcpy_speed(&source.rows));
    println!();
    println!(
        "{:8} {:>4} {:>6} {:>5} | {:>7} {:>8} | {:>10} {:>10} | {:>10} {:>10}",
        "type",
        "bits",
        "chunk",
        "level",
        "smaller",
        "B/row",
        "write core",
        "write wall",
        "read core",
        "read wall"
    );
    let with = |row_type, mantissa_bits, chunk_rows, zstd_level| {
        let mut spec = source.spec.clone();
        (spec.row_type, spec.mantissa_bits) = (row_type, mantissa_bits);
        spec.layout = Layout { zstd_level, ..Layout::for_memory(spec.width, row_type, 1_000_000_000) };
        let chunks = spec.layout.chunks_per_shard();
        spec.layout.chunk_rows = chunk_rows;
        spec.layout.shard_rows = chunk_rows * chunks;
        spec.layout.window_rows -= spec.layout.window_rows % spec.layout.shard_rows;
        spec
    };
    for (row_type, bits, chunk_rows, level) in [
        (RowType::F16, None, 2048, 1),
        (RowType::F16, None, 512, 1),
        (RowType::F16, None, 1024, 1),
        (RowType::F16, None, 4096, 1),
        (RowType::F16, None, 2048, -5),
        (RowType::F16, None, 2048, 3),
        (RowType::F16, None, 2048, 6),
        (RowType::F16, Some(7), 2048, 1),
        (RowType::F16, Some(6), 2048, 1),
        (RowType::F16, Some(5), 2048, 1),
        (RowType::F16, Some(4), 2048, 1),
        (RowType::F32, None, 1024, 1),
    ] {
        measure_one(&source, &with(row_type, bits, chunk_rows, level), scratch)?;
    }
    Ok(())
}

fn measure_one(source: &Rows, spec: &StoreSpec, scratch: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let folder = scratch.join(format!("store-speed-{}", process::id()));
    let options = WriterOptions { threads: 1, ..WriterOptions::default() };
    let clock = Clock::start();
    let mut writer = StoreWriter::open(&folder, spec, &options)?;
    for (tokens, rows) in source
        .tokens
        .chunks(16 * spec.context_length)
        .zip(source.rows.chunks(16 * spec.context_length * spec.width))
    {
        writer.append(tokens, rows)?;
    }
    let summary = writer.finish()?;
    let (write_core, write_wall) = clock.speed(summary.raw_bytes);

    let options = StreamOptions { threads: 1, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![Store::open(&folder)?], options)?;
    let batch_bytes = (stream.batch() * spec.row_bytes()) as u64;
    // Once through the file, so that it lies in the page cache and the buffers are warm.
    let mut sum = 0.0_f64;
    for _ in 0..stream.rows_per_epoch() / stream.batch() as u64 {
        sum += f64::from(stream.next_batch()?[0]);
    }
    let clock = Clock::start();
    let batches = READ_BYTES / batch_bytes;
    for _ in 0..batches {
        sum += f64::from(stream.next_batch()?[0]);
    }
    let (read_core, read_wall) = clock.speed(batches * batch_bytes);
    assert!(sum.is_finite());
    drop(stream);
    fs::remove_dir_all(&folder)?;
    println!(
        "{:8} {:>4} {:>6} {:>5} | {:>6.3}x {:>8.1} | {:>5.2} GB/s {:>5.2} GB/s | {:>5.2} GB/s {:>5.2} GB/s",
        spec.row_type.name(),
        spec.mantissa_bits.unwrap_or(spec.row_type.mantissa_bits()),
        spec.layout.chunk_rows,
        spec.layout.zstd_level,
        summary.raw_bytes as f64 / summary.activation_bytes as f64,
        summary.activation_bytes as f64 / summary.rows as f64,
        write_core,
        write_wall,
        read_core,
        read_wall,
    );
    Ok(())
}

fn load(store: &Store) -> Result<Rows, Box<dyn std::error::Error>> {
    let (width, length) = (store.width(), store.context_length());
    let mut spec = store.spec().clone();
    // Contexts of which some rows were left out cannot be appended again.
    if spec.drop_bos {
        return Err("the store has no BOS rows".into());
    }
    spec.contexts = store.contexts();
    let mut shuffled = vec![0.0; store.rows() as usize * width];
    store.read_rows(0..store.rows(), &mut shuffled)?;
    let mut rows = vec![0.0; shuffled.len()];
    for (row, origin) in shuffled.chunks_exact(width).zip(store.origin(0..store.rows())?) {
        rows[origin as usize * width..][..width].copy_from_slice(row);
    }
    let tokens = store.context_tokens(0..store.contexts())?;
    assert_eq!(tokens.len() * width, rows.len(), "{} contexts of {length}", store.contexts());
    Ok(Rows { spec, tokens, rows })
}

fn memcpy_speed(rows: &[f32]) -> f64 {
    let mut copy = vec![0.0; rows.len()];
    copy.copy_from_slice(rows);
    let clock = Clock::start();
    let mut copied = 0;
    while copied < READ_BYTES {
        copy.copy_from_slice(std::hint::black_box(rows));
        std::hint::black_box(&mut copy);
        copied += size_of_val(rows) as u64;
    }
    clock.speed(copied).0
}

/// Wall-clock and processor time since its start.
struct Clock {
    wall: Instant,
    processor: Option<f64>,
}

impl Clock {
    fn start() -> Clock {
        Clock { wall: Instant::now(), processor: processor_seconds() }
    }

    /// GB per second of processor time and of wall-clock time.
    fn speed(&self, bytes: u64) -> (f64, f64) {
        let gigabytes = bytes as f64 / 1e9;
        let wall = self.wall.elapsed().as_secs_f64();
        let processor = self.processor.and_then(|start| Some(processor_seconds()? - start)).unwrap_or(wall);
        (gigabytes / processor, gigabytes / wall)
    }
}

/// User and system time of this process, where the system tells (Linux; its ticks are hundredths of a second).
fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}
