//! Where there are no matrix units: nothing here can be made.

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
