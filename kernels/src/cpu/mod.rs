//! The float32 step on CPU threads: the same pieces as on the GPU, under the same names.
//!
//! ```text
//! step      the pieces in their order, and what lies between steps
//! panel     neighbouring features and all that belongs to them; forward, reconstruct: their part of a forward pass
//! finish    what is known of the rows once the panels' sums have met; peers: how they meet among ranks
//! rows      x̄, ‖x_i‖, ‖x_i − x̄‖; the encoder's input
//! encode    z = X·W_enc + b_enc, only the pairs above 0 (or all, when they are many)
//! screen    an integer product that rules most pairs out beforehand
//! select    which of them are active: largest, the k largest; among_panels, those of several panels; jump, those above a trained
//!           threshold
//! sparsity  penalties and their derivatives; frequency: the running frequency s_j
//! decode    x̂; then losses, g = dL/dx̂
//! dead      a loss over features that have stopped firing
//! backward  gradients of one feature's weights        \  one visit of each weight row,
//! update    projection, Adam, decoder norm            /  driven by train
//! dense     decode and backward with dense products; products: how those are formed
//! ```
//!
//! All functions run on the current rayon thread pool. None of their results depends on the number of its threads: every
//! sum is formed over blocks of a fixed size, in a fixed order.

mod blocks;
pub mod ceiling;
pub mod dead;
pub mod decode;
pub mod dense;
pub mod encode;
pub mod frequency;
pub mod isa;
pub mod jump;
pub mod largest;
pub mod options;
pub mod pairs;
pub mod products;
pub mod rows;
pub mod screen;
pub mod select;
pub mod sparsity;
pub mod step;
pub mod train;
pub mod update;
pub mod vector;

mod among_panels;
mod backward;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod cache;
mod finish;
mod forward;
mod frequent;
mod groups;
mod operands;
mod panel;
pub(crate) mod peers;
mod reconstruct;
mod tile;
mod transpose;

pub use blocks::{TrainedParameters, Waiting};
pub use isa::Isa;
