//! Where there are no matrix units, or no code for them: nothing here is ever called but [`MatrixUnits::get`].

use std::ops::{Deref, DerefMut};

use crate::matrix::Matrix;
use crate::packed::{Line, Parts};
use crate::sums::Sums;

/// That this process may use the matrix units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixUnits(());

/// That this thread's tiles have their shape.
#[derive(Debug)]
pub struct Tiles(());

impl MatrixUnits {
    /// None: there is no code for the matrix units of this target, if it has any.
    pub fn get() -> Option<MatrixUnits> {
        None
    }

    /// Gives the current thread tiles.
    pub fn tiles(self) -> Tiles {
        none(self)
    }
}

/// There is no value of [`MatrixUnits`] that could lead here.
fn none<T>(what: impl std::fmt::Debug) -> T {
    unreachable!("there are no matrix units for {what:?}")
}

pub(crate) fn pack_step(
    _: MatrixUnits,
    _: Parts,
    _: bool,
    source: Matrix<'_>,
    _: (usize, usize),
    _: &mut [Line],
) {
    none((source.numbers(), source.strides()))
}

/// # Safety
/// There are no tiles.
pub(crate) unsafe fn add_products(_: &Tiles, _: Parts, _: (&[Line], &[Line]), sums: Sums) {
    none((sums.from, sums.from_stride, sums.to, sums.to_stride))
}

/// Lines of a packed factor.
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    pub(crate) fn zeros(count: usize) -> Lines {
        Lines(vec![Line([0; 32]); count])
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.0
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        &mut self.0
    }
}
