//! Finds and loads the ONNX Runtime library.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use crate::Error;

/// The environment variable that names the library, the same as for the `ort` crate.
const ENVIRONMENT_VARIABLE: &str = "ORT_DYLIB_PATH";
/// The folder that `scripts/fetch-onnxruntime` fills, in the workspace.
const FOLDER: &str = "onnxruntime";

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
    /// `ORT_DYLIB_PATH`, else a folder `onnxruntime/` in one of the folders above the running
    /// program or above the current folder.
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
                let folders = workspace_folders();
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

fn workspace_folders() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let current = std::env::current_dir().ok();
    let mut folders = Vec::new();
    for start in [program.as_deref().and_then(Path::parent), current.as_deref()].into_iter().flatten() {
        for ancestor in start.ancestors() {
            let folder = ancestor.join(FOLDER);
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders
}
