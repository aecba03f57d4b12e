//! The sound files, of which a target damages one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A copy of `fuzz/ground` in a temporary folder, in memory where the system has such a file system.
#[derive(Debug)]
pub struct Ground {
    folder: tempfile::TempDir,
    sound: BTreeMap<String, Vec<u8>>,
}

/// A dump that was stopped just before its end leaves a store without these, and not called complete.
const LAST_FILES: [&str; 2] = ["store/manifest", "store/activations/zarr.json"];
/// The files of a store that checksums of others change with.
const CHECKSUMS: [&str; 2] = ["store/journal", "store/manifest"];

impl Ground {
    /// Copies the sound files.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn new() -> Ground {
        let prefix = std::env::var("FUZZ_PREFIX").unwrap_or_else(|_| "fuzz-".to_owned());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in("/dev/shm");
        let folder = folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made");
        let mut sound = BTreeMap::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../ground"), "", &mut sound);
        let unfinished = |(name, bytes): (&String, &Vec<u8>)| {
            let name = name.strip_prefix("store/").filter(|_| !LAST_FILES.contains(&name.as_str()))?;
            let bytes = match name {
                "zarr.json" => String::from_utf8_lossy(bytes)
                    .replace("\"complete\": true", "\"complete\": false")
                    .into_bytes(),
                _ => bytes.clone(),
            };
            Some((format!("unfinished/{name}"), bytes))
        };
        let unfinished: Vec<_> = sound.iter().filter_map(unfinished).collect();
        sound.extend(unfinished);
        let ground = Ground { folder, sound };
        for (name, bytes) in &ground.sound {
            ground.replace(name, bytes);
        }
        ground
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The sound content of the file `name`.
    pub fn sound(&self, name: &str) -> &[u8] {
        &self.sound[name]
    }

    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder can be made");
        fs::write(path, bytes).expect("a file can be written");
    }

    /// Puts back the file `name`, and those with checksums.
    pub(crate) fn restore(&self, name: &str) {
        for name in CHECKSUMS.into_iter().chain([name]) {
            self.replace(name, self.sound(name));
        }
    }
}

impl Default for Ground {
    fn default() -> Ground {
        Ground::new()
    }
}

fn collect(folder: &Path, below: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("the ground is there") {
        let path = entry.expect("it can be read").path();
        let name = format!("{below}{}", path.file_name().expect("it has a name").to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), found);
        } else {
            found.insert(name, fs::read(&path).expect("the ground can be read"));
        }
    }
}
