//! Why there is no GPU to train on.

use std::path::PathBuf;

use thiserror::Error;

use crate::cuda::libraries::ToolkitLibrary;
use crate::error::DeviceError;

/// What is missing for training on a GPU, and where it was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// The driver's library cannot be loaded.
    #[error(
        "the NVIDIA driver's library (libcuda.so.1) was not found by the dynamic linker: this machine has no NVIDIA \
         driver, or LD_LIBRARY_PATH lacks its folder"
    )]
    NoDriver,
    /// The driver is there but no device.
    #[error("the NVIDIA driver is there, but it reports no usable device ({0})")]
    NoDevice(String),
    /// The driver is too old.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, and at least CUDA {}.{} is needed{why}: update the driver",
        found.0, found.1, needed.0, needed.1
    )]
    OldDriver {
        /// The CUDA version that the driver supports.
        found: (i32, i32),
        /// The lowest one that would do.
        needed: (i32, i32),
        /// Why that one, or nothing.
        why: &'static str,
    },
    /// The device is too old.
    #[error("{name} has compute capability {}.{}; 8.0 (Ampere) or newer is needed", capability.0, capability.1)]
    OldDevice {
        /// The device's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// A library of the toolkit was not found.
    #[error(
        "{library} was not found by the dynamic linker nor in {}: install a CUDA toolkit or the wheels \
         nvidia-cuda-nvrtc and nvidia-cublas, and name the folder above their lib folder in CUDA_PATH",
        searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoLibrary {
        /// Which.
        library: ToolkitLibrary,
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },
    /// A variable of the environment has a value that it does not take.
    #[error("the environment variable {variable} is {value:?}, but it takes {takes}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The values that it may have.
        takes: &'static str,
    },
    /// The device cannot run the kernel that was asked for.
    #[error(
        "the screen wgmma was asked for, which only compute capability 9.0 has, but {name} has {}.{}: ask for mma, or \
         unset SAE_TRAINER_CUDA_SCREEN",
        capability.0, capability.1
    )]
    NoSuchScreen {
        /// The device's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The device refused to be set up.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Unavailable {
    /// Whether the user asked for something that cannot be, rather than that something is missing.
    pub fn is_a_wrong_setting(&self) -> bool {
        matches!(self, Unavailable::Setting { .. } | Unavailable::NoSuchScreen { .. })
    }
}
