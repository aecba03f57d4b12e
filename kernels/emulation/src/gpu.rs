//! A GPU instead of the emulation. With [`ON_A_GPU`] in the environment, every launch, product and screen of a test goes to the real
//! device. `scripts/gpu-check` uses this.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};

/// The environment variable.
const ON_A_GPU: &str = "KERNEL_TESTS_ON_A_GPU";

/// Whether tests run on a GPU: the variable `KERNEL_TESTS_ON_A_GPU` asks for that.
pub fn on_a_gpu() -> bool {
    std::env::var_os(ON_A_GPU).is_some()
}

/// The process' device. A test that fails leaves it as it is for the others.
pub(crate) fn device() -> MutexGuard<'static, CudaDevice> {
    static DEVICE: OnceLock<Mutex<CudaDevice>> = OnceLock::new();
    let new = || CudaDevice::new(&CudaOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    DEVICE.get_or_init(|| Mutex::new(new())).lock().unwrap_or_else(PoisonError::into_inner)
}
