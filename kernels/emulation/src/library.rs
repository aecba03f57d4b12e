//! Compiles the kernels for the CPU and loads them.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kernels::cuda::sources::{HEADERS, KERNELS};

use crate::compiler::{FLAGS, built_folder, compile_files, run_compiler, sources};
use crate::signatures::kernel_names;

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
pub(crate) const ONLY_ON_A_GPU: [&str; 2] = ["encode_mma", "encode_wgmma"];

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

/// A kernel in the library.
pub(crate) struct EmulatedKernel {
    pub(crate) launch: unsafe extern "C" fn(*const u32, *const u32, *mut *mut c_void, u32),
    pub(crate) kinds: unsafe extern "C" fn() -> *const c_char,
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

/// The library's path; compiles it if there is none for these sources and flags.
pub(crate) fn compiled(sanitizer: Sanitizer) -> PathBuf {
    let own: Vec<String> =
        ["cuda.h", "fibers.cpp"].map(|file| std::fs::read_to_string(sources().join(file)).unwrap()).to_vec();
    let mut hash = DefaultHasher::new();
    (FLAGS, sanitizer, &own).hash(&mut hash);
    KERNELS.iter().chain(HEADERS).for_each(|source| (source.name, source.text).hash(&mut hash));
    let root = built_folder();
    let library = root.join(format!("emulation-{:016x}.so", hash.finish()));
    if !library.exists() {
        // Several test binaries may do this at once: each in a folder of its own, the last rename wins.
        let build = tempfile::Builder::new().prefix("emulation-").tempdir_in(&root).unwrap();
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
    std::fs::copy(sources().join("fibers.cpp"), build.join("fibers.cpp")).unwrap();
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
