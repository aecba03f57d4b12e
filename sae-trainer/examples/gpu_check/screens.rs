//! The screens against each other: mma and wgmma must set the bits that the plain one sets, unless the bound is so near
//! to 0 that the order of a float32 sum decides.

use anyhow::Result;
use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice};
use kernels::cuda::device::{Argument, Device, Kernel, Launch, Screen};

use super::{device, numbers};

/// All arrays of a screen on the device.
pub(crate) struct Case {
    features: usize,
    rows: usize,
    stride: usize,
    words: usize,
    buffers: Vec<CudaBuffer>,
}

impl Case {
    /// Random factors of which about `share` of the pairs are candidates.
    pub(crate) fn new(
        device: &mut CudaDevice,
        (features, rows, width): (usize, usize, usize),
        share: f32,
    ) -> Result<Case> {
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

    pub(crate) fn screen(&self) -> Screen<'_, CudaBuffer> {
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

    /// The plain kernel.
    fn plain(&self, device: &mut CudaDevice) -> Result<()> {
        let mut arguments: Vec<Argument<'_, CudaBuffer>> =
            self.buffers.iter().map(|buffer| Argument::Buffer(buffer, 0)).collect();
        let sizes = [self.features, self.rows, self.stride, self.words];
        arguments.extend(sizes.map(|size| Argument::U32(size as u32)));
        let launch = Launch {
            kernel: Kernel { module: "screen", function: "screen" },
            grid: [self.features.div_ceil(8) as u32, self.words as u32 / 4, 1],
            block: [128, 1, 1],
            shared_bytes: 0,
            arguments: &arguments,
        };
        // SAFETY: these are the parameters that screen.cu declares, and the arrays have the sizes it describes.
        unsafe { device.launch(&launch) }?;
        Ok(())
    }

    fn mask(&mut self, device: &mut CudaDevice) -> Result<Vec<u32>> {
        let mut mask = vec![0u32; self.features * self.words];
        device.download(&self.buffers[7], 0, bytemuck::cast_slice_mut(&mut mask))?;
        // No word of it may survive the next screen.
        device.upload(&mut self.buffers[7], 0, &vec![0x5A; mask.len() * 4])?;
        Ok(mask)
    }
}

/// Returns the number of failures.
pub(crate) fn check(sizes: &[(usize, usize, usize)]) -> Result<usize> {
    let mut device = device(true)?;
    let wgmma = device.properties().compute_capability == (9, 0);
    let mut failures = 0;
    for size in sizes {
        for share in [0.5, 0.001] {
            let mut case = Case::new(&mut device, *size, share)?;
            case.plain(&mut device)?;
            let expected = case.mask(&mut device)?;
            let set: u64 = expected.iter().map(|word| u64::from(word.count_ones())).sum();
            for wgmma in [false].into_iter().chain(wgmma.then_some(true)) {
                device.screen_with(&case.screen(), wgmma)?;
                let got = case.mask(&mut device)?;
                let differ: u64 =
                    got.iter().zip(&expected).map(|(a, b)| u64::from((a ^ b).count_ones())).sum();
                let cells = (size.0 * size.1) as u64;
                // Two float32 sums of d products differ by about 1e-6 of their spread: so does the share of the
                // bits that this decides.
                let failed = differ > 4 + cells / 50_000;
                failures += usize::from(failed);
                println!(
                    "{} screen {} F {} B {} d {}: {set} of {cells} bits set, {differ} differ",
                    if failed { "FAIL" } else { "ok  " },
                    if wgmma { "wgmma" } else { "mma  " },
                    size.0,
                    size.1,
                    size.2
                );
            }
        }
    }
    Ok(failures)
}
