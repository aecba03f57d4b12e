//! The steps that PyTorch took, which `golden/make.py` wrote down.

use std::collections::BTreeMap;

use kernels::spec::{Schedule, StepSpec};
use safetensors::{Dtype, SafeTensors};

/// 50 steps of every configuration (each penalty, MSE, frequency term and decoder norm), all from one autoencoder and with the
/// same batches, in float64.
#[derive(Debug)]
pub struct Golden {
    /// The configurations by name.
    pub cases: BTreeMap<String, GoldenCase>,
    tensors: BTreeMap<String, Vec<f64>>,
}

/// A configuration and the schedule of its steps.
#[derive(Debug, serde::Deserialize)]
pub struct GoldenCase {
    /// What a step computes.
    pub spec: StepSpec,
    /// Learning rate, scale of the coefficients and scale of ε, step by step.
    schedule: Vec<(f64, f64, f64)>,
}

impl GoldenCase {
    /// The schedule, step by step.
    pub fn schedule(&self) -> impl Iterator<Item = Schedule> {
        let of = |&(lr, coefficient_scale, epsilon_scale)| Schedule { lr, coefficient_scale, epsilon_scale };
        self.schedule.iter().map(of)
    }
}

impl Golden {
    /// Reads the files, which are part of the program.
    pub fn read() -> Golden {
        let cases = include_bytes!("../golden/steps.json");
        let file = SafeTensors::deserialize(include_bytes!("../golden/steps.safetensors")).unwrap();
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), as_f64(view.dtype(), view.data())));
        Golden { cases: serde_json::from_slice(cases).unwrap(), tensors: tensors.collect() }
    }

    /// The tensor `name`, row by row: `batches` [50,B,d]; `initial/KEY`; `CASE/loss` [50]; `CASE/gradients/KEY`, of the first
    /// step; `CASE/weights/KEY`, after the last. KEY is W_enc [d,F], b_enc, W_dec [F,d] or b_dec.
    ///
    /// # Panics
    /// If there is none.
    pub fn tensor(&self, name: &str) -> &[f64] {
        self.tensors.get(name).unwrap_or_else(|| panic!("there is no tensor {name}"))
    }
}

fn as_f64(element: Dtype, data: &[u8]) -> Vec<f64> {
    match element {
        Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        other => panic!("a tensor of {other:?}"),
    }
}
