//! Weights and state between host and device.

use crate::cpu::Parameters;

use super::device::Device;
use super::layout::{Report, Window};
use super::plan::PathChoice;
use super::resident::CudaStep;
use super::step::StepError;

/// Everything a run needs to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub weights: Parameters,
    /// Adam's first moments.
    pub first_moments: Parameters,
    /// Adam's second moments.
    pub second_moments: Parameters,
    /// In how many rows of a batch each feature was active, for the last (at most n) batches, the oldest
    /// first: [batches,F].
    pub window: Vec<u32>,
    /// Steps since each feature was last active, [F].
    pub steps_since_fired: Vec<u64>,
    /// How steps choose their path; a run that goes on without it makes the same steps within rounding.
    pub path_choice: Option<PathChoice>,
}

fn check(array: &'static str, found: usize, expected: usize, rule: &'static str) -> Result<(), StepError> {
    if found == expected { Ok(()) } else { Err(StepError::Length { array, found, expected, rule }) }
}

impl<D: Device> CudaStep<D> {
    /// The weights. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn weights(&self, device: &mut D) -> Result<Parameters, StepError> {
        self.download_parameters(device, 0)
    }

    /// The running frequencies as of the last step, [F].
    ///
    /// # Errors
    /// What the device says.
    pub fn frequencies(&self, device: &mut D) -> Result<Vec<f32>, StepError> {
        let mut frequencies = vec![0.0f32; self.plan.features];
        device.download(&self.buffers.frequencies, 0, bytemuck::cast_slice_mut(&mut frequencies))?;
        Ok(frequencies)
    }

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// What the device says.
    pub fn steps_since_fired(&self, device: &mut D) -> Result<Vec<u64>, StepError> {
        let mut steps = vec![0u64; self.plan.features];
        device.download(&self.buffers.steps_since_fired, 0, bytemuck::cast_slice_mut(&mut steps))?;
        Ok(steps)
    }

    /// Everything a run needs to continue. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn state(&self, device: &mut D) -> Result<State, StepError> {
        let features = self.plan.features;
        let mut window = Window { filled: 0, newest: 0, counted: 0, evicted: 0, changes: 0, unused: 0 };
        device.download(&self.buffers.window, 0, bytemuck::bytes_of_mut(&mut window))?;
        let lines = window.filled as usize;
        let mut counts = vec![0u32; lines * features];
        device.download(&self.buffers.ring, 0, bytemuck::cast_slice_mut(&mut counts))?;
        // The line after the newest is the oldest, once the ring is full; before, the newest is the last one.
        if lines > 0 {
            counts.rotate_left((window.newest as usize + 1) % lines * features);
        }
        Ok(State {
            step: self.done,
            weights: self.download_parameters(device, 0)?,
            first_moments: self.download_parameters(device, 1)?,
            second_moments: self.download_parameters(device, 2)?,
            window: counts,
            steps_since_fired: self.steps_since_fired(device)?,
            path_choice: Some(self.choice.clone()),
        })
    }

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other sizes (nothing has changed then), or what the device says.
    pub fn restore(&mut self, device: &mut D, state: &State) -> Result<(), StepError> {
        let parameters = [&state.weights, &state.first_moments, &state.second_moments];
        self.load(device, parameters, &state.window, &state.steps_since_fired)?;
        device.zero(&mut self.buffers.report, 0, size_of::<Report>())?;
        self.done = state.step;
        self.submitted = state.step;
        let fresh = PathChoice::new(self.plan.pairs, self.plan.rows as u64 * self.plan.features as u64);
        // One for other lists is of no use.
        let same = |choice: &&PathChoice| choice.capacity() == fresh.capacity();
        self.choice = state.path_choice.as_ref().filter(same).cloned().unwrap_or(fresh);
        Ok(())
    }

    /// Fills everything that outlives a step.
    pub(crate) fn load(
        &mut self,
        device: &mut D,
        parameters: [&Parameters; 3],
        window: &[u32],
        steps_since_fired: &[u64],
    ) -> Result<(), StepError> {
        let (d, f) = (self.plan.width, self.plan.features);
        for (name, array) in parameters.iter().flat_map(|parameters| parameters.arrays()) {
            let (expected, rule) = match name {
                "encoder_bias" => (f, "F"),
                "decoder_bias" => (d, "d"),
                _ => (f * d, "F·d"),
            };
            check(name, array.len(), expected, rule)?;
        }
        check("steps_since_fired", steps_since_fired.len(), f, "F")?;
        let batches = window.len() / f;
        check("window", window.len(), batches * f, "a multiple of F")?;
        let most = self.plan.window;
        check("window", window.len(), batches.min(most) * f, "at most F times the sparsity window")?;

        for (copy, parameters) in parameters.into_iter().enumerate() {
            let packed = self.packed(parameters);
            let offset = 4 * copy * self.plan.parameters();
            device.upload(&mut self.buffers.parameters, offset, bytemuck::cast_slice(&packed))?;
        }
        device.upload(&mut self.buffers.steps_since_fired, 0, bytemuck::cast_slice(steps_since_fired))?;
        self.load_window(device, window)?;
        Ok(self.derive(device)?)
    }

    /// Fills the window and the frequencies that follow from it.
    fn load_window(&mut self, device: &mut D, window: &[u32]) -> Result<(), StepError> {
        let f = self.plan.features;
        let lines: Vec<&[u32]> = window.chunks_exact(f).collect();
        let total = |line: &[u32]| -> u64 { line.iter().map(|count| u64::from(*count)).sum() };
        let levels: Vec<f64> = lines.iter().map(|line| (total(line) as f64).log10()).collect();
        // A batch counts if it is near the newest one: what counted before does not matter.
        let newest = lines.len().saturating_sub(1);
        let counted: Vec<bool> = (0..lines.len())
            .map(|line| line == newest || (levels[line] - levels[newest]).abs() < 0.5)
            .collect();
        let mut sums = vec![0u32; f];
        for (line, _) in lines.iter().zip(&counted).filter(|(_, counted)| **counted) {
            sums.iter_mut().zip(*line).for_each(|(sum, count)| *sum += count);
        }
        let number = counted.iter().filter(|counted| **counted).count();
        let rows = (number.max(1) * self.plan.rows) as f64;
        let frequencies: Vec<f32> = sums.iter().map(|sum| (f64::from(*sum) / rows) as f32).collect();
        let summed: Vec<u32> = counted.into_iter().map(u32::from).collect();
        let header = Window {
            filled: lines.len() as u32,
            newest: newest as u32,
            counted: number as u32,
            evicted: 0,
            changes: 0,
            unused: 0,
        };
        let b = &mut self.buffers;
        device.upload(&mut b.window, 0, bytemuck::bytes_of(&header))?;
        device.upload(&mut b.levels, 0, bytemuck::cast_slice(&levels))?;
        device.upload(&mut b.summed, 0, bytemuck::cast_slice(&summed))?;
        device.upload(&mut b.ring, 0, bytemuck::cast_slice(window))?;
        device.upload(&mut b.window_sums, 0, bytemuck::cast_slice(&sums))?;
        device.upload(&mut b.frequencies, 0, bytemuck::cast_slice(&frequencies))?;
        Ok(())
    }

    /// One copy of the parameters as it lies on the device: rows padded with zeros.
    fn packed(&self, parameters: &Parameters) -> Vec<f32> {
        let (d, stride) = (self.plan.width, self.plan.stride);
        let mut packed = vec![0.0; self.plan.parameters()];
        for (start, matrix) in [(0, &parameters.encoder), (self.plan.decoder_at(), &parameters.decoder)] {
            let rows = packed[start..].chunks_exact_mut(stride).zip(matrix.chunks_exact(d));
            rows.for_each(|(to, row)| to[..d].copy_from_slice(row));
        }
        packed[self.plan.encoder_bias_at()..][..parameters.encoder_bias.len()]
            .copy_from_slice(&parameters.encoder_bias);
        packed[self.plan.decoder_bias_at()..][..d].copy_from_slice(&parameters.decoder_bias);
        packed
    }

    /// Copy 0 (weights), 1 (first moments) or 2 (second moments) of the parameters.
    fn download_parameters(&self, device: &mut D, copy: usize) -> Result<Parameters, StepError> {
        let (d, f, stride) = (self.plan.width, self.plan.features, self.plan.stride);
        let mut packed = vec![0.0f32; self.plan.parameters()];
        let offset = 4 * copy * self.plan.parameters();
        device.download(&self.buffers.parameters, offset, bytemuck::cast_slice_mut(&mut packed))?;
        let matrix = |start: usize| {
            packed[start..][..f * stride]
                .chunks_exact(stride)
                .flat_map(|row| row[..d].iter().copied())
                .collect()
        };
        Ok(Parameters {
            encoder: matrix(0),
            encoder_bias: packed[self.plan.encoder_bias_at()..][..f].to_vec(),
            decoder: matrix(self.plan.decoder_at()),
            decoder_bias: packed[self.plan.decoder_bias_at()..][..d].to_vec(),
        })
    }
}
