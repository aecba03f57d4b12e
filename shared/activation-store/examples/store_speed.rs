//! Measures the store on the rows of a real one, for `scripts/bench-store`. Each command prints one JSON object:
//!
//!     store_speed memcpy STORE
//!     store_speed layout STORE SCRATCH TYPE BITS CHUNK-ROWS LEVEL     rewrites the rows, then reads them
//!     store_speed read STORE GIGABYTES [THREADS [TYPE]]               reads through a BatchStream, default options
//!     store_speed epochs STORE CACHE SIZE                             reads two epochs, of a bucket through a cache (0: no limit)
//!     store_speed mixing STORE TIMES WINDOW-ROWS K                    0 is the default
//!     store_speed filter STORE                                        finds the held-out rows, then the norms of all rows
//!     store_speed repeat STORE TIMES OUT                              writes the rows TIMES times into a new store
//!     store_speed sample STORE CONTEXTS OUT                           writes the first contexts, with a window of 128 MB
//!
//! Speeds are bytes of raw rows per second: `core` per second of processor time, `wall` per second of wall-clock time with one
//! compressing or decoding thread. Reading is decompression, mixing and conversion to batches, from the page cache.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;
use std::{env, fs, process};

use activation_store::{
    BatchElement, BatchStream, CacheOptions, Layout, Part, RowFilter, RowMask, RowType, Store, StoreSpec,
    StoreSummary, StoreWriter, StreamOptions, WriterOptions, bf16, f16, median_norm,
};
use ndarray::{Array2, Array3, Axis, s};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Bytes of raw rows that a reading measurement goes through.
const READ_BYTES: u64 = 1_000_000_000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match arguments[..] {
        ["memcpy", store] => memcpy(store),
        ["layout", store, scratch, row_type, bits, chunk_rows, level] => {
            layout(store, scratch, [row_type, bits, chunk_rows, level])
        }
        ["read", store, gigabytes] => read_by_default(store, gigabytes, "0", "float32"),
        ["read", store, gigabytes, threads] => read_by_default(store, gigabytes, threads, "float32"),
        ["read", store, gigabytes, threads, element] => read_by_default(store, gigabytes, threads, element),
        ["epochs", store, cache, size] => epochs(store, cache, size),
        ["filter", store] => filter(store),
        ["mixing", store, times, window_rows, k] => mixing(store, [times, window_rows, k]),
        ["repeat", store, times, out] => repeat(store, times, out),
        ["sample", store, contexts, out] => sample(store, contexts, out),
        _ => {
            eprintln!("usage: store_speed memcpy|layout|read|epochs|filter|mixing|repeat|sample STORE …");
            process::exit(2);
        }
    };
    match measured {
        Ok(value) => println!("{value}"),
        Err(error) => {
            eprintln!("error: {error}");
            process::exit(1);
        }
    }
}

/// The rows of a store in the order of its text.
struct Rows {
    spec: StoreSpec,
    /// `[contexts, T]`
    tokens: Array2<u32>,
    /// `[contexts, T, d]`
    rows: Array3<f32>,
}

fn load(store: &str) -> Outcome<Rows> {
    load_first(store, u64::MAX)
}

/// The rows of the first `most` contexts.
fn load_first(store: &str, most: u64) -> Outcome<Rows> {
    let store = Store::open(Path::new(store))?;
    let mut spec = store.spec().clone();
    // Contexts of which some rows were left out cannot be appended again.
    if spec.drop_bos {
        return Err("the store has no BOS rows".into());
    }
    spec.contexts = store.contexts().min(most);
    let (length, contexts) = (store.context_length(), spec.contexts as usize);
    let mut rows = Array3::zeros((contexts, length, store.width()));
    let shard_rows = spec.layout.shard_rows as u64;
    for first in (0..store.rows()).step_by(shard_rows as usize) {
        let range = first..store.rows().min(first + shard_rows);
        for (row, origin) in store.read_rows(range.clone())?.rows().into_iter().zip(store.origin(range)?) {
            let (context, position) = (origin as usize / length, origin as usize % length);
            if context < contexts {
                rows.slice_mut(s![context, position, ..]).assign(&row);
            }
        }
    }
    let tokens = store.context_tokens(0..spec.contexts)?;
    Ok(Rows { spec, tokens, rows })
}

fn memcpy(store: &str) -> Outcome<Value> {
    let rows = load(store)?.rows;
    let rows = rows.as_slice().ok_or("the rows do not lie side by side")?;
    let mut copy = rows.to_vec();
    let clock = Clock::start();
    let mut copied = 0;
    while copied < 2 * READ_BYTES {
        copy.copy_from_slice(std::hint::black_box(rows));
        std::hint::black_box(&mut copy);
        copied += size_of_val(rows) as u64;
    }
    Ok(clock.speed(copied))
}

fn layout(store: &str, scratch: &str, choice: [&str; 4]) -> Outcome<Value> {
    let source = load(store)?;
    let [row_type, bits, chunk_rows, level] = choice;
    let mut spec = source.spec.clone();
    spec.row_type = serde_json::from_value(json!(row_type))?;
    spec.mantissa_bits = Some(bits.parse()?).filter(|&bits| bits < spec.row_type.mantissa_bits());
    let chunk_rows: usize = chunk_rows.parse()?;
    let shard_rows = 16 * chunk_rows;
    // A small window: a long dump fills the same memory again and again, and so does this one after its first tenth.
    let window_rows =
        Layout::for_memory(spec.width, spec.row_type, 200_000_000).window_rows.div_ceil(shard_rows)
            * shard_rows;
    spec.layout = Layout { window_rows, shard_rows, chunk_rows, zstd_level: level.parse()? };
    let folder = Path::new(scratch).join(format!("store-speed-{}", process::id()));
    let clock = Clock::start();
    let summary = write(&source, &spec, 3, &folder)?;
    let written = clock.speed(summary.raw_bytes);
    let store = Store::open(&folder)?;
    let read = match spec.row_type {
        RowType::F16 => json!({
            "float32": read::<f32>(&store, READ_BYTES, 1)?,
            "float16": read::<f16>(&store, READ_BYTES, 1)?,
            "bfloat16": read::<bf16>(&store, READ_BYTES, 1)?,
        }),
        RowType::F32 => json!({ "float32": read::<f32>(&store, READ_BYTES, 1)? }),
    };
    fs::remove_dir_all(&folder)?;
    Ok(json!({
        "ratio": summary.raw_bytes as f64 / summary.activation_bytes as f64,
        "write": written,
        "read": read,
    }))
}

/// Writes the rows `times` times one after the other.
fn write(source: &Rows, spec: &StoreSpec, times: u64, folder: &Path) -> Outcome<StoreSummary> {
    let mut spec = spec.clone();
    spec.contexts *= times;
    let options = WriterOptions { threads: 1, ..WriterOptions::default() };
    let mut writer = StoreWriter::open(folder, &spec, &options)?;
    let (tokens, rows) = (&source.tokens, &source.rows);
    for _ in 0..times {
        for (tokens, rows) in tokens.axis_chunks_iter(Axis(0), 16).zip(rows.axis_chunks_iter(Axis(0), 16)) {
            writer.append(tokens, rows)?;
        }
    }
    Ok(writer.finish()?)
}

fn repeat(store: &str, times: &str, out: &str) -> Outcome<Value> {
    let source = load(store)?;
    let clock = Clock::start();
    let summary = write(&source, &source.spec, times.parse()?, Path::new(out))?;
    Ok(
        json!({ "rows": summary.rows, "raw_bytes": summary.raw_bytes, "write": clock.speed(summary.raw_bytes) }),
    )
}

/// Reads `bytes` of raw rows in batches of `T`, after the first batches.
fn read<T: BatchElement>(store: &Store, bytes: u64, threads: usize) -> Outcome<Value> {
    let options = StreamOptions { threads, ..StreamOptions::default() };
    let mut stream = BatchStream::<T>::with_element(vec![store.clone()], options)?;
    let batch_bytes = (stream.batch() * store.spec().row_bytes()) as u64;
    // Once through a small store, so that it lies in the page cache and the buffers are warm.
    for _ in 0..(stream.rows_per_epoch() / stream.batch() as u64).min(200) {
        std::hint::black_box(stream.next_batch()?);
    }
    let (clock, mut anonymous) = (Clock::start(), 0);
    let batches = bytes / batch_bytes;
    for _ in 0..batches {
        std::hint::black_box(stream.next_batch()?);
        anonymous = anonymous.max(anonymous_bytes().unwrap_or(0));
    }
    let mut speed = clock.speed(batches * batch_bytes);
    speed["peak_anonymous_MiB"] = json!(anonymous >> 20);
    speed["k"] = json!(stream.mixing_chunks());
    Ok(speed)
}

fn read_by_default(store: &str, gigabytes: &str, threads: &str, element: &str) -> Outcome<Value> {
    let gigabytes: f64 = gigabytes.parse()?;
    let (store, bytes, threads) =
        (Store::open(Path::new(store))?, (gigabytes * 1e9) as u64, threads.parse()?);
    match element {
        "float16" => read::<f16>(&store, bytes, threads),
        "bfloat16" => read::<bf16>(&store, bytes, threads),
        _ => read::<f32>(&store, bytes, threads),
    }
}

/// Writes the first contexts of a store with a small window, for `repeat`.
fn sample(store: &str, contexts: &str, out: &str) -> Outcome<Value> {
    let source = load_first(store, contexts.parse()?)?;
    let mut spec = source.spec.clone();
    let Layout { shard_rows, .. } = spec.layout;
    let window_rows = Layout::for_memory(spec.width, spec.row_type, 128_000_000).window_rows;
    spec.layout.window_rows = window_rows.div_ceil(shard_rows) * shard_rows;
    Ok(json!({ "rows": write(&source, &spec, 1, Path::new(out))?.rows }))
}

/// Opens a store, in a folder or a bucket, and reads two epochs, the first one from wherever its chunks are.
fn epochs(store: &str, cache: &str, size: &str) -> Outcome<Value> {
    let size: u64 = size.parse()?;
    let cache = CacheOptions { folder: cache.into(), size: (size > 0).then_some(size) };
    let start = Instant::now();
    let store = Store::open_with(Path::new(store), Some(&cache))?;
    let opened = start.elapsed().as_secs_f64();
    let raw = store.summary().raw_bytes;
    let mut stream = BatchStream::new(vec![store], StreamOptions::default())?;
    let batches = stream.rows_per_epoch() / stream.batch() as u64;
    let mut epoch = || -> Outcome<Value> {
        let clock = Clock::start();
        for _ in 0..batches {
            std::hint::black_box(stream.next_batch()?);
        }
        Ok(clock.speed(raw))
    };
    Ok(json!({ "open_seconds": opened, "raw_bytes": raw, "first": epoch()?, "second": epoch()? }))
}

/// What it costs, before the first batch, to know which rows are held out and which have a large norm; and to read the rows that
/// are held out.
fn filter(store: &str) -> Outcome<Value> {
    let store = Store::open(Path::new(store))?;
    let stream =
        |rows| BatchStream::new(vec![store.clone()], StreamOptions { rows, ..StreamOptions::default() });
    let part = |part| RowFilter { part, ..RowFilter::default() };
    let start = Instant::now();
    stream(part(Part::Training { held_out: 0.01 }))?;
    let held_out = start.elapsed().as_secs_f64();
    let raw_bytes = store.summary().raw_bytes;
    let clock = Clock::start();
    let limit = 10.0 * median_norm(std::slice::from_ref(&store))?;
    let mask = RowMask::within_norm(std::slice::from_ref(&store), limit, |_| {})?;
    let norms = clock.speed(raw_bytes);
    let mut held_out_rows = stream(part(Part::HeldOut { held_out: 0.01 }))?;
    let clock = Clock::start();
    let batches = held_out_rows.rows_per_epoch() / held_out_rows.batch() as u64;
    for _ in 0..batches {
        std::hint::black_box(held_out_rows.next_batch()?);
    }
    let read = clock.speed(batches * (held_out_rows.batch() * store.spec().row_bytes()) as u64);
    Ok(json!({
        "rows": store.rows(), "held_out_seconds": held_out, "norms": norms, "left_out": mask.left_out(),
        "read_held_out": read,
    }))
}

/// Pairs of rows of one context in a batch, against a uniform permutation of all rows.
///
/// The order depends on the numbers of rows only, not on what is in them. So it is measured on a store with the
/// contexts of STORE (TIMES over) and the default layout of float16 rows of its width, whose rows say which context they are of.
fn mixing(store: &str, choice: [&str; 3]) -> Outcome<Value> {
    let model = Store::open(Path::new(store))?;
    let [times, window_rows, k]: [usize; 3] = [choice[0].parse()?, choice[1].parse()?, choice[2].parse()?];
    let contexts = model.contexts() as usize * times;
    let length = model.context_length();
    let mut spec = StoreSpec::new(1, length, contexts as u64);
    (spec.row_type, spec.vocabulary) = (RowType::F32, 2);
    spec.layout = Layout::for_memory(model.width(), RowType::F16, 2 << 30);
    if window_rows > 0 {
        let shards = window_rows.div_ceil(spec.layout.shard_rows);
        spec.layout.window_rows = shards * spec.layout.shard_rows;
    }
    let folder = tempfile::tempdir()?;
    let mut writer = StoreWriter::open(folder.path(), &spec, &WriterOptions::default())?;
    for context in 0..contexts {
        let rows = Array3::from_elem((1, length, 1), context as f32);
        writer.append(Array2::zeros((1, length)).view(), rows.view())?;
    }
    writer.finish()?;
    // The default K of such a store.
    let windows = (contexts * length).div_ceil(spec.layout.window_rows);
    let most = (384 << 20) / (spec.layout.chunk_rows * model.width() * RowType::F16.bytes());
    let k = if k > 0 { k } else { windows.max(64).min(most) };
    let options = StreamOptions { mixing_chunks: Some(k), ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![Store::open(folder.path())?], options)?;
    let (rows, batch) = (stream.rows_per_epoch(), stream.batch());
    let batches = rows / batch as u64;
    let mut pairs = 0_u64;
    for _ in 0..batches {
        let mut of_context: HashMap<u32, u64> = HashMap::new();
        for &context in stream.next_batch()?.column(0) {
            *of_context.entry(context as u32).or_default() += 1;
        }
        pairs += of_context.values().map(|n| n * (n - 1) / 2).sum::<u64>();
    }
    let in_batches = batches as f64 * batch as f64 * (batch as f64 - 1.0) / 2.0;
    let uniform = in_batches * (length as f64 - 1.0) / (rows as f64 - 1.0);
    Ok(json!({
        "rows": rows, "window_rows": spec.layout.window_rows, "windows": windows, "k": stream.mixing_chunks(),
        "pairs_against_uniform": pairs as f64 / uniform,
    }))
}

/// Wall-clock and processor time since its start.
struct Clock {
    wall: Instant,
    processor: Option<Processor>,
}

/// Seconds that this process has spent in its own code and in the system's.
struct Processor {
    user: f64,
    system: f64,
}

impl Clock {
    fn start() -> Clock {
        Clock { wall: Instant::now(), processor: Processor::now() }
    }

    /// GB per second of processor time and of wall-clock time; the system's share of the processor time.
    fn speed(&self, bytes: u64) -> Value {
        let gigabytes = bytes as f64 / 1e9;
        let wall = self.wall.elapsed().as_secs_f64();
        let Some((start, now)) = self.processor.as_ref().zip(Processor::now()) else {
            return json!({ "core": gigabytes / wall, "wall": gigabytes / wall });
        };
        let (user, system) = (now.user - start.user, now.system - start.system);
        json!({ "core": gigabytes / (user + system), "wall": gigabytes / wall, "system": system / (user + system) })
    }
}

impl Processor {
    /// Where the system tells (Linux; its ticks are hundredths of a second).
    fn now() -> Option<Processor> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let seconds = |field: usize| Some(fields.get(field)?.parse::<u64>().ok()? as f64 / 100.0);
        Some(Processor { user: seconds(11)?, system: seconds(12)? })
    }
}

/// Resident memory that is not mapped files, where the system tells (Linux).
fn anonymous_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
