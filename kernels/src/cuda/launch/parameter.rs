//! What a kernel's parameters are given, and what they need.

use crate::cuda::device::{Argument, Device};
use crate::error::DeviceError;

/// A part of a buffer: from a byte on.
#[derive(Debug)]
pub struct Slice<'a, B> {
    /// The buffer.
    pub buffer: &'a B,
    /// The part's first byte in the buffer.
    pub offset: usize,
}

impl<B> Clone for Slice<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Slice<'_, B> {}

impl<'a, B> Slice<'a, B> {
    /// From number `number` of 32 bits on.
    pub(crate) fn from_number(buffer: &'a B, number: usize) -> Slice<'a, B> {
        Slice { buffer, offset: 4 * number }
    }
}

impl<'a, B> From<&'a B> for Slice<'a, B> {
    /// The whole buffer.
    fn from(buffer: &'a B) -> Self {
        Slice { buffer, offset: 0 }
    }
}

/// A pointer parameter's argument: a buffer, a part of one, or null.
pub(super) struct Pointer<'a, B>(Option<Slice<'a, B>>);

impl<'a, B> From<&'a B> for Pointer<'a, B> {
    fn from(buffer: &'a B) -> Self {
        Pointer(Some(buffer.into()))
    }
}

impl<'a, B> From<Slice<'a, B>> for Pointer<'a, B> {
    fn from(slice: Slice<'a, B>) -> Self {
        Pointer(Some(slice))
    }
}

impl<'a, B> From<Option<&'a B>> for Pointer<'a, B> {
    fn from(buffer: Option<&'a B>) -> Self {
        Pointer(buffer.map(Slice::from))
    }
}

impl<'a, B> From<Option<Slice<'a, B>>> for Pointer<'a, B> {
    fn from(slice: Option<Slice<'a, B>>) -> Self {
        Pointer(slice)
    }
}

/// A parameter of a kernel: its name in the `.cu` file, and its argument.
pub(super) struct Parameter<'a, B> {
    pub(super) name: &'static str,
    given: Given<'a, B>,
}

enum Given<'a, B> {
    /// At least so many bytes of a buffer, unless it is null.
    Bytes(Pointer<'a, B>, usize),
    U32(usize),
    U64(usize),
    F32(f32),
}

impl<'a, B> Parameter<'a, B> {
    /// The argument, if it is what `kernel` needs.
    pub(super) fn checked<D: Device<Buffer = B>>(
        &self,
        device: &D,
        kernel: &'static str,
    ) -> Result<Argument<'a, B>, DeviceError> {
        match self.given {
            Given::Bytes(Pointer(None), _) => Ok(Argument::Null),
            Given::Bytes(Pointer(Some(Slice { buffer, offset })), needed) => {
                let length = device.length(buffer);
                let found = length.saturating_sub(offset);
                if offset > length || found < needed {
                    return Err(DeviceError::ShortBuffer { kernel, argument: self.name, found, needed });
                }
                Ok(Argument::Buffer(buffer, offset))
            }
            Given::U32(number) => match u32::try_from(number) {
                Ok(number) => Ok(Argument::U32(number)),
                Err(_) => Err(DeviceError::Failed {
                    operation: format!("launching {kernel}"),
                    reason: format!("`{}` is {number}, which 32 bits cannot hold", self.name),
                }),
            },
            Given::U64(number) => Ok(Argument::U64(number as u64)),
            Given::F32(number) => Ok(Argument::F32(number)),
        }
    }
}

/// At least `bytes` bytes.
pub(super) fn bytes<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    bytes: usize,
) -> Parameter<'a, B> {
    Parameter { name, given: Given::Bytes(pointer.into(), bytes) }
}

/// At least `count` numbers of float32.
pub(super) fn floats<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    count: usize,
) -> Parameter<'a, B> {
    bytes(name, pointer, 4 * count)
}

/// At least `count` numbers of float64.
pub(super) fn doubles<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    count: usize,
) -> Parameter<'a, B> {
    bytes(name, pointer, 8 * count)
}

/// At least `count` numbers of bfloat16.
pub(super) fn halves<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    count: usize,
) -> Parameter<'a, B> {
    bytes(name, pointer, 2 * count)
}

/// At least `count` unsigned integers of 32 bits.
pub(super) fn u32s<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    count: usize,
) -> Parameter<'a, B> {
    bytes(name, pointer, 4 * count)
}

/// At least `count` unsigned integers of 64 bits.
pub(super) fn u64s<'a, B>(
    name: &'static str,
    pointer: impl Into<Pointer<'a, B>>,
    count: usize,
) -> Parameter<'a, B> {
    bytes(name, pointer, 8 * count)
}

/// A number of 32 bits.
pub(super) fn number<'a, B>(name: &'static str, number: usize) -> Parameter<'a, B> {
    Parameter { name, given: Given::U32(number) }
}

/// A number of float32.
pub(super) fn real<'a, B>(name: &'static str, number: f32) -> Parameter<'a, B> {
    Parameter { name, given: Given::F32(number) }
}

/// A number of 32 bits that is 0 or 1.
pub(super) fn flag<'a, B>(name: &'static str, set: bool) -> Parameter<'a, B> {
    number(name, usize::from(set))
}

/// The number of one of several kinds.
pub(super) fn kind<'a, B>(name: &'static str, kind: u32) -> Parameter<'a, B> {
    number(name, kind as usize)
}

/// A number of 64 bits.
pub(super) fn long_number<'a, B>(name: &'static str, number: usize) -> Parameter<'a, B> {
    Parameter { name, given: Given::U64(number) }
}
