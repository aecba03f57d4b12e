//! A whole training step on the current rayon thread pool, and the forward pass alone.
//!
//! The features are divided into [panels](crate::panels), usually one, and the panels over ranks, usually one. A rank computes what
//! belongs to its panels one after another; between the halves of a step the panels' sums meet.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use ndarray::{Array1, Array2, ArrayView2};
use ranks::{Alone, Exchange, ExchangeError};

use crate::activation::Activation;
use crate::activations::SparseActivations;
use crate::batch::Batch;
use crate::error::StepError;
use crate::loss::Mse;
use crate::outcome::{StepReport, Terms};
use crate::panels::{Share, Tree};
use crate::parameters::{Parameters, numbers, row_norms};
use crate::path::Path;
use crate::spec::{AdamStep, Schedule, StepSpec};
use crate::state::{NewFeature, PanelStates, State};
use crate::stats::{Evaluation, Sums};

use super::among_panels::{keep_of_batch, keep_of_rows};
use super::blocks::TrainedParameters;
use super::decode::{Onto, RowActivity, sum_of_rows};
use super::finish::{Rows, check_rows};
use super::forward::{Buffers, Found};
use super::jump::Jump;
use super::options::{CpuOptions, Purpose};
use super::panel::{Panel, Pass};
use super::peers::{Peers, add};
use super::rows::subtract_bias;
use super::select::Selected;
use super::sparsity::Sparsity;
use super::train::{
    Activations, FeaturesTrained, GroupGradient, Train, WholeGradient, train_features, train_rest,
};

/// One autoencoder in training on CPU threads, or this rank's share of one.
pub struct CpuStep {
    spec: StepSpec,
    options: CpuOptions,
    peers: Peers,
    share: Share,
    /// Those that this rank owns.
    panels: Vec<Panel>,
    /// θ of BatchTopK, once it has a value.
    threshold: Option<f64>,
    steps: u64,
    rows: Rows,
    /// Memory for sums of panels.
    memory: Vec<Vec<f32>>,
    skip_gradient: Vec<f32>,
}

/// What a forward pass found in each of the own panels.
struct FoundInPanels {
    found: Vec<Found>,
    /// In how many rows each feature is active.
    counts: Vec<Vec<u32>>,
    /// The features that a loss over dead features sees.
    dead: Vec<Vec<u32>>,
    /// The reconstruction term of all prefixes together, where there are any and a step follows.
    prefixes: Option<f64>,
}

impl CpuStep {
    /// A run that begins with the given weights and has done no step.
    ///
    /// # Errors
    /// A spec out of range, weights of other shapes, or panels of what cannot be divided.
    pub fn new(spec: StepSpec, options: CpuOptions, weights: Parameters) -> Result<CpuStep, StepError> {
        CpuStep::shared(spec, options, weights, Arc::new(Alone))
    }

    /// As [`CpuStep::new`] for one of several ranks, all of which are given the same. They do together what one of them would do
    /// alone, bit for bit: each method that has a batch, and those that return something of all features, are called by all at
    /// the same time.
    ///
    /// # Errors
    /// As [`CpuStep::new`], and ranks that do not divide the panels.
    pub fn shared(
        spec: StepSpec,
        options: CpuOptions,
        weights: Parameters,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CpuStep, StepError> {
        spec.validate()?;
        weights.check(&spec)?;
        let mut step = CpuStep::empty(spec, options, exchange)?;
        if step.spec.panels == 1 {
            step.restore(State::new(weights))?;
            return Ok(step);
        }
        // Moments of all features would be in memory beside those of the panels.
        for panel in &mut step.panels {
            let own = weights.of_features(panel.features.clone(), panel.spec.skip);
            panel.restore_alone(State::new(own), &[]);
        }
        Ok(step)
    }

    /// As [`CpuStep::shared`] for a rank that is given its own panels alone, and goes on where they are.
    ///
    /// # Errors
    /// As [`CpuStep::shared`] and [`CpuStep::restore_panels`].
    pub fn of_panels(
        spec: StepSpec,
        options: CpuOptions,
        states: PanelStates,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CpuStep, StepError> {
        spec.validate()?;
        let mut step = CpuStep::empty(spec, options, exchange)?;
        step.restore_panels(states)?;
        Ok(step)
    }

    /// Without numbers.
    fn empty(spec: StepSpec, options: CpuOptions, exchange: Arc<dyn Exchange>) -> Result<CpuStep, StepError> {
        let share = Share::new(&spec, &*exchange)?;
        let own = share.own();
        let panel = |panel| Panel::new(&spec, panel, panel == own.start);
        let panels = own.clone().map(panel).collect();
        Ok(CpuStep {
            spec,
            options,
            peers: Peers(exchange),
            share,
            panels,
            threshold: None,
            steps: 0,
            rows: Rows::default(),
            memory: Vec::new(),
            skip_gradient: Vec::new(),
        })
    }

    /// What a step is.
    pub fn spec(&self) -> &StepSpec {
        &self.spec
    }

    /// One optimizer step on a batch of B rows.
    ///
    /// # Errors
    /// A batch of another shape, NaN or infinity in the batch or in the loss, a norm of 0 that the MSE divides by: nothing
    /// has changed.
    pub fn step(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<StepReport, StepError> {
        let (input, target) = batch.numbers(self.spec.batch, self.spec.width)?;
        let spec = self.spec;
        let sparsity = Sparsity::new(&spec.loss, schedule, spec.batch);
        let FoundInPanels { found, counts, dead, prefixes } =
            self.pass(input, target, &sparsity, Purpose::Training)?;
        self.rows.check_denominators(spec.loss.mse)?;

        let sums = self.rows.sums(&spec, &sparsity);
        let mut terms = Terms {
            mse: prefixes.unwrap_or(match spec.loss.mse {
                Mse::Sum => sums.mse_sum(),
                Mse::Centered => sums.mse_centered(),
                Mse::Uncentered => sums.mse_uncentered(),
            }),
            penalty: spec.loss.coefficient * schedule.coefficient_scale * sums.penalty(),
            dead: self.dead_loss(input, dead, &sparsity)?,
            ..Terms::default()
        };
        // The frequency terms are finite by their form; nothing has changed up to here.
        if !terms.loss().is_finite() {
            return Err(StepError::NonFiniteLoss { step: self.steps + 1, loss: terms.loss() });
        }
        let of_panels = self.panels.iter_mut().zip(&counts);
        let of_panels: Vec<Terms> =
            of_panels.map(|(panel, counts)| panel.count(counts, sums.active, spec.features)).collect();
        let finite = self.train(input, &found, &sums, &sparsity, schedule)?;

        self.steps += 1;
        if let Activation::BatchTopK { threshold, .. } = spec.activation {
            let smallest = self.panels.iter().filter_map(Panel::smallest).fold(f32::INFINITY, f32::min);
            let smallest = self.peers.all(&[smallest])?.into_iter().fold(f32::INFINITY, f32::min);
            let smallest = Some(smallest).filter(|smallest| smallest.is_finite());
            self.threshold = threshold.after(self.steps, self.threshold, smallest);
        }
        for ((panel, counts), found) in self.panels.iter_mut().zip(&counts).zip(&found) {
            panel.done(counts, found.encoded);
        }
        let of_panel = |((terms, found), finite): ((Terms, Found), bool)| {
            let is = |condition: bool| f64::from(u8::from(condition));
            let Terms { min_sparsity, max_sparsity, density, below_target, .. } = terms;
            let (below, rechecked) = (below_target as f64, found.rechecked as f64);
            vec![
                min_sparsity,
                max_sparsity,
                density,
                below,
                rechecked,
                is(found.path == Path::Dense),
                is(!finite),
            ]
        };
        let tally = self.peers.sum(of_panels.into_iter().zip(found).zip(finite).map(of_panel))?;
        (terms.min_sparsity, terms.max_sparsity, terms.density) = (tally[0], tally[1], tally[2]);
        terms.below_target = tally[3] as usize;
        if tally[6] > 0.0 {
            return Err(StepError::Diverged { step: self.steps });
        }
        let rechecked = tally[4] / (spec.batch * spec.features) as f64;
        let path = if tally[5] > 0.0 { Path::Dense } else { Path::Sparse };
        Ok(StepReport { step: self.steps, terms, sums, path, rechecked })
    }

    /// The forward pass: what is active, and what follows for the rows.
    fn pass(
        &mut self,
        input: &[f32],
        target: &[f32],
        sparsity: &Sparsity,
        purpose: Purpose,
    ) -> Result<FoundInPanels, StepError> {
        let isa = self.options.isa;
        self.rows.begin(isa, input, target, self.spec.width)?;
        let found = self.activate(input, sparsity, purpose)?;
        let pass = Pass { options: &self.options, threshold: self.threshold, purpose, sparsity };
        let (mut counts, mut dead) = (Vec::new(), Vec::new());
        for (panel, found) in self.panels.iter_mut().zip(&found) {
            let forward = panel.forward(pass);
            let of_panel = forward.counts(found.path);
            dead.push(forward.dead_features(&of_panel));
            counts.push(of_panel);
        }
        let reconstructions = self.decode(input, &found, sparsity, purpose)?;
        // Only losses that have one panel read it.
        let residual = self.spec.panels == 1 && dead.iter().any(|dead| !dead.is_empty());
        let kept = (purpose == Purpose::Training, residual);
        let prefixes = self.rows.finish(&self.peers, isa, &self.spec, target, reconstructions, kept)?;
        Ok(FoundInPanels { found, counts, dead, prefixes })
    }

    /// Finds the active pairs of all panels.
    fn activate(
        &mut self,
        input: &[f32],
        sparsity: &Sparsity,
        purpose: Purpose,
    ) -> Result<Vec<Found>, ExchangeError> {
        let StepSpec { width, pre_bias, activation, panels, .. } = self.spec;
        if pre_bias {
            let bias = numbers(&self.panels[0].parameters.weights.decoder_bias);
            subtract_bias(input, bias, &mut self.rows.shifted);
        }
        let x = if pre_bias { &self.rows.shifted } else { input };
        let pass = Pass { options: &self.options, threshold: self.threshold, purpose, sparsity };
        let (mut found, mut moments) = (Vec::new(), None);
        for panel in &mut self.panels {
            panel.buffers.encode.set_moments(moments.take());
            found.push(panel.forward(pass).activate(x));
            // Only the panels of this pass read the same rows.
            moments = panel.buffers.encode.take_moments();
        }
        if panels > 1 {
            let rows = input.len() / width;
            let own = self.panels.iter_mut();
            let mut own: Vec<_> =
                own.map(|panel| (panel.features.start, &mut panel.buffers.selected.kept)).collect();
            match (activation, purpose) {
                (Activation::TopK { k }, _) => keep_of_rows(&self.peers, k, rows, &mut own)?,
                (Activation::BatchTopK { k, .. }, Purpose::Training) => {
                    keep_of_batch(&self.peers, k.saturating_mul(rows), &mut own)?;
                }
                _ => {}
            }
        }
        for (panel, found) in self.panels.iter_mut().zip(&found) {
            panel.forward(pass).unrank(found.path);
        }
        Ok(found)
    }

    /// x̂ of each prefix in training, and of all features at last, [B,d] each, as the own panels have it. Leaves what is active in each
    /// row.
    fn decode(
        &mut self,
        input: &[f32],
        found: &[Found],
        sparsity: &Sparsity,
        purpose: Purpose,
    ) -> Result<Vec<Vec<f32>>, StepError> {
        let spec = self.spec;
        let prefixes = if purpose == Purpose::Training { spec.prefixes } else { Default::default() };
        let ends: Vec<usize> = prefixes.ends(spec.features).collect();
        let Rows { gradient, prefixes: of_prefixes, activity, .. } = &mut self.rows;
        let memory = &mut self.memory;
        memory.append(of_prefixes);
        memory.push(std::mem::take(gradient));
        let mut row_memory = std::mem::take(activity);
        let mut sums: Vec<Tree<Vec<f32>>> = ends.iter().map(|_| Tree::default()).collect();
        let mut active = Tree::default();
        let pass = Pass { options: &self.options, threshold: self.threshold, purpose, sparsity };
        for (panel, found) in self.panels.iter_mut().zip(found) {
            let mut values = memory.pop().unwrap_or_default();
            let mut activity = std::mem::take(&mut row_memory);
            if let [_] = ends[..] {
                let mut nearest = sums[0].completed();
                let level = nearest.len();
                match nearest.pop() {
                    Some(mut sum) => {
                        let onto = Onto { nearest: &nearest, sum: &mut sum };
                        panel.forward(pass).decode_onto(found.path, input, onto, &mut values, &mut activity);
                        sums[0].put(level, sum);
                        memory.extend(nearest);
                        memory.push(values);
                    }
                    None => {
                        panel.forward(pass).decode(found.path, input, &mut values, &mut activity);
                        sums[0].put(level, values);
                    }
                }
            } else {
                let groups = panel.groups(ends.iter().copied());
                let mut forward = panel.forward(pass);
                forward.decode_groups(
                    found.path,
                    input,
                    &groups,
                    &mut values,
                    &mut activity,
                    |at, values| {
                        if at + 1 < ends.len() {
                            let mut copy = memory.pop().unwrap_or_default();
                            copy.clear();
                            copy.extend_from_slice(values);
                            sums[at].add(copy, |left, right| add_up(left, right, memory));
                        }
                    },
                );
                sums[ends.len() - 1].add(values, |left, right| add_up(left, right, memory));
            }
            active.add(activity, |mut left: Vec<RowActivity>, right| {
                left.iter_mut().zip(right).for_each(|(left, right)| left.add(&right));
                left
            });
        }
        self.rows.count(&self.peers, &spec, sparsity, active.sum().unwrap_or_default())?;
        Ok(sums.into_iter().map(|sum| sum.sum().unwrap_or_default()).collect())
    }

    /// The loss over the `dead` features of all panels; its gradients stay in the panels' buffers.
    fn dead_loss(
        &mut self,
        input: &[f32],
        dead: Vec<Vec<u32>>,
        sparsity: &Sparsity,
    ) -> Result<f64, ExchangeError> {
        if self.spec.dead.is_none() {
            return Ok(0.0);
        }
        let x = if self.spec.pre_bias { &self.rows.shifted } else { input };
        let pass =
            Pass { options: &self.options, threshold: self.threshold, purpose: Purpose::Training, sparsity };
        let mut of_panels = Vec::new();
        for (panel, dead) in self.panels.iter_mut().zip(dead) {
            of_panels.push(vec![panel.forward(pass).dead_loss(x, &self.rows, dead)]);
        }
        Ok(self.peers.sum(of_panels.into_iter())?[0])
    }

    /// The second half of a step. Returns for each panel whether its weights are finite.
    fn train(
        &mut self,
        input: &[f32],
        found: &[Found],
        sums: &Sums,
        sparsity: &Sparsity,
        schedule: &Schedule,
    ) -> Result<Vec<bool>, ExchangeError> {
        let (isa, spec) = (self.options.isa, self.spec);
        let rows = &mut self.rows;
        let jump = match spec.activation {
            Activation::JumpRelu { bandwidth, to_input } => {
                let mean = sums.l0();
                let of_row = |row: &RowActivity| sparsity.by_count(row.active, mean);
                rows.by_count = rows.activity.iter().map(of_row).collect();
                let sees_activations = spec.loss.penalty.sees_activations();
                Some(Jump { bandwidth, to_input, by_count: &rows.by_count, sees_activations })
            }
            _ => None,
        };
        let narrower = spec.prefixes.widths().iter().zip(&rows.prefixes);
        let mut groups: Vec<GroupGradient<'_>> =
            narrower.map(|(end, g)| GroupGradient { end: *end, g }).collect();
        groups.push(GroupGradient { end: spec.features, g: &rows.gradient });
        let sum_of_g = sum_of_rows(groups[0].g, spec.width);
        let adam = AdamStep::new(&spec.adam, schedule.lr, self.steps + 1);

        let mut trained = Vec::new();
        for (panel, found) in self.panels.iter_mut().zip(found) {
            let groups = panel.group_gradients(&groups);
            // The first panel's sum begins with what belongs to no feature.
            let start = if panel.features.start == 0 { sum_of_g.clone() } else { vec![0.0; spec.width] };
            let Panel { spec: of_panel, buffers, parameters, .. } = panel;
            let Buffers { slopes, dead, selected, activations, preactivations, waiting, packed, .. } =
                buffers;
            let backward = Train {
                spec: of_panel,
                sparsity,
                adam: &adam,
                slopes,
                products: self.options.products(Purpose::Training),
                x: if spec.pre_bias { &rows.shifted } else { input },
                skipped: input,
                groups: &groups,
                sum_of_g: &sum_of_g,
                jump,
                dead: (!dead.features.is_empty()).then_some(&*dead),
            };
            let activations = match found.path {
                Path::Sparse => Activations::Sparse(selected),
                Path::Dense => {
                    Activations::Dense { activations, preactivations: jump.map(|_| &preactivations[..]) }
                }
            };
            trained.push(train_features(isa, &backward, activations, start, parameters, waiting, packed));
        }
        let of_all = match spec.pre_bias || spec.gradient_clip.is_some() {
            true => {
                let of_panel = |panel: &FeaturesTrained| {
                    [panel.squares].into_iter().chain(panel.decoder_bias.iter().copied()).collect()
                };
                let sum = self.peers.sum(trained.iter().map(of_panel))?;
                FeaturesTrained { finite: true, squares: sum[0], decoder_bias: sum[1..].to_vec() }
            }
            false => FeaturesTrained { finite: true, squares: 0.0, decoder_bias: sum_of_g },
        };
        let memory = std::mem::take(&mut self.skip_gradient);
        let gradient = WholeGradient::new(&spec, &groups, input, &of_all, memory);
        let mut finite = Vec::new();
        for (panel, trained) in self.panels.iter_mut().zip(trained) {
            let Panel { spec, parameters, buffers, .. } = panel;
            let rest = train_rest(isa, spec, &adam, &gradient, parameters, &mut buffers.waiting);
            finite.push(trained.finite && rest);
        }
        self.skip_gradient = gradient.into_memory();
        Ok(finite)
    }

    /// The forward pass alone, on any number of rows.
    ///
    /// # Errors
    /// A batch of another width, NaN or infinity in it.
    pub fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation, StepError> {
        let (input, target) = batch.numbers(batch.rows(), self.spec.width)?;
        if input.is_empty() {
            return Ok(Evaluation::new(self.spec.width, self.spec.features));
        }
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), batch.rows());
        let counts = self.pass(input, target, &sparsity, Purpose::Reading)?.counts;
        let firings = self.of_all_features(counts.concat(), 1)?;
        Ok(Evaluation {
            sums: self.rows.sums(&self.spec, &sparsity),
            row_sum: self.rows.norms.sum.clone(),
            firings: firings.into_iter().map(u64::from).collect(),
        })
    }

    /// ‖x̂ − x‖² of each row, [rows].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`].
    pub fn squared_errors(&mut self, batch: Batch<'_>) -> Result<Array1<f32>, StepError> {
        let rows = self.evaluate(batch)?.sums.rows as usize;
        Ok(self.rows.errors[..rows].iter().map(|row| row.squared_error).collect())
    }

    /// The active features of each row of `input` [rows,d].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`], and features on several ranks.
    pub fn encode(&mut self, input: ArrayView2<'_, f32>) -> Result<SparseActivations, StepError> {
        if self.peers.are_several() {
            return Err(StepError::Divided { what: "encoding rows" });
        }
        let (numbers, _) = Batch::from(input).numbers(input.nrows(), self.spec.width)?;
        if numbers.is_empty() {
            return Ok(SparseActivations::of_dense(&[], 1));
        }
        check_rows(numbers, self.spec.width)?;
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), input.nrows());
        let found = self.activate(numbers, &sparsity, Purpose::Reading)?;
        let of_panel = |(panel, found): (&Panel, &Found)| {
            let Buffers { selected: Selected { kept, .. }, activations, .. } = &panel.buffers;
            match found.path {
                Path::Sparse => SparseActivations {
                    row_starts: kept.row_starts.clone(),
                    features: kept.features.clone(),
                    values: kept.row_values.clone(),
                },
                Path::Dense => SparseActivations::of_dense(activations, panel.spec.features),
            }
        };
        let mut parts: Vec<SparseActivations> = self.panels.iter().zip(&found).map(of_panel).collect();
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut whole = SparseActivations { row_starts: vec![0], features: Vec::new(), values: Vec::new() };
        for row in 0..input.nrows() {
            for (panel, part) in self.panels.iter().zip(&parts) {
                let (features, values) = part.of_row(row);
                whole.features.extend(features.iter().map(|j| panel.features.start as u32 + j));
                whole.values.extend_from_slice(values);
            }
            whole.row_starts.push(whole.features.len());
        }
        Ok(whole)
    }

    /// Finds the active pairs of B rows as a step does, and returns how many there are in the own panels: the part of a step that
    /// differs most between activations, for measurements.
    ///
    /// # Errors
    /// As [`CpuStep::step`].
    pub fn select(&mut self, input: ArrayView2<'_, f32>) -> Result<usize, StepError> {
        let (numbers, _) = Batch::from(input).numbers(self.spec.batch, self.spec.width)?;
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), self.spec.batch);
        check_rows(numbers, self.spec.width)?;
        let found = self.activate(numbers, &sparsity, Purpose::Training)?;
        let active = |(panel, found): (&Panel, &Found)| match found.path {
            Path::Sparse => panel.buffers.selected.kept.len(),
            Path::Dense => panel.buffers.activations.iter().filter(|a| **a > 0.0).count(),
        };
        Ok(self.panels.iter().zip(&found).map(active).sum())
    }

    /// x̂ of each row of `input` [rows,d].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`].
    pub fn reconstruct(&mut self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, StepError> {
        let (rows, width) = input.dim();
        let (numbers, _) = Batch::from(input).numbers(rows, width)?;
        let mut reconstruction = Vec::new();
        if !numbers.is_empty() {
            check_rows(numbers, width)?;
            let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), rows);
            let found = self.activate(numbers, &sparsity, Purpose::Reading)?;
            reconstruction = self.decode(numbers, &found, &sparsity, Purpose::Reading)?.remove(0);
            self.peers.to_owners(&mut reconstruction, rows)?;
            self.peers.spread(&mut reconstruction, rows, width)?;
        }
        Ok(Array2::from_shape_vec(input.dim(), reconstruction).expect("as many numbers as the input"))
    }

    /// The weights.
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn weights(&self) -> Result<Cow<'_, Parameters>, StepError> {
        self.parameters(|parameters| &parameters.weights)
    }

    /// The running frequencies s_j as of the last step, [F]; zeros before the first.
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn frequencies(&self) -> Result<Cow<'_, Array1<f32>>, StepError> {
        self.vector(|panel| &panel.frequencies)
    }

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn steps_since_fired(&self) -> Result<Cow<'_, Array1<u64>>, StepError> {
        self.vector(|panel| &panel.steps_since_fired)
    }

    /// θ of BatchTopK, once it has a value.
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// Everything a run needs to continue bit for bit.
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn state(&self) -> Result<State, StepError> {
        Ok(State {
            step: self.steps,
            weights: self.weights()?.into_owned(),
            first_moments: self.parameters(|parameters| &parameters.first)?.into_owned(),
            second_moments: self.parameters(|parameters| &parameters.second)?.into_owned(),
            window: self.window()?,
            steps_since_fired: self.steps_since_fired()?.into_owned(),
            threshold: self.threshold,
            path_choice: None,
        })
    }

    /// Continues from a state of all features.
    ///
    /// # Errors
    /// A state of other shapes: nothing has changed then.
    pub fn restore(&mut self, state: State) -> Result<(), StepError> {
        state.check(&self.spec)?;
        (self.threshold, self.steps) = (state.threshold, state.step);
        if let ([panel], 1) = (&mut self.panels[..], self.spec.panels) {
            let mut state = state;
            let parameters = TrainedParameters {
                weights: std::mem::take(&mut state.weights),
                first: std::mem::take(&mut state.first_moments),
                second: std::mem::take(&mut state.second_moments),
            };
            panel.restore_parameters(parameters, &state);
            return Ok(());
        }
        self.panels.iter_mut().for_each(|panel| panel.restore(&state));
        Ok(())
    }

    /// The numbers of the panels that this rank owns.
    pub fn own_panels(&self) -> Range<usize> {
        self.share.own()
    }

    /// The features of panel `number`, one of the own ones, and their weights. b_dec is in each, W_skip in the first that the rank has.
    /// Nothing is exchanged.
    ///
    /// # Panics
    /// If another rank owns it.
    pub fn panel_weights(&self, number: usize) -> (Range<usize>, &Parameters) {
        let own = self.share.own();
        assert!(own.contains(&number), "panel {number}, and the own ones are {own:?}");
        let panel = &self.panels[number - own.start];
        (panel.features.clone(), &panel.parameters.weights)
    }

    /// b_dec, and W_skip if there is one.
    pub fn shared_weights(&self) -> (&Array1<f32>, Option<&Array2<f32>>) {
        let weights = &self.panels[0].parameters.weights;
        (&weights.decoder_bias, weights.skip.as_ref())
    }

    /// Lets features start anew. All ranks are given all of `new`.
    ///
    /// # Panics
    /// If weights have another width.
    pub fn replace(&mut self, new: &[NewFeature]) {
        self.panels.iter_mut().for_each(|panel| panel.replace(new));
    }

    /// The norm of each feature's column of W_enc, [F].
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn encoder_norms(&self) -> Result<Vec<f64>, StepError> {
        let norms = self.panels.iter().flat_map(|panel| row_norms(&panel.parameters.weights.encoder));
        Ok(self.of_all_features(norms.collect(), 1)?)
    }

    /// The norm of each decoder row, [F].
    ///
    /// # Errors
    /// Ranks that are lost.
    pub fn decoder_norms(&self) -> Result<Vec<f64>, StepError> {
        let norms = self.panels.iter().flat_map(|panel| row_norms(&panel.parameters.weights.decoder));
        Ok(self.of_all_features(norms.collect(), 1)?)
    }

    /// This rank's share of the state. Nothing is exchanged.
    pub fn panel_states(&self) -> PanelStates {
        let panels = self.share.own().zip(&self.panels);
        let state =
            |(number, panel): (usize, &Panel)| (number, panel.state(self.steps, self.threshold, number == 0));
        PanelStates { panels: panels.map(state).collect(), window_totals: self.panels[0].window.totals() }
    }

    /// Continues from this rank's share of a state. W_skip is in the first of them, whichever panel that is.
    ///
    /// # Errors
    /// States of other panels than the own ones, of other shapes or of different steps: nothing has changed then.
    pub fn restore_panels(&mut self, states: PanelStates) -> Result<(), StepError> {
        let PanelStates { panels, window_totals } = states;
        let numbers: Vec<usize> = panels.iter().map(|(number, _)| *number).collect();
        if !numbers.iter().copied().eq(self.share.own()) {
            let own: Vec<usize> = self.share.own().collect();
            return Err(StepError::shape("the list of panels", &numbers, &own));
        }
        for (panel, (_, state)) in self.panels.iter().zip(&panels) {
            state.check(&panel.spec)?;
            if state.window.nrows() != window_totals.len() {
                return Err(StepError::shape("window", &[state.window.nrows()], &[window_totals.len()]));
            }
        }
        let (steps, threshold) = (panels[0].1.step, panels[0].1.threshold);
        for (panel, (_, state)) in self.panels.iter_mut().zip(panels) {
            panel.restore_alone(state, &window_totals);
        }
        (self.threshold, self.steps) = (threshold, steps);
        Ok(())
    }

    /// Numbers of all features from those of the own ones, `line` for each.
    fn of_all_features<T: Pod>(&self, own: Vec<T>, line: usize) -> Result<Vec<T>, ExchangeError> {
        let ranks: Vec<Range<usize>> = self.share.features_of_ranks();
        self.peers.all_features(own, &ranks, line)
    }

    /// A vector of all features from the panels' own.
    fn vector<T: Pod>(&self, of: impl Fn(&Panel) -> &Array1<T>) -> Result<Cow<'_, Array1<T>>, StepError> {
        if let ([panel], false) = (&self.panels[..], self.peers.are_several()) {
            return Ok(Cow::Borrowed(of(panel)));
        }
        let own = self.panels.iter().flat_map(|panel| of(panel).iter().copied()).collect();
        Ok(Cow::Owned(self.of_all_features(own, 1)?.into()))
    }

    /// The tensors of all features from the panels' own.
    fn parameters(
        &self,
        of: impl Fn(&TrainedParameters) -> &Parameters,
    ) -> Result<Cow<'_, Parameters>, StepError> {
        let first = of(&self.panels[0].parameters);
        if let ([_], false) = (&self.panels[..], self.peers.are_several()) {
            return Ok(Cow::Borrowed(first));
        }
        let StepSpec { width, features, .. } = self.spec;
        let tensor = |line: usize, numbers: &dyn Fn(&Parameters) -> &[f32]| {
            let own = self.panels.iter().flat_map(|panel| numbers(of(&panel.parameters))).copied().collect();
            self.of_all_features(own, line)
        };
        let matrix = |numbers: &dyn Fn(&Parameters) -> &[f32]| {
            let numbers = tensor(width, numbers)?;
            Ok::<_, ExchangeError>(
                Array2::from_shape_vec((features, width), numbers).expect("a row for each feature"),
            )
        };
        let threshold = |of: &Parameters| -> bool { of.threshold.is_some() };
        Ok(Cow::Owned(Parameters {
            encoder: matrix(&|of| numbers(&of.encoder))?,
            encoder_bias: tensor(1, &|of| numbers(&of.encoder_bias))?.into(),
            decoder: matrix(&|of| numbers(&of.decoder))?,
            decoder_bias: first.decoder_bias.clone(),
            threshold: match threshold(first) {
                true => Some(tensor(1, &|of| of.threshold.as_ref().map_or(&[], numbers))?.into()),
                false => None,
            },
            skip: first.skip.clone(),
        }))
    }

    /// The frequency windows' counts of all features, [batches,F].
    fn window(&self) -> Result<Array2<u32>, StepError> {
        let counts: Vec<Array2<u32>> = self.panels.iter().map(|panel| panel.window.counts()).collect();
        if let ([counts], false) = (&counts[..], self.peers.are_several()) {
            return Ok(counts.clone());
        }
        let batches = counts[0].nrows();
        // Feature by feature, as they lie one after another.
        let own = counts.iter().flat_map(|counts| counts.t().iter().copied().collect::<Vec<_>>()).collect();
        let all = self.of_all_features(own, batches)?;
        let by_feature =
            Array2::from_shape_vec((self.spec.features, batches), all).expect("a count of each batch");
        Ok(by_feature.t().as_standard_layout().into_owned())
    }
}

/// left + right; the memory of the right one is kept.
fn add_up(mut left: Vec<f32>, right: Vec<f32>, memory: &mut Vec<Vec<f32>>) -> Vec<f32> {
    add(&mut left, &right);
    memory.push(right);
    left
}
