//! The device of the CUDA engine on an emulated driver (`emulation/driver/README.md`): the same code that drives a GPU.
//!
//! The ignored tests run on the driver, each in processes of their own: the others start them, in every mode.

mod emulation;

use emulation::EmulatedDriver;
use kernels::cuda::cubin_cache::CubinCache;
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};
use kernels::cuda::device::Device;

/// The driver in each of its modes, and both generations of devices.
fn drivers() -> Vec<EmulatedDriver> {
    let driver = |mode, capability| EmulatedDriver::new().with("MODE", mode).with("CAPABILITY", capability).with("LEAKS", "1");
    vec![driver("eager", "9.0"), driver("lazy", "9.0"), driver("random:1", "8.0"), driver("random:2", "9.0")]
}

fn device() -> CudaDevice {
    CudaDevice::new(&CudaOptions { poison: true, ..CudaOptions::default() }).unwrap()
}

#[test]
fn uploads() {
    for driver in drivers() {
        driver.pass_test("uploads_arrive");
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn uploads_arrive() {
    let mut device = device();
    let mut buffer = device.allocate(300_000, "a test").unwrap();
    let bytes: Vec<u8> = (0..300_000).map(|at| (at % 251) as u8).collect();
    device.upload(&mut buffer, 0, &bytes).unwrap();
    let mut back = vec![0; 300_000];
    device.download(&buffer, 0, &mut back).unwrap();
    assert!(back == bytes);
}
