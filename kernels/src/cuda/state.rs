//! Weights and state between host and device.

use ndarray::{Array1, Array2, ArrayView2};

use crate::activations::SparseActivations;
use crate::error::StepError;
use crate::parameters::{Parameters, numbers};
use crate::path::PathChoice;
use crate::state::State;

use super::device::Device;
use super::layout::{Report, Window};
use super::resident::CudaStep;

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
    pub fn frequencies(&self, device: &mut D) -> Result<Array1<f32>, StepError> {
        let mut frequencies = vec![0.0f32; self.plan.features];
        device.download(&self.buffers.frequencies, 0, bytemuck::cast_slice_mut(&mut frequencies))?;
        Ok(frequencies.into())
    }

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// What the device says.
    pub fn steps_since_fired(&self, device: &mut D) -> Result<Array1<u64>, StepError> {
        let mut steps = vec![0u64; self.plan.features];
        device.download(&self.buffers.steps_since_fired, 0, bytemuck::cast_slice_mut(&mut steps))?;
        Ok(steps.into())
    }

    /// θ of BatchTopK, once it has a value, as of the last step that was finished.
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
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
            window: Array2::from_shape_vec((lines, features), counts).expect("a count per batch and feature"),
            steps_since_fired: self.steps_since_fired(device)?,
            threshold: self.threshold,
            path_choice: Some(self.choice.clone()),
        })
    }

    /// What the sparse path's forward pass left in the lists, of the first `rows` rows.
    pub(crate) fn listed_activations(
        &self,
        device: &mut D,
        rows: usize,
    ) -> Result<SparseActivations, StepError> {
        let b = &self.buffers;
        let (mut starts, mut active) = (vec![0u32; rows + 1], vec![0u32; rows]);
        device.download(&b.row_starts, 0, bytemuck::cast_slice_mut(&mut starts))?;
        device.download(&b.row_active, 0, bytemuck::cast_slice_mut(&mut active))?;
        let listed = starts[rows] as usize;
        let (mut features, mut values) = (vec![0u32; listed], vec![0.0f32; listed]);
        device.download(&b.pair_features, 0, bytemuck::cast_slice_mut(&mut features))?;
        device.download(&b.row_values, 0, bytemuck::cast_slice_mut(&mut values))?;
        // A row's list begins with its active pairs; behind them lie candidates that were not.
        let mut found = SparseActivations { row_starts: vec![0], ..SparseActivations::default() };
        for (start, active) in starts.into_iter().zip(active) {
            let own = start as usize..(start + active) as usize;
            found.features.extend_from_slice(&features[own.clone()]);
            found.values.extend_from_slice(&values[own]);
            found.row_starts.push(found.features.len());
        }
        Ok(found)
    }

    /// What the dense path's forward pass left, of the first `rows` rows.
    pub(crate) fn dense_activations(
        &self,
        device: &mut D,
        rows: usize,
    ) -> Result<SparseActivations, StepError> {
        let (line, features) = (self.plan.line, self.plan.features);
        let mut padded = vec![0.0f32; rows * line];
        device.download(&self.dense_buffers().activations, 0, bytemuck::cast_slice_mut(&mut padded))?;
        let lines = padded.chunks_exact(line).flat_map(|line| line[..features].iter().copied());
        Ok(SparseActivations::of_dense(&lines.collect::<Vec<_>>(), features))
    }

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other sizes (nothing has changed then), or what the device says.
    pub fn restore(&mut self, device: &mut D, state: &State) -> Result<(), StepError> {
        state.check(&self.spec)?;
        self.load(device, state)?;
        device.zero(&mut self.buffers.report, 0, size_of::<Report>())?;
        self.done = state.step;
        self.submitted = state.step;
        self.threshold = state.threshold;
        let fresh = self.plan.path_choice();
        // One for other lists is of no use.
        let same = |choice: &&PathChoice| choice.capacity() == fresh.capacity();
        self.choice = state.path_choice.as_ref().filter(same).cloned().unwrap_or(fresh);
        Ok(())
    }

    /// Fills everything that outlives a step from a state whose shapes were checked.
    pub(crate) fn load(&mut self, device: &mut D, state: &State) -> Result<(), StepError> {
        let parameters = [&state.weights, &state.first_moments, &state.second_moments];
        for (copy, parameters) in parameters.into_iter().enumerate() {
            let packed = self.packed(parameters);
            let offset = 4 * copy * self.plan.parameters();
            device.upload(&mut self.buffers.parameters, offset, bytemuck::cast_slice(&packed))?;
            if let (Some(to), Some(from)) = (&mut self.buffers.thresholds, &parameters.threshold) {
                let offset = 4 * copy * self.plan.features;
                device.upload(to, offset, bytemuck::cast_slice(numbers(from)))?;
            }
        }
        let since = state.steps_since_fired.to_vec();
        device.upload(&mut self.buffers.steps_since_fired, 0, bytemuck::cast_slice(&since))?;
        self.load_window(device, state.window.view())?;
        Ok(self.derive(device)?)
    }

    /// Fills the window and the frequencies that follow from it.
    fn load_window(&mut self, device: &mut D, window: ArrayView2<'_, u32>) -> Result<(), StepError> {
        let f = self.plan.features;
        let window = window.to_slice().expect("the window is row-major");
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
        for (name, tensor) in parameters.tensors().into_iter().filter(|(name, _)| *name != "threshold") {
            let numbers = numbers(&tensor);
            let length = if tensor.ndim() == 2 { d } else { numbers.len() };
            let lines = packed[self.plan.tensor_at(name)..].chunks_mut(stride.max(length));
            lines.zip(numbers.chunks_exact(length)).for_each(|(to, line)| to[..length].copy_from_slice(line));
        }
        packed
    }

    /// Copy 0 (weights), 1 (first moments) or 2 (second moments) of the parameters.
    fn download_parameters(&self, device: &mut D, copy: usize) -> Result<Parameters, StepError> {
        let (d, f, stride) = (self.plan.width, self.plan.features, self.plan.stride);
        let mut packed = vec![0.0f32; self.plan.parameters()];
        let offset = 4 * copy * self.plan.parameters();
        device.download(&self.buffers.parameters, offset, bytemuck::cast_slice_mut(&mut packed))?;
        let mut thresholds = vec![0.0f32; if self.plan.thresholds { f } else { 0 }];
        if let Some(from) = &self.buffers.thresholds {
            device.download(from, 4 * copy * f, bytemuck::cast_slice_mut(&mut thresholds))?;
        }
        Parameters::from_numbers(&self.spec, |name, shape| {
            if name == "threshold" {
                return Ok(std::mem::take(&mut thresholds));
            }
            let from = &packed[self.plan.tensor_at(name)..];
            Ok(match *shape {
                [length] => from[..length].to_vec(),
                _ => from.chunks(stride).take(f).flat_map(|line| line[..d].iter().copied()).collect(),
            })
        })
    }
}
