//! Weights and state between host and device.

use std::ops::Range;

use bytemuck::Pod;
use ndarray::{Array1, Array2, ArrayView2};

use crate::activations::SparseActivations;
use crate::error::{DeviceError, StepError};
use crate::parameters::{Parameters, numbers, row_norms};
use crate::path::PathChoice;
use crate::state::{NewFeature, PanelStates, State};

use super::device::Device;
use super::layout::Window;
use super::panel::Panel;
use super::resident::CudaStep;

impl<D: Device> CudaStep<D> {
    /// The weights. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn weights(&self, device: &mut D) -> Result<Parameters, StepError> {
        self.parameters(device, 0)
    }

    /// The features of panel `number`, one of the own ones, and their weights; b_dec is in each. Nothing is exchanged. Steps must have
    /// been finished.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Panics
    /// If another rank owns it.
    pub fn panel_weights(
        &self,
        device: &mut D,
        number: usize,
    ) -> Result<(Range<usize>, Parameters), StepError> {
        let own = self.own_panels();
        assert!(own.contains(&number), "panel {number}, and the own ones are {own:?}");
        let features = self.spec.panel_features(number);
        Ok((features, self.panels[number - own.start].download_parameters(device, 0)?))
    }

    /// The norm of each feature's column of W_enc, [F]. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn encoder_norms(&self, device: &mut D) -> Result<Vec<f64>, StepError> {
        self.norms(device, |weights| &weights.encoder)
    }

    /// The norm of each decoder row, [F]. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn decoder_norms(&self, device: &mut D) -> Result<Vec<f64>, StepError> {
        self.norms(device, |weights| &weights.decoder)
    }

    fn norms(&self, device: &mut D, of: impl Fn(&Parameters) -> &Array2<f32>) -> Result<Vec<f64>, StepError> {
        let mut own = Vec::new();
        for panel in &self.panels {
            own.extend(row_norms(of(&panel.download_parameters(device, 0)?)));
        }
        self.of_all_features(own, 1)
    }

    /// Lets features start anew. All ranks are given all of `new`. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn replace(&mut self, device: &mut D, new: &[NewFeature]) -> Result<(), StepError> {
        let mut states = self.panel_states(device)?;
        for (number, state) in &mut states.panels {
            state.replace(self.spec.panel_features(*number).start, new);
        }
        self.restore_panels(device, &states)
    }

    /// The running frequencies as of the last step, [F].
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn frequencies(&self, device: &mut D) -> Result<Array1<f32>, StepError> {
        let mut own = Vec::new();
        for panel in &self.panels {
            let mut frequencies = vec![0.0f32; panel.plan.features];
            device.download(&panel.buffers.frequencies, 0, bytemuck::cast_slice_mut(&mut frequencies))?;
            own.extend(frequencies);
        }
        Ok(self.of_all_features(own, 1)?.into())
    }

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn steps_since_fired(&self, device: &mut D) -> Result<Array1<u64>, StepError> {
        let mut own = Vec::new();
        for panel in &self.panels {
            let mut steps = vec![0u64; panel.plan.features];
            device.download(&panel.buffers.steps_since_fired, 0, bytemuck::cast_slice_mut(&mut steps))?;
            own.extend(steps);
        }
        Ok(self.of_all_features(own, 1)?.into())
    }

    /// Everything a run needs to continue, but for how several panels choose their paths. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says; ranks that are lost.
    pub fn state(&self, device: &mut D) -> Result<State, StepError> {
        let whole = self.meeting.is_none();
        Ok(State {
            step: self.done,
            weights: self.parameters(device, 0)?,
            first_moments: self.parameters(device, 1)?,
            second_moments: self.parameters(device, 2)?,
            window: self.window(device)?,
            steps_since_fired: self.steps_since_fired(device)?,
            threshold: self.threshold(),
            path_choice: whole.then(|| self.panels[0].choice.clone()),
        })
    }

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other sizes (nothing has changed then), or what the device says.
    pub fn restore(&mut self, device: &mut D, state: &State) -> Result<(), StepError> {
        state.check(&self.spec)?;
        self.load(device, state)?;
        self.restored(device, state.step)
    }

    /// This rank's share of the state. Nothing is exchanged. Steps must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn panel_states(&self, device: &mut D) -> Result<PanelStates, StepError> {
        let mut panels = Vec::new();
        for (number, panel) in self.own_panels().zip(&self.panels) {
            let mut since = vec![0u64; panel.plan.features];
            device.download(&panel.buffers.steps_since_fired, 0, bytemuck::cast_slice_mut(&mut since))?;
            let state = State {
                step: self.done,
                weights: panel.download_parameters(device, 0)?,
                first_moments: panel.download_parameters(device, 1)?,
                second_moments: panel.download_parameters(device, 2)?,
                window: panel.window(device)?,
                steps_since_fired: since.into(),
                threshold: panel.threshold,
                path_choice: Some(panel.choice.clone()),
            };
            panels.push((number, state));
        }
        Ok(PanelStates { panels, window_totals: self.window_totals.iter().copied().collect() })
    }

    /// Continues from this rank's share of a state.
    ///
    /// # Errors
    /// States of other panels than the own ones or of other shapes (nothing has changed then), or what the device says.
    pub fn restore_panels(&mut self, device: &mut D, states: &PanelStates) -> Result<(), StepError> {
        let PanelStates { panels, window_totals } = states;
        let numbers: Vec<usize> = panels.iter().map(|(number, _)| *number).collect();
        if !numbers.iter().copied().eq(self.own_panels()) {
            let own: Vec<usize> = self.own_panels().collect();
            return Err(StepError::shape("the list of panels", &numbers, &own));
        }
        for (panel, (_, state)) in self.panels.iter().zip(panels) {
            state.check(&panel.spec)?;
            if state.window.nrows() != window_totals.len() {
                return Err(StepError::shape("window", &[state.window.nrows()], &[window_totals.len()]));
            }
        }
        for (panel, (_, state)) in self.panels.iter_mut().zip(panels) {
            panel.load(device, state, window_totals)?;
        }
        self.window_totals = window_totals.iter().copied().collect();
        self.restored(device, panels[0].1.step)
    }

    fn restored(&mut self, device: &mut D, step: u64) -> Result<(), StepError> {
        self.clear_reports(device)?;
        (self.done, self.submitted) = (step, step);
        Ok(())
    }

    /// Fills everything that outlives a step from a state whose shapes were checked.
    pub(crate) fn load(&mut self, device: &mut D, state: &State) -> Result<(), StepError> {
        let batches = state.window.rows().into_iter();
        let totals: Vec<u64> = batches.map(|batch| batch.iter().copied().map(u64::from).sum()).collect();
        match &self.meeting {
            None => self.panels[0].load(device, state, &totals)?,
            Some(meeting) => {
                for (panel, number) in self.panels.iter_mut().zip(meeting.own()) {
                    let of_panel = state.of_features(meeting.share.features_of(number));
                    panel.load(device, &of_panel, &totals)?;
                }
            }
        }
        self.window_totals = totals.into();
        Ok(())
    }

    /// Numbers of all features from those of the own ones, `line` for each.
    pub(crate) fn of_all_features<T: Pod>(&self, own: Vec<T>, line: usize) -> Result<Vec<T>, StepError> {
        match &self.meeting {
            Some(meeting) => Ok(meeting.peers.all_features(own, &meeting.share.features_of_ranks(), line)?),
            None => Ok(own),
        }
    }

    /// Copy 0 (weights), 1 (first moments) or 2 (second moments) of the parameters of all features.
    fn parameters(&self, device: &mut D, copy: usize) -> Result<Parameters, StepError> {
        let mut own = Vec::new();
        for panel in &self.panels {
            own.push(panel.download_parameters(device, copy)?);
        }
        if self.meeting.is_none() {
            return Ok(own.remove(0));
        }
        let whole = |tensor: &'static str, line: usize| {
            let of_panel = |panel: &Parameters| -> Vec<f32> {
                let mut tensors = panel.tensors().into_iter();
                let found = tensors.find(|(name, _)| *name == tensor);
                found.map_or_else(Vec::new, |(_, found)| found.iter().copied().collect())
            };
            self.of_all_features(own.iter().flat_map(of_panel).collect(), line)
        };
        Parameters::from_numbers(&self.spec, |name, shape| match (name, shape) {
            // Each panel has a copy.
            ("decoder_bias", _) => Ok(own[0].decoder_bias.to_vec()),
            (_, [_, width]) => whole(name, *width),
            _ => whole(name, 1),
        })
    }

    /// The counts in the window of all features, [batches,F], the oldest batch first.
    fn window(&self, device: &mut D) -> Result<Array2<u32>, StepError> {
        let mut own = Vec::new();
        for panel in &self.panels {
            own.push(panel.window(device)?);
        }
        if self.meeting.is_none() {
            return Ok(own.remove(0));
        }
        let batches = own[0].nrows();
        // Feature by feature, as they lie one after another.
        let by_feature: Vec<u32> =
            own.iter().flat_map(|counts| counts.t().iter().copied().collect::<Vec<_>>()).collect();
        let all = self.of_all_features(by_feature, batches)?;
        let all = Array2::from_shape_vec((self.spec.features, batches), all).expect("a count of each batch");
        Ok(all.t().as_standard_layout().into_owned())
    }
}

impl<D: Device> Panel<D> {
    /// The counts in the window, [batches,F], the oldest batch first.
    fn window(&self, device: &mut D) -> Result<Array2<u32>, DeviceError> {
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
        Ok(Array2::from_shape_vec((lines, features), counts).expect("a count per batch and feature"))
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

    /// Fills everything that outlives a step from the state of the panel's features alone; `totals` are those of all features.
    fn load(&mut self, device: &mut D, state: &State, totals: &[u64]) -> Result<(), StepError> {
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
        self.load_window(device, state.window.view(), totals)?;
        self.threshold = state.threshold;
        let fresh = self.plan.path_choice();
        // One for other lists is of no use.
        let same = |choice: &&PathChoice| choice.capacity() == fresh.capacity();
        self.choice = state.path_choice.as_ref().filter(same).cloned().unwrap_or(fresh);
        Ok(self.derive(device)?)
    }

    /// Fills the window and the frequencies that follow from it. Which batches count, the `totals` of all features decide.
    fn load_window(
        &mut self,
        device: &mut D,
        window: ArrayView2<'_, u32>,
        totals: &[u64],
    ) -> Result<(), StepError> {
        let f = self.plan.features;
        let window = window.to_slice().expect("the window is row-major");
        let lines: Vec<&[u32]> = window.chunks_exact(f).collect();
        let levels: Vec<f64> = totals.iter().map(|total| (*total as f64).log10()).collect();
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
