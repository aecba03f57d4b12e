//! Operators of our own in ONNX Runtime's graph: products with a model's weights on the processor's matrix units, and what
//! lies between them.
//!
//! ONNX Runtime computes float32 products with vector instructions. Processors with AMX multiply bfloat16 numbers an order of
//! magnitude faster, so each float32 number is taken as the sum of two of them: `Parts::Three`. Weights are split when the
//! session is made, rows as they come. With products that fast, attention and the functions between products would take
//! half of the time, so those are here too, in float32.

mod attention;
mod causal;
mod elementwise;
mod product;
mod weights;

use matrix_units::MatrixUnits;
use ort::operator::OperatorDomain;

use crate::onnx::DataType;
use attention::CausalAttention;
use product::Product;

pub(crate) use attention::{CAUSAL_ATTENTION, Place};
pub(crate) use elementwise::Function;
pub(crate) use product::{Form, MOST_WEIGHTS, name_attribute, operator};
pub(crate) use weights::Packed;

/// The domain of the operators.
pub(crate) const DOMAIN: &str = "language-model";

/// The operators, for a session that computes with this many threads; 0 is one per core. None where there are no matrix units.
/// Sessions of one model share `packed`.
pub(crate) fn operators(threads: usize, packed: &Packed) -> ort::Result<Option<OperatorDomain>> {
    let Some(units) = MatrixUnits::get() else { return Ok(None) };
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let product = |weights| Product { units, threads, weights, packed: packed.clone() };
    let domain = OperatorDomain::new(DOMAIN)?
        .add(product(DataType::Float))?
        .add(product(DataType::Float16))?
        .add(product(DataType::Bfloat16))?
        .add(CausalAttention)?;
    Ok(Some(domain))
}
