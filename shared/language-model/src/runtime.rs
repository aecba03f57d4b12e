//! Finds and loads the ONNX Runtime library.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use crate::Error;

/// The environment variable that names the library, the same as for the `ort` crate.
const ENVIRONMENT_VARIABLE: &str = "ORT_DYLIB_PATH";
/// The folder that `scripts/fetch-onnxruntime` fills, in the workspace.
const FOLDER: &str = "onnxruntime";
/// Where the wheels onnxruntime and onnxruntime-gpu keep it, below a folder of Python's packages.
const WHEEL: &str = "onnxruntime/capi";

/// The ONNX Runtime library, loaded. One process has one library: it stays loaded for good.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) environment: Environment,
    library: PathBuf,
}

/// The library this process has loaded, if any. `ort` keeps the first one silently; so a second,
/// different one must be refused here.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Finds and loads the library: `flag` (a file or a folder that holds it) when given, else
    /// `ORT_DYLIB_PATH`, else that of the Python environment which the running program is installed in, else a folder
    /// `onnxruntime/` in one of the folders above the program or above the current folder, else that of the active Python
    /// environment.
    ///
    /// # Errors
    /// When there is none, when what is there is no usable ONNX Runtime, or when the process has
    /// already loaded another one.
    pub fn load(flag: Option<&Path>) -> Result<Runtime, Error> {
        let variable =
            std::env::var_os(ENVIRONMENT_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let library = match flag.map(Path::to_path_buf).or(variable) {
            Some(named) => library_at(&named).ok_or(Error::RuntimeMissing { looked: vec![named] })?,
            None => {
                let (program, current) = (std::env::current_exe().ok(), std::env::current_dir().ok());
                let packages = python_packages::site_packages();
                let folders = folders(program.as_deref(), current.as_deref(), &packages);
                let found = folders.iter().find_map(|folder| library_at(folder));
                found.ok_or(Error::RuntimeMissing { looked: folders })?
            }
        };
        let library = library.canonicalize().map_err(Error::io(&library))?;

        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match loaded.as_ref() {
            Some(runtime) if runtime.library == library => Ok(runtime.clone()),
            Some(runtime) => {
                let problem = format!("{} is already loaded in this process", runtime.library.display());
                Err(Error::RuntimeUnusable { path: library, problem })
            }
            None => {
                let runtime = load(library)?;
                *loaded = Some(runtime.clone());
                Ok(runtime)
            }
        }
    }

    /// The library's file, links resolved.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The CUDA execution provider that belongs to the library. It lies beside it, if anywhere.
    pub(crate) fn cuda_provider(&self) -> PathBuf {
        self.library.with_file_name("libonnxruntime_providers_cuda.so")
    }
}

fn load(library: PathBuf) -> Result<Runtime, Error> {
    // Only through `init_from` is a library that cannot be loaded an error; `ort`'s lazy loading panics.
    let unusable = |problem: String| Error::RuntimeUnusable { path: library.clone(), problem };
    let environment = ort::init_from(&library)
        .map_err(|error| unusable(error.to_string()))?
        .with_name("language-model")
        .build()
        .map_err(|error| unusable(error.message().to_string()))?;
    Ok(Runtime { environment, library })
}

/// The library at `path`: the file itself, or the newest `libonnxruntime.so*` in a folder.
fn library_at(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_path_buf());
    }
    let is_library = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name == "libonnxruntime.so"
            || name.starts_with("libonnxruntime.so.")
            || name == "libonnxruntime.dylib"
    };
    let entries = std::fs::read_dir(path).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_library).max()
}

/// Where the library may be, `packages` being the folders of Python's packages. Those of the environment in whose `bin` the
/// program is come first, because they were installed with it.
fn folders(program: Option<&Path>, current: Option<&Path>, packages: &[PathBuf]) -> Vec<PathBuf> {
    let environment = program.and_then(Path::parent).and_then(Path::parent);
    let (mut folders, active): (Vec<_>, Vec<_>) = packages
        .iter()
        .map(|packages| packages.join(WHEEL))
        .partition(|folder| environment.is_some_and(|environment| folder.starts_with(environment)));
    for start in [program.and_then(Path::parent), current].into_iter().flatten() {
        folders.extend(start.ancestors().map(|ancestor| ancestor.join(FOLDER)));
    }
    folders.extend(active);
    let mut seen = HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_environment_comes_first_and_the_active_one_last() {
        let packages = ["/venv/lib/python3.12/site-packages", "/active/lib/python3.11/site-packages"];
        let folders = folders(
            Some(Path::new("/venv/bin/activation-dump")),
            Some(Path::new("/here")),
            &packages.map(PathBuf::from),
        );
        let expected = [
            "/venv/lib/python3.12/site-packages/onnxruntime/capi",
            "/venv/bin/onnxruntime",
            "/venv/onnxruntime",
            "/onnxruntime",
            "/here/onnxruntime",
            "/active/lib/python3.11/site-packages/onnxruntime/capi",
        ];
        assert_eq!(folders, expected.map(PathBuf::from));
    }

    #[test]
    fn the_library_of_a_wheel_is_found_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let capi = folder.path().join(WHEEL);
        std::fs::create_dir_all(&capi).unwrap();
        for file in [
            "libonnxruntime.so.1.31.1",
            "libonnxruntime_providers_shared.so",
            "onnxruntime_pybind11_state.so",
        ] {
            std::fs::write(capi.join(file), "").unwrap();
        }
        assert_eq!(library_at(&capi), Some(capi.join("libonnxruntime.so.1.31.1")));
    }
}
