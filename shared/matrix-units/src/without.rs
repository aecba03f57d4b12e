//! Where there are no matrix units: nothing here can be made.

use crate::matrix::Matrix;
use crate::packed::{Line, Parts, Side};

/// That this process may use the matrix units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixUnits {}

/// That this thread's tiles have their shape.
#[derive(Debug)]
pub enum Tiles {}

impl MatrixUnits {
    /// None: there is no code for the matrix units of this target, if it has any.
    pub fn get() -> Option<MatrixUnits> {
        None
    }

    /// Gives the current thread tiles.
    pub fn tiles(self) -> Tiles {
        match self {}
    }
}

pub(crate) struct Sums {
    pub(crate) from: *const f32,
    pub(crate) from_stride: usize,
    pub(crate) to: *mut f32,
    pub(crate) to_stride: usize,
}

pub(crate) fn pack_step<S: Side>(
    units: MatrixUnits,
    _: Parts,
    _: Matrix<'_>,
    _: (usize, usize),
    _: &mut [Line],
) {
    match units {}
}

/// # Safety
/// There are no tiles.
pub(crate) unsafe fn add_products(tiles: &Tiles, _: Parts, _: (&[Line], &[Line]), _: Sums) {
    match *tiles {}
}
