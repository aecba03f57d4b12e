//! Where Python environments keep the libraries that wheels bring along.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of installed packages: those of the environment that the running program is installed in, then those of the
/// active environments (`VIRTUAL_ENV`, `CONDA_PREFIX`). Only folders that are there.
pub fn site_packages() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].map(|name| env::var_os(name).map(PathBuf::from));
    site_packages_of(env::current_exe().ok().as_deref(), active.into_iter().flatten())
}

/// The folders of the libraries in NVIDIA's wheels, `nvidia/*/lib` of every folder of [`site_packages`].
pub fn nvidia_libraries() -> Vec<PathBuf> {
    site_packages().iter().flat_map(|packages| nvidia_libraries_in(packages)).collect()
}

/// The folders of the libraries in NVIDIA's wheels that are installed in the folder `packages`, in order of their names:
/// `nvidia/cu13/lib`, and of older wheels `nvidia/cublas/lib` and so on.
pub fn nvidia_libraries_in(packages: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        entries(&packages.join("nvidia")).into_iter().map(|package| package.join("lib")).collect();
    folders.retain(|folder| folder.is_dir());
    folders
}

fn site_packages_of(program: Option<&Path>, active: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let own = program.and_then(Path::parent).filter(|folder| folder.ends_with("bin")).and_then(Path::parent);
    let environments = own.map(Path::to_path_buf).into_iter().chain(active);
    let mut seen = HashSet::new();
    let mut folders: Vec<PathBuf> =
        environments.flat_map(|environment| packages_below(&environment)).collect();
    // lib64 is often a link to lib.
    folders.retain(|folder| seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone())));
    folders
}

/// The folders of packages of the environment in `prefix`, those of the newest Python first.
fn packages_below(prefix: &Path) -> Vec<PathBuf> {
    let libraries = ["lib", "lib64"].map(|name| prefix.join(name));
    let mut pythons: Vec<(u32, PathBuf)> = libraries
        .iter()
        .flat_map(|library| entries(library))
        .filter_map(|python| {
            let minor = python.file_name()?.to_str()?.strip_prefix("python3.")?.parse().ok()?;
            Some((minor, python))
        })
        .collect();
    pythons.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    // Debian's own Python calls its folder by another name.
    let folders = pythons
        .iter()
        .flat_map(|(_, python)| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    folders.filter(|folder| folder.is_dir()).collect()
}

/// What is in a folder, in order of the names; nothing if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &Path, path: &str) -> PathBuf {
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_programs_own_environment_comes_before_the_active_one() {
        let root = tempfile::tempdir().unwrap();
        let own = folder(root.path(), "own/lib/python3.12/site-packages");
        let active = folder(root.path(), "active/lib/python3.11/site-packages");
        let program = root.path().join("own/bin/activation-dump");
        let found = site_packages_of(Some(&program), [root.path().join("active")].into_iter());
        assert_eq!(found, [own.clone(), active.clone()]);
        // Active, and the program's own: once.
        let found = site_packages_of(Some(&program), [root.path().join("own")].into_iter());
        assert_eq!(found, [own]);
        // A program that is installed nowhere has the active one.
        let program = root.path().join("own/target/release/activation-dump");
        let found = site_packages_of(Some(&program), [root.path().join("active")].into_iter());
        assert_eq!(found, [active]);
        assert_eq!(site_packages_of(None, std::iter::empty()), Vec::<PathBuf>::new());
    }

    #[test]
    fn several_pythons_are_listed_from_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let nine = folder(root.path(), "lib/python3.9/site-packages");
        let ten = folder(root.path(), "lib64/python3.10/site-packages");
        let debian = folder(root.path(), "lib/python3.11/dist-packages");
        folder(root.path(), "lib/python3/dist-packages");
        folder(root.path(), "lib/python3.12");
        folder(root.path(), "lib/cmake");
        let found = site_packages_of(Some(&root.path().join("bin/sae-trainer")), std::iter::empty());
        assert_eq!(found, [debian, ten, nine]);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_and_a_link_to_it_are_one() {
        let root = tempfile::tempdir().unwrap();
        let packages = folder(root.path(), "lib/python3.11/site-packages");
        std::os::unix::fs::symlink("lib", root.path().join("lib64")).unwrap();
        let found = site_packages_of(Some(&root.path().join("bin/sae-trainer")), std::iter::empty());
        assert_eq!(found, [packages]);
    }

    #[test]
    fn nvidias_wheels_of_both_layouts_are_found() {
        let root = tempfile::tempdir().unwrap();
        let thirteen = folder(root.path(), "nvidia/cu13/lib");
        let blas = folder(root.path(), "nvidia/cublas/lib");
        folder(root.path(), "nvidia/cuda_nvrtc/include");
        assert_eq!(nvidia_libraries_in(root.path()), [thirteen, blas]);
        assert_eq!(nvidia_libraries_in(&root.path().join("nowhere")), Vec::<PathBuf>::new());
    }
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
