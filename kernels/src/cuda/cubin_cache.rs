//! Compiled kernels kept on disk, so that a program that starts again need not compile them again.
//!
//! A file per kernel source, build and compiler: its name is the SHA-256 of everything that went into it, its
//! content the SHA-256 of the machine code followed by the machine code. The cache is a convenience: what cannot be read
//! is compiled, what cannot be written is not kept.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::nvrtc::{Architecture, Waits};
use super::sources::{HEADERS, Source};

/// Length of a SHA-256.
const DIGEST: usize = 32;

/// What a source was compiled for, and by which version of the compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// The device's architecture.
    pub architecture: Architecture,
    /// Whether waits are bounded.
    pub waits: Waits,
    /// The compiler's version, major and minor.
    pub compiler: (i32, i32),
}

/// A folder of compiled kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubinCache {
    folder: Option<PathBuf>,
}

impl CubinCache {
    /// The user's cache: `$XDG_CACHE_HOME/sae-trainer/kernels`, by default under `~/.cache`; none without a home.
    pub fn of_the_user() -> CubinCache {
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        CubinCache { folder: base.map(|base| base.join("sae-trainer/kernels")) }
    }

    /// A cache in a folder, which need not exist yet.
    pub fn in_folder(folder: &Path) -> CubinCache {
        CubinCache { folder: Some(folder.to_owned()) }
    }

    /// Where the machine code of `source` is kept.
    fn path(&self, source: &Source, build: Build) -> Option<PathBuf> {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        for part in [source].into_iter().chain(HEADERS) {
            add(part.name);
            add(part.text);
        }
        let Build { architecture, waits, compiler } = build;
        waits.options().for_each(&mut add);
        add(&format!("{architecture} {compiler:?}"));
        let name: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.folder.as_ref()?.join(format!("{}-{architecture}-{name}.cubin", source.name)))
    }

    /// The machine code kept for `source`, if it is there and whole.
    pub fn read(&self, source: &Source, build: Build) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(source, build)?).ok()?;
        if bytes.len() <= DIGEST || Sha256::digest(&bytes[DIGEST..])[..] != bytes[..DIGEST] {
            return None;
        }
        bytes.drain(..DIGEST);
        Some(bytes)
    }

    /// Keeps the machine code of `source`; whole or not at all, also with several programs at it.
    pub fn write(&self, source: &Source, build: Build, cubin: &[u8]) {
        let Some(path) = self.path(source, build) else { return };
        let Some(folder) = path.parent() else { return };
        let kept = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&Sha256::digest(cubin))?;
            file.write_all(cubin)?;
            file.persist(&path)?;
            Ok(())
        };
        // A full or read-only disk is no reason not to train.
        let _ = kept();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { name: "f", text: "extern \"C\" __global__ void f() {}" };
    const BUILD: Build =
        Build { architecture: Architecture((9, 0)), waits: Waits::Unbounded, compiler: (13, 0) };

    #[test]
    fn what_was_written_is_read_by_the_same_source_and_build_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::in_folder(&folder.path().join("new"));
        assert_eq!(cache.read(&SOURCE, BUILD), None);
        cache.write(&SOURCE, BUILD, b"machine code");
        assert_eq!(cache.read(&SOURCE, BUILD).unwrap(), b"machine code");
        let changed = Source { text: "extern \"C\" __global__ void f() { }", ..SOURCE };
        assert_eq!(cache.read(&changed, BUILD), None);
        for other in [
            Build { architecture: Architecture((8, 0)), ..BUILD },
            Build { waits: Waits::Bounded, ..BUILD },
            Build { compiler: (12, 9), ..BUILD },
        ] {
            assert_eq!(cache.read(&SOURCE, other), None, "{other:?}");
        }
    }

    #[test]
    fn a_damaged_or_cut_file_counts_as_absent_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::in_folder(folder.path());
        cache.write(&SOURCE, BUILD, b"machine code");
        let path = cache.path(&SOURCE, BUILD).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        for bytes in [&damaged[..], &whole[..whole.len() - 1], &whole[..DIGEST], b""] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.read(&SOURCE, BUILD), None);
        }
        cache.write(&SOURCE, BUILD, b"machine code");
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "temporary files are gone");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        let cache = CubinCache::in_folder(&file);
        cache.write(&SOURCE, BUILD, b"machine code");
        assert_eq!(cache.read(&SOURCE, BUILD), None);
    }
}
