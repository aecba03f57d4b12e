//! Builds the emulated CUDA driver (`cpp/driver/README.md`) and runs programs on it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use kernels::cuda::sources::{HEADERS, KERNELS};

use crate::compiler::{FLAGS, built_folder, compile_files, run_compiler, sources};
use crate::library::{ONLY_ON_A_GPU, Sanitizer, compiled};
use crate::signatures::kernel_names;

/// The files of libcuda.so.1, and those of libcublas.so.13 and libnccl.so.2.
const DRIVER: [&str; 8] =
    ["device", "memory", "streams", "graphs", "modules", "products", "transfers", "tensor_core_kernels"];
const BLAS: &str = "blas";
const NCCL: &str = "nccl";
const DRIVER_HEADERS: [&str; 4] = ["driver.h", "kernels.h", "blas.h", "transfers.h"];
const TENSOR_CORES: &str = "tensor_cores.h";

/// The libraries' names as programs ask for them.
const LIBCUDA: &str = "libcuda.so.1";
const LIBCUBLAS: &str = "libcublas.so.13";
const LIBNCCL: &str = "libnccl.so.2";

/// The emulated driver with wishes for its behaviour, and the processes that run on it.
#[derive(Debug, Clone, Default)]
pub struct EmulatedDriver {
    variables: Vec<(String, String)>,
}

impl EmulatedDriver {
    /// A device of compute capability 9.0 that does all work at the call.
    pub fn new() -> EmulatedDriver {
        EmulatedDriver::default()
    }

    /// With the variable `CUDA_EMULATION_name` (`cpp/driver/README.md` lists them).
    pub fn with(mut self, name: &str, value: &str) -> EmulatedDriver {
        self.variables.push((format!("CUDA_EMULATION_{name}"), value.to_owned()));
        self
    }

    /// With a variable for the program itself.
    pub fn asking(mut self, variable: &str, value: &str) -> EmulatedDriver {
        self.variables.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Lets `command` find the emulated driver, and keeps the real one and its devices away. The compiler is the
    /// workspace's.
    pub fn prepare(&self, command: &mut Command) {
        let compiler = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nvrtc");
        let paths = std::env::join_paths([libraries().to_owned(), compiler]).unwrap();
        command.env("LD_LIBRARY_PATH", paths);
        // What this machine's environment asks of a real device.
        command.env_remove("SAE_TRAINER_CUDA_SCREEN").env_remove("SAE_TRAINER_CUDA_BOUNDED_WAITS");
        command.env("XDG_CACHE_HOME", built_folder().join("cubins"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// Runs this test binary's test `name`, an ignored one, on the driver.
    pub fn run_test(&self, name: &str) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", name, "--nocapture"]);
        self.prepare(&mut command);
        command.output().unwrap()
    }

    /// Runs this test binary's test `name`, which has to pass.
    pub fn pass_test(&self, name: &str) {
        let output = self.run_test(name);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{name} {:?}: {}\n{out}{error}", self.variables, output.status);
        assert!(out.contains("1 passed"), "there is no test {name}\n{out}");
    }
}

/// The folder with the libraries; compiles them if there are none for these sources and flags.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let kernels = compiled(Sanitizer::None);
        let source = sources().join("driver");
        let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap();
        let mut hash = DefaultHasher::new();
        (FLAGS, &kernels, read(sources().join(TENSOR_CORES))).hash(&mut hash);
        let files = DRIVER.iter().chain([&BLAS, &NCCL]).map(|name| format!("{name}.cpp"));
        files
            .chain(DRIVER_HEADERS.map(String::from))
            .for_each(|name| read(source.join(name)).hash(&mut hash));
        KERNELS.iter().for_each(|source| source.text.hash(&mut hash));
        let root = built_folder();
        let built = root.join(format!("driver-{:016x}", hash.finish()));
        if !built.exists() {
            let build = tempfile::Builder::new().prefix("driver-").tempdir_in(&root).unwrap();
            compile(build.path(), &source, &kernels);
            // Another test binary may have been faster.
            let renamed = std::fs::rename(build.path(), &built);
            assert!(renamed.is_ok() || built.exists(), "{renamed:?}");
            std::mem::forget(build);
        }
        built
    })
}

fn compile(build: &Path, source: &Path, kernels: &Path) {
    for header in HEADERS {
        std::fs::write(build.join(header.name).with_extension("cuh"), header.text).unwrap();
    }
    for kernel in KERNELS.iter().filter(|kernel| ONLY_ON_A_GPU.contains(&kernel.name)) {
        std::fs::write(build.join(kernel.name).with_extension("cu"), kernel.text).unwrap();
    }
    let mut names: Vec<String> = DRIVER.map(String::from).to_vec();
    names.extend([BLAS, NCCL].map(String::from));
    for name in &names {
        // The file stays where it is, so that its includes are found.
        let text = format!("#include \"{}\"\n", source.join(name).with_extension("cpp").display());
        std::fs::write(build.join(name).with_extension("cpp"), text).unwrap();
    }
    std::fs::write(build.join("table.cpp"), table()).unwrap();
    names.push("table".to_owned());
    let include = |path: &Path| format!("-I{}", path.display());
    let flags = ["-fvisibility=hidden".into(), include(build), include(source), "-Wno-psabi".into()];
    compile_files(build, &names, &flags);

    let objects = DRIVER.iter().chain([&"table"]).map(|name| format!("{name}.o"));
    let link = |name: &str| ["-shared", "-o", name, &format!("-Wl,-soname,{name}")].map(String::from);
    run_compiler(build, link(LIBCUDA).into_iter().chain(objects).chain([kernels.display().to_string()]));
    let blas = [format!("{BLAS}.o"), LIBCUDA.to_owned()];
    run_compiler(build, link(LIBCUBLAS).into_iter().chain(blas));
    let nccl = [format!("{NCCL}.o"), LIBCUDA.to_owned(), "-pthread".to_owned()];
    run_compiler(build, link(LIBNCCL).into_iter().chain(nccl));
    // The first name that programs try; a machine may have the real one under it.
    std::os::unix::fs::symlink(LIBCUDA, build.join("libcuda.so")).unwrap();
    std::os::unix::fs::symlink(LIBCUBLAS, build.join("libcublas.so")).unwrap();
}

/// The table of all kernels, C++.
fn table() -> String {
    let names = KERNELS.iter().flat_map(|source| kernel_names(source.text));
    // That of a check build alone.
    let names: Vec<String> = names.chain(["leave_word_at".to_owned()]).collect();
    let declarations: String = names
        .iter()
        .map(|name| {
            format!(
                "extern \"C\" void {name}__launch(const unsigned *, const unsigned *, void **, unsigned);\n\
                 extern \"C\" const char *{name}__kinds();\n"
            )
        })
        .collect();
    let rows: String =
        names.iter().map(|name| format!("    {{\"{name}\", {name}__launch, {name}__kinds}},\n")).collect();
    format!(
        "#include <cstring>\n#include \"kernels.h\"\n{declarations}\
         static const driver::Kernel KERNELS[] = {{\n{rows}}};\n\
         const driver::Kernel *driver::find_kernel(const char *name) {{\n    \
         for (auto &kernel : KERNELS) {{\n        if (!std::strcmp(kernel.name, name)) return &kernel;\n    }}\n    \
         return nullptr;\n}}\n"
    )
}
