//! The small files of a store, copied into its folder in a cache.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::client::Bucket;
use super::files::BucketFiles;
use crate::catalog::Catalog;
use crate::files::Files;
use crate::journal::{self, Manifest};
use crate::metadata::ZARR_JSON;
use crate::paths::MANIFEST;
use crate::{Result, StoreError};

/// Reads the catalog of the store in `bucket` and copies its small files to a folder below `cache`, which it names: by the last
/// part of the store's address and the checksum of its manifest, so that a store that was written anew has a folder of its own.
///
/// # Errors
/// As of [`Catalog::read`]; a folder that cannot be written.
pub(super) fn copy(bucket: &Bucket, cache: &Path) -> Result<(PathBuf, Catalog)> {
    let direct = BucketFiles::new(bucket.clone());
    // Twice: damaged on their way, perhaps.
    let files = match identity(&direct)?.map_or_else(|| identity(&direct), |files| Ok(Some(files)))? {
        Some(files) => files,
        None => {
            // It says what is wrong with them, or how far the store is.
            Catalog::read(&direct)?;
            return Err(StoreError::damaged(&bucket.path().join(MANIFEST), "it changes while it is read"));
        }
    };
    let (manifest, _) = journal::parse_line::<Manifest>(&files[1].1).expect("it was read before");
    let dir = cache.join(format!("{}-{:08x}", bucket.address().name(), crc32c::crc32c(&files[1].1)));
    if fs::read(dir.join(MANIFEST)).is_ok_and(|found| found != files[1].1) {
        // Another store by the same name and checksum.
        fs::remove_dir_all(&dir).map_err(StoreError::io("remove", &dir))?;
    }
    let mirror = Mirror { direct, dir, manifest, files };
    let catalog = Catalog::read(&mirror)?;
    for (name, content) in &mirror.files {
        mirror.keep(name, content).map_err(StoreError::io("write", &mirror.dir.join(name)))?;
    }
    Ok((mirror.dir, catalog))
}

/// The metadata and the manifest of a finished store, if they are those of each other.
fn identity(direct: &BucketFiles) -> Result<Option<[(&'static str, Vec<u8>); 2]>> {
    let read = |name: &str| match direct.read(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(StoreError::io("read", &direct.place().join(name))),
    };
    let Some(group) = read(ZARR_JSON)? else {
        return Err(StoreError::NotFound(direct.place().to_path_buf()));
    };
    let Some(manifest) = read(MANIFEST)? else { return Ok(None) };
    let of_group = journal::parse_line::<Manifest>(&manifest)
        .filter(|(_, length)| *length == manifest.len())
        .and_then(|(parsed, _)| parsed.files.into_iter().find(|file| file.name == ZARR_JSON));
    let fits = of_group
        .is_some_and(|file| file.bytes == group.len() as u64 && file.crc32c == crc32c::crc32c(&group));
    Ok(fits.then_some([(ZARR_JSON, group), (MANIFEST, manifest)]))
}

/// Reads from the folder what is sound there, and from the bucket into the folder what is not.
struct Mirror {
    direct: BucketFiles,
    dir: PathBuf,
    manifest: Manifest,
    /// What tells which store it is, fresh from the bucket.
    files: [(&'static str, Vec<u8>); 2],
}

impl Mirror {
    fn keep(&self, name: &str, content: &[u8]) -> io::Result<()> {
        write_file(&self.dir.join(name), content)
    }
}

/// Writes a file, which appears whole; folders come with it.
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Without waiting for the disk: each reader checks what it finds.
    let unfinished = durable_files::unfinished(path);
    fs::write(&unfinished, content)?;
    fs::rename(&unfinished, path)
}

impl Files for Mirror {
    fn place(&self) -> &Path {
        self.direct.place()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        if let Some((_, content)) = self.files.iter().find(|(file, _)| *file == name) {
            return Ok(content.clone());
        }
        let recorded =
            self.manifest.files.iter().find(|file| file.name == name).ok_or(ErrorKind::NotFound)?;
        let is_sound = |content: &[u8]| {
            content.len() as u64 == recorded.bytes && crc32c::crc32c(content) == recorded.crc32c
        };
        match fs::read(self.dir.join(name)) {
            Ok(content) if is_sound(&content) => return Ok(content),
            _ => {}
        }
        let mut content = self.direct.read(name)?;
        if !is_sound(&content) {
            // Damaged on its way, or in the bucket: whoever asks compares as well.
            content = self.direct.read(name)?;
        }
        if is_sound(&content) {
            self.keep(name, &content)?;
        }
        Ok(content)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.direct.size(name)
    }

    fn checksum(&self, name: &str) -> io::Result<u32> {
        self.direct.checksum(name)
    }

    fn journal(&self) -> io::Result<Vec<u8>> {
        self.direct.journal()
    }
}
