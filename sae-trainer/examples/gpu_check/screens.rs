//! The selected screen against the plain one. It must set the bits that the plain one sets, unless the bound is so near to 0
//! that the order of a float32 sum decides.

use anyhow::Result;
use example_steps::numbers;
use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice};
use kernels::cuda::device::{Device, Screen};
use kernels::cuda::launch;

use serde_json::json;

use super::{Size, device, figure, median};

/// All arrays of a screen on the device.
struct Case {
    features: usize,
    rows: usize,
    stride: usize,
    words: usize,
    buffers: Vec<CudaBuffer>,
}

impl Case {
    /// Random factors of which about `share` of the pairs are candidates.
    fn new(device: &mut CudaDevice, Size { rows, width, features }: Size, share: f32) -> Result<Case> {
        let (stride, words) = (width.next_multiple_of(64), rows.div_ceil(32).next_multiple_of(4));
        let matrix = |rows: usize, seed: u64| -> Vec<u8> {
            let values = numbers(rows * width, seed);
            let mut out = vec![0u16; rows * stride];
            for (to, from) in out.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
                // Cut, not rounded: any bfloat16 number will do.
                to.iter_mut().zip(from).for_each(|(to, from)| *to = (from.to_bits() >> 16) as u16);
            }
            bytemuck::cast_slice(&out).to_vec()
        };
        let vector = |count: usize, centre: f32, spread: f32, seed: u64| -> Vec<u8> {
            let values: Vec<f32> = numbers(count, seed).into_iter().map(|v| centre + spread * v).collect();
            bytemuck::cast_slice(&values).to_vec()
        };
        // A product of uniform numbers has the standard deviation √d/3.
        let quantile = if share > 0.3 { 0.0 } else { 3.1 };
        let bias = -quantile * (width as f32).sqrt() / 3.0;
        let contents = [
            matrix(features, 1),
            matrix(rows, 2),
            vector(features, bias, 0.1, 3),
            vector(features, 0.5, 0.4, 4),
            vector(features, 0.02, 0.01, 5),
            vector(rows, 0.5, 0.4, 6),
            vector(rows, 0.03, 0.01, 7),
            vec![0xA5; features * words * 4],
        ];
        let mut buffers = Vec::new();
        for bytes in contents {
            let mut buffer = device.allocate(bytes.len(), "a screen")?;
            device.upload(&mut buffer, 0, &bytes)?;
            buffers.push(buffer);
        }
        Ok(Case { features, rows, stride, words, buffers })
    }

    fn screen(&self) -> Screen<'_, CudaBuffer> {
        let [encoder, x, feature_base, feature_norm, feature_residual, row_norm, row_residual, mask] =
            &self.buffers[..]
        else {
            unreachable!("a case has eight arrays")
        };
        Screen {
            features: self.features,
            rows: self.rows,
            stride: self.stride,
            encoder,
            x,
            feature_base,
            feature_norm,
            feature_residual,
            row_norm,
            row_residual,
            mask,
            words: self.words,
        }
    }

    fn mask(&mut self, device: &mut CudaDevice) -> Result<Vec<u32>> {
        let mut mask = vec![0u32; self.features * self.words];
        device.download(&self.buffers[7], 0, bytemuck::cast_slice_mut(&mut mask))?;
        // No word of it may survive the next screen.
        device.upload(&mut self.buffers[7], 0, &vec![0x5A; mask.len() * 4])?;
        Ok(mask)
    }
}

/// The screen that the environment asks for, or the device's best, at each size. Returns the number of failures.
pub(crate) fn check(sizes: &[Size]) -> Result<usize> {
    let mut device = device(true)?;
    let mut failures = 0;
    for size in sizes {
        for share in [0.5, 0.001] {
            let mut case = Case::new(&mut device, *size, share)?;
            launch::screen::plain(&case.screen(), &mut device)?;
            let expected = case.mask(&mut device)?;
            device.start_timing()?;
            device.screen(&case.screen())?;
            let kernels: Vec<&str> = device.finish_timing()?.into_keys().collect();
            let got = case.mask(&mut device)?;
            let bits = |word: &u32| u64::from(word.count_ones());
            let set: u64 = expected.iter().map(bits).sum();
            let differ: u64 = got.iter().zip(&expected).map(|(a, b)| bits(&(a ^ b))).sum();
            let cells = (size.rows * size.features) as u64;
            // Two float32 sums of d products differ by about 1e-6 of their spread: so does the share of the bits that
            // this decides.
            let failed = differ > 4 + cells / 50_000;
            failures += usize::from(failed);
            println!(
                "{} {} {size:?}: {set} of {cells} bits set, {differ} differ",
                if failed { "FAIL" } else { "ok  " },
                kernels.join(", "),
            );
        }
    }
    Ok(failures)
}

/// The time of that screen. Returns the number of failures: none.
pub(crate) fn time(size: Size) -> Result<usize> {
    const TIMED: usize = 20;
    let mut device = device(false)?;
    let case = Case::new(&mut device, size, 0.001)?;
    for _ in 0..3 {
        device.screen(&case.screen())?;
    }
    device.start_timing()?;
    for _ in 0..TIMED {
        device.screen(&case.screen())?;
    }
    let operations = 2.0 * (size.rows * size.features * size.width) as f64;
    for (name, mut seconds) in device.finish_timing()? {
        let seconds = median(&mut seconds);
        println!("{name}: {:.1} µs, {:.0} TFLOP/s", seconds * 1e6, operations / seconds / 1e12);
        figure::print(name, json!({"seconds": seconds, "operations": operations}));
    }
    Ok(0)
}
