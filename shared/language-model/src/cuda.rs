//! Whether there is a CUDA device, what is missing if not, and how much memory it has.

use std::error::Error;
use std::ffi::c_int;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};

/// The driver's library, found by the dynamic linker.
const DRIVER: &str = "libcuda.so.1";

/// Why CUDA cannot be used with the provider at `provider`; `None` if it is worth trying.
pub(crate) fn missing(provider: &Path) -> Option<String> {
    let device = device_count();
    let provider = provider.is_file().then_some(()).ok_or_else(|| {
        format!(
            "the ONNX Runtime in use has no CUDA provider ({} does not exist; the PyPI wheel onnxruntime-gpu holds it)",
            provider.display()
        )
    });
    match (device, provider) {
        (Ok(_), Ok(())) => None,
        (Err(device), Ok(())) => Some(device),
        (Ok(_), Err(provider)) => Some(provider),
        (Err(device), Err(provider)) => Some(format!("{device}; also, {provider}")),
    }
}

/// Libraries that the CUDA provider needs besides the driver, each after those that it needs itself.
const LIBRARIES: [&str; 6] = ["libcudart", "libcublasLt", "libcublas", "libcurand", "libcufft", "libcudnn"];

/// Loads [`LIBRARIES`] from beside the provider or from NVIDIA's wheels, so that neither a folder with all of them nor a Python
/// environment needs a variable. The provider asks for them by name, and finds those that are loaded; the linker looks for the
/// others.
pub(crate) fn preload(provider: &Path) {
    let folders = library_folders(provider);
    for library in LIBRARIES {
        if let Some(file) = folders.iter().find_map(|folder| library_in(folder, library)) {
            // SAFETY: loading NVIDIA's libraries runs their initialisers, as it would when the provider is
            // loaded a moment later. One that does not load is then named by the linker.
            if let Ok(library) = unsafe { Library::new(file) } {
                std::mem::forget(library); // it stays as long as the provider, for good
            }
        }
    }
}

/// Where the provider's libraries may lie: beside it, in the wheels that are installed with it, and in those that are installed
/// with this program or in the active environment.
fn library_folders(provider: &Path) -> Vec<PathBuf> {
    // Of <packages>/onnxruntime/capi/<provider>.
    let packages = provider.ancestors().nth(3);
    let beside = provider.parent().map(Path::to_path_buf);
    let with_it = packages.map(python_packages::nvidia_libraries_in).unwrap_or_default();
    let mut folders: Vec<PathBuf> = beside.into_iter().chain(with_it).collect();
    for folder in python_packages::nvidia_libraries() {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The newest version of `library` in a folder.
fn library_in(folder: &Path, library: &str) -> Option<PathBuf> {
    let beginning = format!("{library}.so.");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let versions = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&beginning));
    versions.map(|entry| entry.path()).max()
}

/// ONNX Runtime's error when its CUDA provider does not start, with the places searched for its libraries.
pub(crate) fn explain(message: &str, provider: &Path) -> String {
    let folders: Vec<String> =
        library_folders(provider).iter().map(|folder| folder.display().to_string()).collect();
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    format!(
        "{message}; the provider needs {} of its CUDA version. They were looked for in {}, in LD_LIBRARY_PATH ({path}) \
         and where the system's linker looks",
        LIBRARIES.join(", "),
        folders.join(", ")
    )
}

/// Bytes of memory that are free on the first device; `None` without one.
pub(crate) fn free_memory() -> Option<u64> {
    type Context = *mut std::ffi::c_void;
    type PrimaryRetain = unsafe extern "C" fn(context: *mut Context, device: c_int) -> c_int;
    type PrimaryRelease = unsafe extern "C" fn(device: c_int) -> c_int;
    type Push = unsafe extern "C" fn(context: Context) -> c_int;
    type Pop = unsafe extern "C" fn(context: *mut Context) -> c_int;
    type GetInfo = unsafe extern "C" fn(free: *mut usize, total: *mut usize) -> c_int;

    device_count().ok()?;
    // SAFETY: loading the driver runs its initialisers, which `device_count` has just done.
    let driver = unsafe { Library::new(DRIVER) }.ok()?;
    let (retain, release, push, pop, get_info);
    // SAFETY: the types are those of the CUDA driver API's cuda.h; the names with _v2 are what its macros
    // stand for.
    unsafe {
        retain = driver.get::<PrimaryRetain>(b"cuDevicePrimaryCtxRetain\0").ok()?;
        release = driver.get::<PrimaryRelease>(b"cuDevicePrimaryCtxRelease_v2\0").ok()?;
        push = driver.get::<Push>(b"cuCtxPushCurrent_v2\0").ok()?;
        pop = driver.get::<Pop>(b"cuCtxPopCurrent_v2\0").ok()?;
        get_info = driver.get::<GetInfo>(b"cuMemGetInfo_v2\0").ok()?;
    }
    let (mut context, mut free, mut total) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the driver is initialised. Each call is made only after the one before succeeded, what is
    // pushed is popped and what is retained is released, and every pointer is valid for its call.
    let known = unsafe {
        if retain(&mut context, 0) != 0 {
            return None;
        }
        let mut known = false;
        if push(context) == 0 {
            known = get_info(&mut free, &mut total) == 0;
            pop(&mut context);
        }
        release(0);
        known
    };
    known.then_some(free as u64)
}

/// The number of CUDA devices, at least one, or why there is none.
fn device_count() -> Result<c_int, String> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type DeviceGetCount = unsafe extern "C" fn(count: *mut c_int) -> c_int;

    // SAFETY: loading the driver runs its initialisers, which is what every CUDA program does first.
    let driver = unsafe { Library::new(DRIVER) }
        .map_err(|error| format!("the NVIDIA driver's library cannot be loaded ({})", reason(&error)))?;
    let symbol_missing =
        |error: libloading::Error| format!("{DRIVER} is not an NVIDIA driver ({})", reason(&error));
    // SAFETY: the types are those of the CUDA driver API's cuda.h.
    let (init, device_get_count): (Symbol<'_, Init>, Symbol<'_, DeviceGetCount>) = unsafe {
        (
            driver.get(b"cuInit\0").map_err(symbol_missing)?,
            driver.get(b"cuDeviceGetCount\0").map_err(symbol_missing)?,
        )
    };
    // SAFETY: cuInit comes before every other call and takes no flags but 0.
    let status = unsafe { init(0) };
    if status != 0 {
        return Err(format!("the NVIDIA driver found no usable device (cuInit returned error {status})"));
    }
    let mut count = 0;
    // SAFETY: `count` is valid for writing for the length of the call.
    let status = unsafe { device_get_count(&mut count) };
    match (status, count) {
        (0, 1..) => Ok(count),
        (0, _) => Err("the NVIDIA driver is there, but the machine has no CUDA device".to_string()),
        _ => Err(format!("the NVIDIA driver cannot count its devices (error {status})")),
    }
}

/// The linker's message, which `libloading` hides behind its own.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let provider = folder.path().join("libonnxruntime_providers_cuda.so");
        let missing = missing(&provider).unwrap();
        assert!(missing.contains(&format!("{} does not exist", provider.display())), "{missing}");
        std::fs::write(folder.path().join("libcudart.so.13"), "not a library").unwrap();
        preload(&provider);
        let said = explain("libcublas.so.13: cannot open shared object file", &provider);
        for part in
            ["libcublas.so.13: cannot", "libcurand", "LD_LIBRARY_PATH", folder.path().to_str().unwrap()]
        {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
    }

    #[test]
    fn libraries_lie_beside_the_provider_or_in_nvidias_wheels() {
        let root = tempfile::tempdir().unwrap();
        let provider = root.path().join("onnxruntime/capi/libonnxruntime_providers_cuda.so");
        let folder = |path: &str| {
            let folder = root.path().join(path);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let (capi, wheel) = (folder("onnxruntime/capi"), folder("nvidia/cu13/lib"));
        assert_eq!(library_folders(&provider)[..2], [capi, wheel.clone()]);
        for name in ["libcublasLt.so.13", "libcublas.so.12", "libcublas.so.13", "libcublas.so"] {
            std::fs::write(wheel.join(name), "").unwrap();
        }
        assert_eq!(library_in(&wheel, "libcublas"), Some(wheel.join("libcublas.so.13")));
        assert_eq!(library_in(&wheel, "libcudnn"), None);
    }

    #[test]
    fn free_memory_is_known_exactly_where_there_is_a_device() {
        assert_eq!(free_memory().is_some(), device_count().is_ok());
    }
}
