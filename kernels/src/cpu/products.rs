//! Dense products: on matrix units where they may be used, otherwise matrixmultiply's in float32.
//!
//! A product's right factor is made ready once, by all threads, and multiplied by blocks of the left one, a task's each. The
//! blocks' sizes depend on nothing but the shapes, so that no sum depends on the number of threads.

use std::cell::RefCell;

use matrix_units::{Left, MatrixUnits, Out, Packed, Parts, Right, Side, Start, pack_and_multiply};
use rayon::prelude::*;

pub(crate) use matrix_units::Matrix;

use super::isa::Isa;

/// How dense products are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// Of float32 numbers.
    Float32,
    /// On matrix units, of numbers that are split into bfloat16 parts: within the errors that [`Parts`] states.
    Split(MatrixUnits, Parts),
}

impl Products {
    /// Those of an instruction set: split if it has matrix units.
    pub fn of(isa: Isa, parts: Parts) -> Products {
        isa.matrix_units().map_or(Products::Float32, |units| Products::Split(units, parts))
    }
}

/// The right factor of products, [depth, columns].
#[derive(Debug)]
pub(crate) enum Factor<'a> {
    Plain { matrix: Matrix<'a>, depth: usize, columns: usize },
    Packed(&'a Right),
}

/// Panels that a task packs.
const PANELS: usize = 4;

/// Packs `source`, [lanes, depth] for a left factor and [depth, lanes] for a right one, into `memory`.
pub(crate) fn pack<'a, S: Side + Send>(
    (units, parts): (MatrixUnits, Parts),
    source: Matrix<'_>,
    (lanes, depth): (usize, usize),
    memory: &'a mut Option<Packed<S>>,
) -> &'a Packed<S> {
    let packed = memory.get_or_insert_with(|| Packed::zeros(units, parts, 0, 0));
    packed.resize(parts, lanes, depth);
    let mut panels: Vec<_> = packed.split(PANELS).collect();
    panels.par_iter_mut().for_each(|panels| panels.pack(source));
    packed
}

thread_local! {
    /// Where each worker packs its blocks of left factors.
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
}

impl<'a> Factor<'a> {
    /// Makes `matrix` ready; what has to be packed lies in `memory`.
    pub(crate) fn new(
        products: Products,
        matrix: Matrix<'a>,
        (depth, columns): (usize, usize),
        memory: &'a mut Option<Right>,
    ) -> Factor<'a> {
        match products {
            Products::Float32 => Factor::Plain { matrix, depth, columns },
            Products::Split(units, parts) => {
                Factor::Packed(pack((units, parts), matrix, (columns, depth), memory))
            }
        }
    }

    /// out [rows, columns] = beta·out + left [rows, depth] · self, for a beta of 0 or 1.
    pub(crate) fn multiply(&self, beta: f32, left: Matrix<'_>, rows: usize, out: &mut [f32]) {
        match *self {
            Factor::Plain { matrix, depth, columns } => {
                multiply_onto(beta, left, matrix, (rows, depth, columns), out);
            }
            Factor::Packed(right) => {
                let start = if beta == 0.0 { Start::Zero } else { Start::Scaled(beta) };
                let mut space =
                    LEFT.take().unwrap_or_else(|| Left::zeros(right.units(), right.parts(), 0, 0));
                let out = Out::new(out, rows, right.lanes());
                pack_and_multiply(left, rows, &mut space, right, 0..right.panels(), start, out);
                LEFT.set(Some(space));
            }
        }
    }
}

/// out [m,n] = a [m,k] · b [k,n], in float32.
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, sizes: (usize, usize, usize), out: &mut [f32]) {
    multiply_onto(0.0, a, b, sizes, out);
}

/// out [m,n] = beta·out + a [m,k] · b [k,n], in float32.
fn multiply_onto(beta: f32, a: Matrix<'_>, b: Matrix<'_>, (m, k, n): (usize, usize, usize), out: &mut [f32]) {
    a.assert_holds(m, k);
    b.assert_holds(k, n);
    assert_eq!(out.len(), m * n, "the result of a product has another size");
    let (a_strides, b_strides) = (a.strides(), b.strides());
    // SAFETY: all elements that the three strides reach lie within their slices, as just checked.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.numbers().as_ptr(),
            a_strides.0 as isize,
            a_strides.1 as isize,
            b.numbers().as_ptr(),
            b_strides.0 as isize,
            b_strides.1 as isize,
            beta,
            out.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}
