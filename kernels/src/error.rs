//! Why a step or an evaluation did not happen.

use thiserror::Error;

use crate::loss::Mse;
use crate::spec::SpecError;

/// Why a step, an evaluation or a restore did not happen. The weights and the state are as before, except after
/// [`StepError::Diverged`], [`StepError::Device`] and [`StepError::Exchange`].
#[derive(Debug, Clone, PartialEq, Error)]
pub enum StepError {
    /// The step's description is out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A size is beyond what the CUDA kernels are written for.
    #[error("{name} is {value}, but the CUDA kernels take at most {most}")]
    TooLarge {
        /// Which size.
        name: &'static str,
        /// What it is.
        value: usize,
        /// The largest one possible.
        most: usize,
    },
    /// The CUDA kernels do not compute this.
    #[error("the CUDA kernels do not compute {what} yet: train with --device cpu")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The features cannot be divided into panels.
    #[error(
        "features cannot be divided into panels with {what} yet: {instead}, or train with --panels 1 in one process"
    )]
    Undivided {
        /// What was asked for.
        what: &'static str,
        /// What can be asked for in its place.
        instead: &'static str,
    },
    /// Ranks cannot own as many panels each.
    #[error(
        "{ranks} ranks cannot share {panels} panels of features: the number of ranks has to be a power of two that divides that of panels"
    )]
    Ranks {
        /// How many ranks there are.
        ranks: usize,
        /// How many panels.
        panels: usize,
    },
    /// Something needs all features in one place.
    #[error("{what} needs all features in one process, and they are divided over several")]
    Divided {
        /// What was asked for.
        what: &'static str,
    },
    /// The ranks that share the features lost each other. The weights may have changed.
    #[error(transparent)]
    Exchange(#[from] ranks::ExchangeError),
    /// An array has another shape than the step's sizes ask for.
    #[error("{array} is {found}, but {expected} was expected")]
    Shape {
        /// Which array.
        array: &'static str,
        /// Its shape.
        found: String,
        /// The shape asked for.
        expected: String,
    },
    /// A state's θ is NaN or infinite.
    #[error("the state's threshold is {threshold}, which no run can continue from")]
    NonFiniteThreshold {
        /// θ.
        threshold: f64,
    },
    /// A row of the batch holds NaN or infinity.
    #[error("row {row} of the batch holds NaN or an infinite value; the weights are unchanged")]
    NonFiniteRow {
        /// The row's number in the batch.
        row: usize,
    },
    /// The MSE divides by a norm that is 0.
    #[error(
        "row {row} of the batch {}, and the {mse:?} MSE divides by that norm; the weights are unchanged (the `sum` MSE \
         has no such denominator)",
        zero_norm(*mse)
    )]
    ZeroNorm {
        /// The row's number in the batch.
        row: usize,
        /// The MSE.
        mse: Mse,
    },
    /// The loss is not finite though the batch is.
    #[error(
        "the loss of step {step} is {loss}; the weights are unchanged (try a lower learning rate or a \
         warm-up, starting from an earlier checkpoint)"
    )]
    NonFiniteLoss {
        /// The step that was not done.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The update overflowed though the loss was finite. The weights are no longer usable.
    #[error(
        "step {step} made a weight NaN or infinite though the loss was finite; go back to an earlier \
         checkpoint with a lower learning rate"
    )]
    Diverged {
        /// The step.
        step: u64,
    },
    /// The device failed, or has too little memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The worker threads could not be started.
    #[error("could not start {threads} worker threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}

impl StepError {
    /// [`StepError::Shape`] of an array that is to be row-major.
    pub fn shape(array: &'static str, found: &[usize], expected: &[usize]) -> StepError {
        StepError::Shape { array, found: format!("{found:?}"), expected: format!("{expected:?}") }
    }
}

/// Which norm is 0.
fn zero_norm(mse: Mse) -> &'static str {
    match mse {
        Mse::Centered => "equals the mean of the batch's rows",
        Mse::Sum | Mse::Uncentered => "is zero",
    }
}

/// An operation of a device that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// There is not enough memory.
    #[error(
        "the device has {free} bytes of memory free, but {wanted} are needed for {what}: lower the batch size, the \
         number of features or the number of autoencoders trained at once"
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        wanted: usize,
        /// How much there was.
        free: usize,
    },
    /// A buffer is too short for what a kernel is asked to do.
    #[error("{kernel} takes {needed} bytes as `{argument}`, but the buffer has {found} from there on")]
    ShortBuffer {
        /// The kernel.
        kernel: &'static str,
        /// The parameter's name in the kernel's file.
        argument: &'static str,
        /// The bytes from the argument's first one to the buffer's end.
        found: usize,
        /// The bytes that the kernel reads or writes.
        needed: usize,
    },
    /// The driver, the compiler or a library reported an error.
    #[error("{operation} failed: {reason}")]
    Failed {
        /// What was tried, with the name of the kernel or the library.
        operation: String,
        /// The error in the words of the one who reported it.
        reason: String,
    },
}
