//! Why ranks could not be connected.

use thiserror::Error;

use crate::cuda::cuda_device::unavailable::Unavailable;

/// Why ranks could not be connected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NcclError {
    /// There is no library.
    #[error(
        "ranks with a GPU each need NCCL (libnccl.so.2), which was not found ({tried}): install it (pip install nvidia-nccl-cu13, or \
         nvidia-nccl-cu12 for older drivers) and add its lib folder to LD_LIBRARY_PATH"
    )]
    NotFound {
        /// What was tried.
        tried: String,
    },
    /// It is too old.
    #[error("{file} is NCCL {found}, and at least {oldest} is needed: install a newer one")]
    TooOld {
        /// The library's file.
        file: String,
        /// Its version.
        found: String,
        /// The oldest that would do.
        oldest: String,
    },
    /// A rank would share its device with another one.
    #[error(
        "ranks {first} and {second} would both use {device}, and NCCL takes a device for each rank: start as many ranks on a machine as \
         it has GPUs"
    )]
    SameDevice {
        /// A rank.
        first: usize,
        /// Another one.
        second: usize,
        /// The device and where it is.
        device: String,
    },
    /// There are fewer devices than ranks on this machine.
    #[error(
        "this is rank {local} of those on its machine, counted from 0, and there are {devices} GPUs: start as many ranks on a machine \
         as it has GPUs"
    )]
    TooFewDevices {
        /// The rank's number on its machine.
        local: usize,
        /// How many devices there are.
        devices: usize,
    },
    /// NCCL connected others than the launcher started.
    #[error("this is rank {rank} of {ranks}, but NCCL says that it is rank {} of {}", found.0, found.1)]
    OtherRanks {
        /// The rank's number.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
        /// What NCCL says.
        found: (usize, usize),
    },
    /// Nothing tells the ranks where to meet.
    #[error("{0}")]
    NoMeeting(String),
    /// NCCL did not connect them.
    #[error("NCCL cannot connect rank {rank} of {ranks} with the others: {reason}")]
    Refused {
        /// The rank's number.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
        /// Why.
        reason: String,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] Unavailable),
}
