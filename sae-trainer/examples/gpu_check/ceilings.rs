//! What this GPU can do at most, measured: the ceilings that lower bounds on times are computed from.

use anyhow::Result;
use example_steps::numbers;
use kernels::cuda::cuda_device::CudaDevice;
use kernels::cuda::device::{Device, Element, Factor, Gemm};
use serde_json::json;

use super::{device, figure, median};

/// Untimed repetitions, which bring the clocks up, and timed ones.
const WARM_UP: usize = 3;
const TIMED: usize = 10;

/// A copy of `bytes` bytes, and the product of two bfloat16 matrices [size,size].
pub(crate) fn measure(bytes: usize, size: usize) -> Result<usize> {
    let mut device = device(false)?;
    let properties = device.properties().clone();
    println!("{properties:?}");
    let (major, minor) = properties.compute_capability;
    figure::print(
        "device",
        json!({
            "name": properties.name, "capability": format!("{major}.{minor}"),
            "multiprocessors": properties.multiprocessors, "memory_bytes": properties.memory_bytes,
            "free_bytes": device.free_memory()?,
        }),
    );
    let copy = copy(&mut device, bytes)?;
    let rate = 2.0 * bytes as f64 / copy;
    println!("a copy of {bytes} bytes: {:.0} µs, {:.2} TB/s read and written", copy * 1e6, rate / 1e12);
    figure::print("copy", json!({"seconds": copy, "bytes_per_second": rate}));
    let product = product(&mut device, size)?;
    let rate = 2.0 * (size as f64).powi(3) / product;
    println!("a bfloat16 product {size}³ by cuBLAS: {:.0} µs, {:.0} TFLOP/s", product * 1e6, rate / 1e12);
    figure::print("product", json!({"seconds": product, "operations_per_second": rate}));
    Ok(0)
}

/// The median time of what `work` queues.
fn timed(
    device: &mut CudaDevice,
    name: &str,
    mut work: impl FnMut(&mut CudaDevice) -> Result<()>,
) -> Result<f64> {
    for _ in 0..WARM_UP {
        work(device)?;
    }
    device.start_timing()?;
    for _ in 0..TIMED {
        work(device)?;
    }
    let mut timings = device.finish_timing()?;
    Ok(median(timings.get_mut(name).map_or(&mut [f64::NAN], Vec::as_mut_slice)))
}

fn copy(device: &mut CudaDevice, bytes: usize) -> Result<f64> {
    let mut from = device.allocate(bytes, "the source of a copy")?;
    let mut to = device.allocate(bytes, "the target of a copy")?;
    // Random: memory of zeros can be faster than real data.
    let some: Vec<u8> = bytemuck::cast_slice(&numbers(bytes.min(1 << 24).div_ceil(4), 1)).to_vec();
    for offset in (0..bytes).step_by(some.len()) {
        let part = some.len().min(bytes - offset);
        device.upload(&mut from, offset, &some[..part])?;
    }
    timed(device, "copy", |device| Ok(device.copy(&from, &mut to)?))
}

fn product(device: &mut CudaDevice, size: usize) -> Result<f64> {
    let mut matrix = |seed: u64| -> Result<_> {
        // Cut, not rounded: any bfloat16 number will do.
        let halves: Vec<u16> =
            numbers(size * size, seed).iter().map(|number| (number.to_bits() >> 16) as u16).collect();
        let mut buffer = device.allocate(2 * halves.len(), "a factor")?;
        device.upload(&mut buffer, 0, bytemuck::cast_slice(&halves))?;
        Ok(buffer)
    };
    let (a, b) = (matrix(1)?, matrix(2)?);
    let out = device.allocate(4 * size * size, "a product")?;
    let factor = |buffer, transposed| Factor { buffer, offset: 0, stride: size, transposed };
    timed(device, "gemm", |device| {
        // As the encode multiplies: both factors with their inner dimension side by side.
        Ok(device.gemm(&Gemm {
            sizes: (size, size, size),
            element: Element::Bf16,
            a: factor(&a, false),
            b: factor(&b, true),
            out: &out,
            out_offset: 0,
            out_stride: size,
            accumulate: false,
        })?)
    })
}
