//! What a run's loss is called.

use super::Settings;
use crate::engine::{Activation, Penalty};

impl Settings {
    /// The penalty's name on the command line.
    pub(crate) fn penalty_name(&self) -> &'static str {
        match self.step.loss.penalty {
            Penalty::None => "none",
            Penalty::ApproxL0 { .. } => "approx-l0",
            Penalty::L1 => "l1",
            Penalty::Tanh { .. } => "tanh",
            Penalty::Log { .. } => "log",
            Penalty::Step => "step",
            Penalty::Quadratic { .. } => "quadratic",
            Penalty::MeanQuadratic { .. } => "mean-quadratic",
        }
    }

    /// What makes the activations sparse: the penalty's name, or `topk-100`, or both.
    pub(crate) fn loss_name(&self) -> String {
        let selection = match self.step.activation {
            Activation::Relu => None,
            Activation::TopK { k } => Some(format!("topk-{k}")),
            Activation::BatchTopK { k, .. } => Some(format!("batch-topk-{k}")),
            Activation::JumpRelu { .. } => Some("jump-relu".to_owned()),
        };
        let penalty = Some(self.penalty_name()).filter(|name| *name != "none" || selection.is_none());
        let prefixes = (!self.step.prefixes.is_empty()).then_some("matryoshka");
        let names = [prefixes, selection.as_deref(), penalty].into_iter().flatten();
        names.collect::<Vec<_>>().join("-")
    }
}
