//! What trains features that have stopped firing, by a loss of their own.

use serde::{Deserialize, Serialize};

use crate::activation::Activation;

/// A loss over dead features. Its gradient reaches their weights, and with a pre-bias b_dec through z.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DeadLoss {
    /// A feature that was not active in more than so many steps before this one is dead.
    pub after_steps: u64,
    /// The loss.
    pub kind: DeadLossKind,
}

/// The losses over dead features. r = x − x̂ is the row's error, not differentiated; e_i is what dead features make of row i.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadLossKind {
    /// AuxK (L. Gao et al., "Scaling and evaluating sparse autoencoders", 2024): e = Σ_j a_j W_dec_j over the k_aux dead
    /// features with the largest a = max(z, 0), features that are active in this very batch left out, and
    /// coefficient · Σ_i ‖e_i − r_i‖² / Σ_i ‖r_i − r̄‖², r̄ the mean of the batch's r, 0 where that is 0.
    AuxK {
        /// k_aux; a batch's number of dead features if that is smaller.
        k: usize,
        /// The coefficient.
        coefficient: f64,
    },
    /// AuxK as SAELens defines it: the k_aux dead features with the largest z, negative ones included, and
    /// coefficient · min(dead/k_aux, 1) · (1/B) Σ_i ‖e_i − r_i‖².
    AuxKSum {
        /// k_aux; a batch's number of dead features if that is smaller.
        k: usize,
        /// The coefficient.
        coefficient: f64,
    },
    /// Ghost gradients (A. Jermyn and A. Templeton, "Circuits Updates", January 2024), as in the trainers of SAELens' first
    /// versions: e = Σ_j exp(z_j) W_dec_j over all dead features, scaled to half of ‖r_i‖; q = (e − r)² / ‖r_i − r̄‖ of each row
    /// and component; q·t/(q + 1e-6) summed, t being what the component contributes to the reconstruction term. No scale is
    /// differentiated.
    Ghost,
    /// coefficient · (1/B) Σ_i Σ_j max(θ_j − z_ij, 0) · ‖W_dec_j‖ (Anthropic, "Circuits Updates", January 2025), over dead
    /// features as in SAELens.
    PreActivation {
        /// The coefficient.
        coefficient: f64,
    },
}

impl DeadLossKind {
    /// Its coefficient; 0 for ghost gradients, whose scale is another.
    pub(crate) fn coefficient(&self) -> f64 {
        match *self {
            DeadLossKind::AuxK { coefficient, .. }
            | DeadLossKind::AuxKSum { coefficient, .. }
            | DeadLossKind::PreActivation { coefficient } => coefficient,
            DeadLossKind::Ghost => 0.0,
        }
    }
}

impl DeadLoss {
    /// What is wrong with it beside such an activation: which value, and which rule it breaks.
    pub(crate) fn check(&self, activation: &Activation) -> Result<(), (&'static str, String, &'static str)> {
        let coefficient = self.kind.coefficient();
        if let DeadLossKind::AuxK { k: 0, .. } | DeadLossKind::AuxKSum { k: 0, .. } = self.kind {
            return Err(("aux_k", "0".into(), "it must be at least 1"));
        }
        if let DeadLossKind::PreActivation { .. } = self.kind
            && !activation.has_thresholds()
        {
            let rule = "only jump-relu has the thresholds that it brings pre-activations up to";
            return Err(("the loss over dead features", "pre-activation".into(), rule));
        }
        if !(coefficient.is_finite() && coefficient >= 0.0) {
            let rule = "it must be a number of at least 0";
            return Err(("the coefficient of the loss over dead features", coefficient.to_string(), rule));
        }
        Ok(())
    }

    /// Whether a feature counts as dead in a step: it was silent for `silent_steps` before, and `fires` in it.
    pub(crate) fn is_dead(&self, silent_steps: u64, fires: bool) -> bool {
        let fires = fires && matches!(self.kind, DeadLossKind::AuxK { .. });
        silent_steps > self.after_steps && !fires
    }
}
