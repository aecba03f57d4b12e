//! The libraries that NVIDIA gives out, found and loaded at run time.
//!
//! The driver's library comes with the driver and lies where the dynamic linker finds it. The compiler (NVRTC)
//! and the BLAS come with a CUDA toolkit or with Python wheels, often where no linker looks; they are searched and
//! loaded by path beforehand, after which asking for them by name gives the copy that is loaded.

use std::fmt;
use std::path::{Path, PathBuf};

use cudarc::{cublas, driver, nvrtc};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The folder that `scripts/fetch-nvrtc` fills, in the workspace.
const FOLDER: &str = "nvrtc";

/// A library that may have to be searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolkitLibrary {
    /// NVRTC, the run-time compiler.
    Compiler,
    /// cuBLAS.
    Blas,
}

impl ToolkitLibrary {
    /// The beginnings of the names of the files, in the order in which they must be loaded.
    fn files(self) -> [&'static str; 2] {
        match self {
            ToolkitLibrary::Compiler => ["libnvrtc-builtins.so.", "libnvrtc.so."],
            ToolkitLibrary::Blas => ["libcublasLt.so.", "libcublas.so."],
        }
    }

    /// Whether asking for it by name finds it.
    fn is_present(self) -> bool {
        // SAFETY: loading NVIDIA's libraries runs their initialisers, which is what using them means.
        unsafe {
            match self {
                ToolkitLibrary::Compiler => nvrtc::sys::is_culib_present(),
                ToolkitLibrary::Blas => cublas::sys::is_culib_present(),
            }
        }
    }
}

impl fmt::Display for ToolkitLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ToolkitLibrary::Compiler => "NVRTC (libnvrtc.so)",
            ToolkitLibrary::Blas => "cuBLAS (libcublas.so)",
        })
    }
}

/// Whether the driver's library is there.
pub fn driver_is_present() -> bool {
    // SAFETY: as in `ToolkitLibrary::is_present`.
    unsafe { driver::sys::is_culib_present() }
}

/// Makes sure that `library` is loaded.
///
/// # Errors
/// The folders that were searched, if it is in none of them.
pub fn load(library: ToolkitLibrary) -> Result<(), Vec<PathBuf>> {
    if library.is_present() {
        return Ok(());
    }
    let folders = folders();
    for folder in &folders {
        if load_from(library, folder) && library.is_present() {
            return Ok(());
        }
    }
    Err(folders)
}

/// Loads the library's files from a folder, for good. Returns whether they were all there.
fn load_from(library: ToolkitLibrary, folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let mut names: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    library.files().iter().all(|beginning| {
        let is_it = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning))
        };
        // The newest one, should there be several.
        let Some(path) = names.iter().rev().find(is_it) else { return false };
        // SAFETY: as in `ToolkitLibrary::is_present`.
        match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library);
                true
            }
            Err(_) => false,
        }
    })
}

/// Where toolkits and wheels put their libraries: `CUDA_PATH` and `CUDA_HOME`, /usr/local/cuda, the Python environment that the
/// program is installed in, the active one, and a folder `nvrtc/` above the running program or the current folder.
pub(crate) fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut folders = Vec::new();
    for toolkit in [variable("CUDA_PATH"), variable("CUDA_HOME"), Some(PathBuf::from("/usr/local/cuda"))] {
        let Some(toolkit) = toolkit else { continue };
        folders.extend([toolkit.join("lib64"), toolkit.join("lib"), toolkit]);
    }
    folders.extend(python_packages::nvidia_libraries());
    // Conda's own packages.
    folders.extend(variable("CONDA_PREFIX").map(|environment| environment.join("lib")));
    let program = std::env::current_exe().ok();
    let current = std::env::current_dir().ok();
    for start in [program.as_deref().and_then(Path::parent), current.as_deref()].into_iter().flatten() {
        folders.extend(start.ancestors().map(|above| above.join(FOLDER)));
    }
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_library_loads_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!load_from(ToolkitLibrary::Compiler, folder.path()));
        // Files of that name that are no libraries are no libraries.
        std::fs::write(folder.path().join("libcublas.so.13"), "no library").unwrap();
        std::fs::write(folder.path().join("libcublasLt.so.13"), "no library").unwrap();
        assert!(!load_from(ToolkitLibrary::Blas, folder.path()));
        assert!(!load_from(ToolkitLibrary::Blas, &folder.path().join("not/there")));
    }

    #[test]
    fn folders_are_searched_once() {
        let folders = folders();
        let different: std::collections::HashSet<_> = folders.iter().collect();
        assert_eq!(different.len(), folders.len());
        assert!(folders.contains(&PathBuf::from("/usr/local/cuda/lib64")));
    }
}
