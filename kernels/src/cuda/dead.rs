//! A loss over features that have stopped firing: its pairs and its gradient, which the backward pass takes for a step's own.

use super::buffers::Arrivals;
use super::device::Device;
use super::launch::Slice;
use super::launch::dead::{
    DeadKind, DeadPairs, DecodeDead, EncodeDead, Errors, ListDead, ResidualSpread, SelectDead,
};
use super::panel::Panel;
use crate::dead::{DeadLoss, DeadLossKind};
use crate::error::DeviceError;

/// Why a buffer is there.
const PRESENT: &str = "it is there where dead features have a loss";

/// The number of a loss that is in the plan.
fn kind_of(loss: DeadLoss) -> Option<DeadKind> {
    match loss.kind {
        DeadLossKind::AuxK { .. } => Some(DeadKind::AuxK),
        DeadLossKind::AuxKSum { .. } => Some(DeadKind::AuxKSum),
        DeadLossKind::Ghost | DeadLossKind::PreActivation { .. } => None,
    }
}

impl<D: Device> Panel<D> {
    /// Adds the loss over dead features, if there is one: its term to the report, its pairs to the lists by row, h below g.
    pub(crate) fn add_dead_loss(&self, device: &mut D, batch: &D::Buffer) -> Result<(), DeviceError> {
        let Some((loss, place)) = self.spec.dead.zip(self.plan.dead) else { return Ok(()) };
        let Some(dead_kind) = kind_of(loss) else { return Ok(()) };
        self.list_dead(device, loss, dead_kind, place)?;
        if dead_kind == DeadKind::AuxK {
            self.measure_residual(device)?;
        }
        self.select_dead(device, batch, dead_kind, place)?;
        self.decode_dead(device, place)
    }

    fn list_dead(
        &self,
        device: &mut D,
        loss: DeadLoss,
        dead_kind: DeadKind,
        place: DeadPairs,
    ) -> Result<(), DeviceError> {
        let b = &self.buffers;
        let list = ListDead {
            steps_since_fired: &b.steps_since_fired,
            counts: &b.counts,
            dead_features: b.dead_features.as_ref().expect(PRESENT),
            dead: b.dead.as_ref().expect(PRESENT),
            after: loss.after_steps,
            dead_kind,
            k: place.asked,
            features: self.plan.features,
            rows: self.plan.rows,
            report: &b.report,
        };
        list.launch(device)
    }

    /// The step's errors.
    fn errors(&self) -> Errors<'_, D::Buffer> {
        let (plan, b) = (&self.plan, &self.buffers);
        Errors {
            g: self.whole_gradient(),
            weight: self.spec.prefixes.weight() as f32,
            squared: &b.squared,
            centered: &b.centered,
            mse: self.spec.loss.mse,
            rows: plan.rows,
            width: plan.width,
        }
    }

    fn measure_residual(&self, device: &mut D) -> Result<(), DeviceError> {
        let b = &self.buffers;
        let spread = ResidualSpread {
            errors: self.errors(),
            column_parts: &b.column_parts,
            mean: b.residual_mean.as_ref().expect(PRESENT),
            columns_arrived: b.arrivals(Arrivals::Columns),
            partial: b.spread_parts.as_ref().expect(PRESENT),
            arrived: b.arrivals(Arrivals::Dead),
            dead: b.dead.as_ref().expect(PRESENT),
            report: &b.report,
        };
        spread.launch(device)
    }

    fn select_dead(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        dead_kind: DeadKind,
        place: DeadPairs,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (features, rows, report) = (plan.features, plan.rows, &b.report);
        let dead = b.dead.as_ref().expect(PRESENT);
        let dead_features = b.dead_features.as_ref().expect(PRESENT);
        // The selection is through with them.
        let z = &self.dense_buffers().activations;
        let encode = EncodeDead {
            encoder: self.weights_from(0),
            encoder_bias: self.weights_from(plan.encoder_bias_at()),
            x: self.encoder_input(batch),
            dead_features,
            dead,
            z,
            features,
            rows,
            stride: plan.stride,
            report,
        };
        encode.launch(device)?;
        let select = SelectDead {
            z,
            rank_norm: self.rank_norms(),
            dead_features,
            dead,
            mask: &b.mask,
            dead_mask: b.dead_mask.as_ref().expect(PRESENT),
            starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            dead_kind,
            place,
            features,
            rows,
            report,
        };
        select.launch(device)
    }

    fn decode_dead(&self, device: &mut D, place: DeadPairs) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let decode = DecodeDead {
            errors: self.errors(),
            h: Slice::from_number(self.g(), plan.groups * plan.row_distance() * plan.stride),
            decoder: self.weights_from(plan.decoder_at()),
            starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            dead: b.dead.as_ref().expect(PRESENT),
            losses: b.dead_losses.as_ref().expect(PRESENT),
            arrived: b.arrivals(Arrivals::Dead),
            place,
            features: plan.features,
            report: &b.report,
        };
        decode.launch(device)
    }
}
