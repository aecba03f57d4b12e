//! Compiles the kernels for the CPU and loads them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;

use kernels::cuda::sources::{HEADERS, KERNELS};

use super::EmulatedKernel;

/// Whether memory accesses are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sanitizer {
    None,
    /// The process must have been started with the sanitizer's library preloaded.
    Address,
}

/// Set in processes that were started with the address sanitizer preloaded.
pub(crate) const SANITIZED: &str = "EMULATION_SANITIZED";

impl Sanitizer {
    pub(crate) fn from_environment() -> Sanitizer {
        if std::env::var_os(SANITIZED).is_some() { Sanitizer::Address } else { Sanitizer::None }
    }
}

/// Files that only tensor cores can run.
pub(super) const ONLY_ON_A_GPU: [&str; 2] = ["encode_mma", "encode_wgmma"];

/// -O2 without contraction: a multiply-add is fused where the source says so, which is what the CPU engine does.
pub(super) const FLAGS: [&str; 9] = [
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

impl Sanitizer {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Sanitizer::None => &[],
            Sanitizer::Address => {
                &["-fsanitize=address", "-fsanitize-sections=emulated_shared", "-fno-omit-frame-pointer"]
            }
        }
    }
}

/// All kernels, loaded.
pub(crate) struct Kernels {
    kernels: BTreeMap<String, EmulatedKernel>,
}

impl Kernels {
    /// The kernels, compiled if they are not yet.
    pub(crate) fn get(sanitizer: Sanitizer) -> &'static Kernels {
        static LOADED: OnceLock<Kernels> = OnceLock::new();
        LOADED.get_or_init(|| Kernels::load(&compiled(sanitizer)))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&EmulatedKernel> {
        self.kernels.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    fn load(path: &Path) -> Kernels {
        // SAFETY: the library's constructors are those of the C++ runtime.
        let library = unsafe { libloading::Library::new(path) }
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        let mut kernels = BTreeMap::new();
        for source in KERNELS.iter().filter(|source| !ONLY_ON_A_GPU.contains(&source.name)) {
            for name in kernel_names(source.text) {
                // SAFETY: EXPORT_KERNEL defines both symbols with these types.
                let kernel = unsafe {
                    EmulatedKernel {
                        launch: *library.get(format!("{name}__launch")).unwrap(),
                        kinds: *library.get(format!("{name}__kinds")).unwrap(),
                    }
                };
                kernels.insert(name, kernel);
            }
        }
        Kernels { kernels }
    }
}

/// The names of the `extern "C" __global__` functions of a file.
pub(super) fn kernel_names(text: &str) -> Vec<String> {
    signatures(text).into_iter().map(|(name, _)| name).collect()
}

/// The names of a kernel's parameters.
pub(super) fn parameters(kernel: &str) -> &'static [String] {
    static KNOWN: OnceLock<BTreeMap<String, Vec<String>>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| KERNELS.iter().flat_map(|source| signatures(source.text)).collect());
    known.get(kernel).map(Vec::as_slice).unwrap_or_default()
}

/// The `extern "C" __global__` functions of a file and their parameters' names. A function whose name ends with
/// `##CHUNKS` stands for one per `KERNELS(…)` below it.
fn signatures(text: &str) -> Vec<(String, Vec<String>)> {
    let mut signatures = Vec::new();
    for part in text.split("extern \"C\" __global__ void").skip(1) {
        let blank = |c: char| c.is_whitespace() || c == '\\';
        let mut rest = part.trim_start_matches(blank);
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = bounds.split_once(')').unwrap().1.trim_start_matches(blank);
        }
        let (name, rest) = rest.split_once('(').unwrap();
        let declarations = rest.split_once(')').unwrap().0.split(',');
        let last_word = |declaration: &str| {
            let name = declaration.trim_matches(blank).rsplit(|c: char| c.is_whitespace() || c == '*').next();
            name.unwrap().to_owned()
        };
        let parameters: Vec<String> = declarations.map(last_word).collect();
        match name.trim().strip_suffix("##CHUNKS") {
            None => signatures.push((name.trim().to_owned(), parameters)),
            Some(stem) => {
                let uses = text.lines().filter_map(|line| line.strip_prefix("KERNELS("));
                let number = |rest: &str| rest.split([',', ')']).next().unwrap().to_owned();
                let named = uses.map(|rest| (format!("{stem}{}", number(rest)), parameters.clone()));
                signatures.extend(named);
            }
        }
    }
    signatures
}

pub(super) fn folder() -> PathBuf {
    // Found from the crates beside this one too, whose tests include this file.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/tests/emulation")
}

/// The library's path; compiles it if there is none for these sources and flags.
pub(super) fn compiled(sanitizer: Sanitizer) -> PathBuf {
    let own: Vec<String> =
        ["cuda.h", "fibers.cpp"].map(|file| std::fs::read_to_string(folder().join(file)).unwrap()).to_vec();
    let mut hash = DefaultHasher::new();
    (FLAGS, sanitizer, &own).hash(&mut hash);
    KERNELS.iter().chain(HEADERS).for_each(|source| (source.name, source.text).hash(&mut hash));
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = root.join(format!("emulation-{:016x}.so", hash.finish()));
    if !library.exists() {
        // Several test binaries may do this at once: each in a folder of its own, the last rename wins.
        let build = tempfile::Builder::new().prefix("emulation-").tempdir_in(root).unwrap();
        compile(build.path(), sanitizer);
        std::fs::rename(build.path().join("library.so"), &library).unwrap();
    }
    library
}

fn compile(build: &Path, sanitizer: Sanitizer) {
    for header in HEADERS {
        std::fs::write(build.join(header.name).with_extension("cuh"), header.text).unwrap();
    }
    let mut objects = vec!["fibers".to_owned()];
    std::fs::copy(folder().join("fibers.cpp"), build.join("fibers.cpp")).unwrap();
    for source in KERNELS.iter().filter(|source| !ONLY_ON_A_GPU.contains(&source.name)) {
        std::fs::write(build.join(source.name).with_extension("cu"), source.text).unwrap();
        let exports: String =
            kernel_names(source.text).iter().map(|name| format!("EXPORT_KERNEL({name})\n")).collect();
        let text = format!("#include \"cuda.h\"\n#include \"{}.cu\"\n{exports}", source.name);
        std::fs::write(build.join(source.name).with_extension("cpp"), text).unwrap();
        objects.push(source.name.to_owned());
    }
    let flags: Vec<String> = sanitizer.flags().iter().map(|flag| flag.to_string()).collect();
    compile_files(build, &objects, &flags);
    let link = objects.iter().map(|name| format!("{name}.o"));
    run_compiler(
        build,
        ["-shared", "-o", "library.so"].map(String::from).into_iter().chain(flags).chain(link),
    );
}

/// Compiles NAME.cpp in the folder `build` to NAME.o there, for every name.
pub(super) fn compile_files(build: &Path, names: &[String], flags: &[String]) {
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
    command.current_dir(build).args(FLAGS).arg("-I").arg(folder()).args(arguments);
    command.spawn().unwrap_or_else(|error| panic!("g++, which compiles the emulation: {error}"))
}

/// Runs g++ in the folder `build`.
pub(super) fn run_compiler(build: &Path, arguments: impl Iterator<Item = String>) {
    assert!(start_compiler(build, arguments).wait().unwrap().success(), "g++ failed; what it said is above");
}
