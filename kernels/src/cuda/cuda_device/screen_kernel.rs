//! Which kernel finds the candidates.

use super::unavailable::Unavailable;
use crate::cuda::device::Properties;

/// The kernels that find the candidates. They set the same bits, up to the order of float32 sums; a device takes the fastest
/// that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreenKernel {
    /// `screen.cu`, without tensor cores: the definition, and slow.
    Plain,
    /// `encode_mma.cu`, for compute capability 8.0 and up.
    Mma,
    /// `encode_wgmma.cu`, for compute capability 9.0 alone.
    Wgmma,
}

impl ScreenKernel {
    pub(super) const ALL: [ScreenKernel; 3] = [ScreenKernel::Plain, ScreenKernel::Mma, ScreenKernel::Wgmma];

    /// As it is called in the environment.
    pub(super) fn name(self) -> &'static str {
        match self {
            ScreenKernel::Plain => "plain",
            ScreenKernel::Mma => "mma",
            ScreenKernel::Wgmma => "wgmma",
        }
    }

    /// The one asked for, or the fastest.
    pub(super) fn choose(
        asked: Option<ScreenKernel>,
        properties: &Properties,
    ) -> Result<ScreenKernel, Unavailable> {
        let capability = properties.compute_capability;
        match asked {
            Some(ScreenKernel::Wgmma) if capability != (9, 0) => {
                Err(Unavailable::NoSuchScreen { name: properties.name.clone(), capability })
            }
            Some(kernel) => Ok(kernel),
            None if capability == (9, 0) => Ok(ScreenKernel::Wgmma),
            None => Ok(ScreenKernel::Mma),
        }
    }
}
