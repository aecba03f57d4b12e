//! The kernels' sources, embedded in the program.

/// A file of `kernels/cuda`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name without its ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($ending:literal: $($name:literal)*) => {
        &[$(Source { name: $name, text: include_str!(concat!("../../cuda/", $name, $ending)) }),*]
    };
}

/// The files that are compiled, each for itself.
pub const KERNELS: &[Source] = sources!(".cu":
    "backward"
    "clip"
    "dead"
    "decode"
    "dense"
    "encode"
    "encode_mma"
    "encode_wgmma"
    "frequency"
    "groups"
    "jump"
    "jump_dense"
    "lists"
    "panels"
    "rank"
    "recheck"
    "report"
    "rows"
    "screen"
    "select"
    "select_batch"
    "update"
    "widen"
);

/// The files that they include.
pub const HEADERS: &[Source] = sources!(".cuh":
    "ahead"
    "ampere"
    "backward"
    "decode"
    "dense"
    "digits"
    "encode"
    "feature"
    "four"
    "hopper"
    "jump"
    "last"
    "place"
    "recheck"
    "reduce"
    "screen_bits"
    "sparsity"
    "types"
    "update"
    "window"
);

/// The lowest compute capability that a file is made for.
pub fn lowest_capability(name: &str) -> (u32, u32) {
    if name == "encode_wgmma" { (9, 0) } else { (8, 0) }
}

/// Whether a file is made for one compute capability alone, not for those above it.
fn exact(name: &str) -> bool {
    name == "encode_wgmma"
}

/// The files for a device.
pub fn kernels_for(capability: (u32, u32)) -> impl Iterator<Item = &'static Source> {
    KERNELS.iter().filter(move |source| {
        let lowest = lowest_capability(source.name);
        if exact(source.name) { capability == lowest } else { capability >= lowest }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        for (ending, sources) in [("cu", KERNELS), ("cuh", HEADERS)] {
            let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let files = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
            let mut files: Vec<String> =
                files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
            files.sort();
            let mut embedded: Vec<&str> = sources.iter().map(|source| source.name).collect();
            embedded.sort();
            assert_eq!(files, embedded, "*.{ending}");
        }
    }

    #[test]
    fn a_device_gets_only_the_files_that_are_made_for_it() {
        let has = |capability, name: &str| kernels_for(capability).any(|source| source.name == name);
        assert!(has((9, 0), "encode_wgmma") && has((9, 0), "encode_mma"));
        assert!(!has((8, 9), "encode_wgmma") && has((8, 9), "encode_mma"));
        assert!(!has((10, 0), "encode_wgmma") && has((10, 0), "encode_mma"));
        assert_eq!(kernels_for((7, 5)).count(), 0);
    }
}
