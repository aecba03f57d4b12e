//! Compiles C++ into libraries that all test binaries share.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// -O2 without contraction: a multiply-add is fused where the source says so, which is what the CPU engine does.
pub(crate) const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-march=native",
    "-ffp-contract=off",
    "-fPIC",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Werror",
];

/// The folder of this crate's C++.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp")
}

/// Where libraries are kept: cargo's folder for what tests leave, `tmp` beside the profiles' folders.
///
/// # Panics
/// If this process is not a test binary where cargo puts them, PROFILE/deps.
pub(crate) fn built_folder() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    let deps = binary.ancestors().find(|folder| folder.ends_with("deps"));
    let target = deps.and_then(|deps| deps.parent()?.parent());
    let target = target.unwrap_or_else(|| panic!("{} is not in cargo's target folder", binary.display()));
    let folder = target.join("tmp");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// Compiles NAME.cpp in the folder `build` to NAME.o there, for every name.
pub(crate) fn compile_files(build: &Path, names: &[String], flags: &[String]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for group in names.chunks(threads) {
        let start = |name: &String| {
            let file = ["-c".into(), format!("{name}.cpp"), "-o".into(), format!("{name}.o")];
            start_compiler(build, flags.iter().cloned().chain(file))
        };
        let children: Vec<Child> = group.iter().map(start).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "g++ refused a file; what it said is above");
        }
    }
}

fn start_compiler(build: &Path, arguments: impl Iterator<Item = String>) -> Child {
    let mut command = Command::new("g++");
    command.current_dir(build).args(FLAGS).arg("-I").arg(sources()).args(arguments);
    command.spawn().unwrap_or_else(|error| panic!("g++, which compiles the emulation: {error}"))
}

/// Runs g++ in the folder `build`.
pub(crate) fn run_compiler(build: &Path, arguments: impl Iterator<Item = String>) {
    assert!(start_compiler(build, arguments).wait().unwrap().success(), "g++ failed; what it said is above");
}
