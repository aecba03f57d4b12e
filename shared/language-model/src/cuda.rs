//! Is there a CUDA device, and what is missing if not?

use std::ffi::c_int;
use std::path::Path;

use libloading::{Library, Symbol};

/// The driver's library, found by the dynamic linker.
const DRIVER: &str = "libcuda.so.1";

/// Why CUDA cannot be used with the provider at `provider`, or `None` if it can be tried.
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

/// The number of CUDA devices, at least one, or why there is none.
fn device_count() -> Result<c_int, String> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type DeviceGetCount = unsafe extern "C" fn(count: *mut c_int) -> c_int;

    // SAFETY: loading the driver runs its initialisers, which is what every CUDA program does first.
    let driver = unsafe { Library::new(DRIVER) }
        .map_err(|error| format!("the NVIDIA driver's library {DRIVER} cannot be loaded ({error})"))?;
    let symbol_missing = |error: libloading::Error| format!("{DRIVER} is not an NVIDIA driver ({error})");
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
