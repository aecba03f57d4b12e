//! Stores in a bucket in memory, whose requests fail as they are told to.

mod faults;
mod reading;
mod writing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ndarray::{Array2, Array3};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::cached::Cached;
use super::client::{Bucket, runtime};
use crate::address::Address;
use crate::disk::DiskHook;
use crate::{CacheOptions, Layout, Result, Store, StoreSpec, StoreWriter};
use faults::{Fault, Faults, at_first};

/// Three windows and a short one; their boundaries fall inside of contexts, and inside of chunks of tokens.
fn spec() -> StoreSpec {
    let mut spec = StoreSpec::new(12, 10, 66);
    (spec.bos_token, spec.vocabulary, spec.seed) = (1, 500, 7);
    spec.layout = Layout { window_rows: 192, shard_rows: 64, chunk_rows: 16, zstd_level: 1 };
    spec
}

/// Contexts `first..first + n`.
fn contexts(spec: &StoreSpec, first: u64, n: u64) -> (Array2<u32>, Array3<f32>) {
    let (n, length, first) = (n as usize, spec.context_length, first as usize);
    let place = |context: usize, position: usize| (first + context) * length + position;
    let tokens =
        Array2::from_shape_fn(
            (n, length),
            |(c, p)| if p == 0 { 1 } else { (place(c, p) * 31 % 498 + 2) as u32 },
        );
    let rows = Array3::from_shape_fn((n, length, spec.width), |(c, p, d)| match d {
        0 => place(c, p) as f32,
        _ => {
            let hash = ((place(c, p) * spec.width + d) as u64 ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (hash >> 40) as f32 / (1 << 24) as f32
        }
    });
    (tokens, rows)
}

/// Appends everything from where the writer is, and finishes.
fn write_rest(writer: &mut StoreWriter, spec: &StoreSpec) -> Result<()> {
    let mut context = writer.contexts_done();
    while context < spec.contexts {
        let n = 7.min(spec.contexts - context);
        let (tokens, rows) = contexts(spec, context, n);
        writer.append(tokens.view(), rows.view())?;
        context += n;
    }
    writer.complete()
}

/// The store in a folder.
fn local(spec: &StoreSpec) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open(dir.path(), spec, &Default::default()).unwrap();
    write_rest(&mut writer, spec).unwrap();
    dir
}

/// Every file below a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// A bucket in memory.
struct Memory {
    store: Arc<InMemory>,
}

impl Memory {
    fn new() -> Memory {
        Memory { store: Arc::default() }
    }

    /// With the files of a folder as the store `acts`.
    fn with(dir: &Path) -> Memory {
        let memory = Memory::new();
        for (name, content) in files(dir) {
            memory.put(&name, content);
        }
        memory
    }

    fn put(&self, name: &str, content: Vec<u8>) {
        use object_store::ObjectStoreExt;
        let path = format!("acts/{name}").into();
        runtime().unwrap().block_on(self.store.put(&path, content.into())).unwrap();
    }

    fn delete(&self, name: &str) {
        use object_store::ObjectStoreExt;
        runtime().unwrap().block_on(self.store.delete(&format!("acts/{name}").into())).unwrap();
    }

    /// Every object.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let bucket = self.bucket();
        let all = async {
            let mut found = BTreeMap::new();
            for name in bucket.list().await.unwrap().into_keys() {
                let content = bucket.get(&name).await.unwrap().0;
                found.insert(name, content.to_vec());
            }
            found
        };
        runtime().unwrap().block_on(all)
    }

    /// A client whose requests succeed.
    fn bucket(&self) -> Bucket {
        client(self.store.clone())
    }

    /// A client whose requests do what `fault` says.
    fn failing(&self, fault: impl Fn(&str, &str) -> Fault + Send + Sync + 'static) -> Bucket {
        client(Arc::new(Faults::new(self.store.clone(), fault)))
    }
}

fn client(store: Arc<dyn ObjectStore>) -> Bucket {
    let address = Address::parse(Path::new("s3://bucket/acts")).unwrap();
    Bucket::over(store, &address, "a server in memory".to_owned()).with_patience(Duration::from_millis(400))
}

fn cache(folder: &Path, size: Option<u64>) -> CacheOptions {
    CacheOptions { folder: folder.to_path_buf(), size }
}

/// The store in `bucket`, through a cache.
fn open(bucket: &Bucket, options: &CacheOptions) -> Result<Store> {
    let (catalog, cached) = Cached::over(bucket, options)?;
    Ok(Store::of_bucket(catalog, cached))
}

/// A writer of the store in `bucket`.
fn writer(bucket: &Bucket, spec: &StoreSpec, hook: Option<DiskHook>) -> Result<StoreWriter> {
    let beginning = crate::writer::beginning(spec);
    let opened = super::writer::open_in(bucket, spec, &beginning, hook)?;
    StoreWriter::continued(&PathBuf::from("s3://bucket/acts"), spec, 2, opened)
}
