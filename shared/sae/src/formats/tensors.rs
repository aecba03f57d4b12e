//! The tensors of a file, safetensors or torch's, by name and as float32.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use safetensors::SafeTensors;

use super::numbers::Element;
use super::torch::StateDict;
use crate::{Error, Weights};

/// A file in memory.
#[derive(Debug)]
pub(super) struct Tensors<'a> {
    path: PathBuf,
    source: Source<'a>,
    /// What a safetensors file says of itself.
    pub(super) metadata: HashMap<String, String>,
}

#[derive(Debug)]
enum Source<'a> {
    Safetensors(SafeTensors<'a>),
    Torch(Box<StateDict<'a>>),
}

/// A matrix in a file, which may hold it turned round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrix {
    AsIs(&'static str),
    Transposed(&'static str),
}

/// What the tensors that every autoencoder has are called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// [d, F]
    pub(super) w_enc: Matrix,
    /// [F]
    pub(super) b_enc: &'static str,
    /// [F, d]
    pub(super) w_dec: Matrix,
    /// [d]
    pub(super) b_dec: &'static str,
}

impl<'a> Tensors<'a> {
    /// Those of the safetensors file `path`, which holds `bytes`.
    pub(super) fn safetensors(path: &Path, bytes: &'a [u8]) -> Result<Tensors<'a>, Error> {
        let error = |source| Error::Safetensors { path: path.into(), source };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(error)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let source = Source::Safetensors(SafeTensors::deserialize(bytes).map_err(error)?);
        Ok(Tensors { path: path.into(), source, metadata })
    }

    /// Those of torch's file `path`, which holds `bytes`.
    pub(super) fn torch(path: &Path, bytes: &'a [u8]) -> Result<Tensors<'a>, Error> {
        let parsed = StateDict::parse(bytes).map_err(|source| Error::Torch { path: path.into(), source })?;
        Ok(Tensors { path: path.into(), source: Source::Torch(Box::new(parsed)), metadata: HashMap::new() })
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.source {
            Source::Safetensors(file) => file.names().into_iter().map(String::from).collect(),
            Source::Torch(file) => file.names().map(String::from).collect(),
        };
        names.sort();
        names
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.source {
            Source::Safetensors(file) => file.tensor(name).ok().map(|view| view.shape().to_vec()),
            Source::Torch(file) => file.shape(name).map(<[usize]>::to_vec),
        }
    }

    /// How many numbers the vector `name` has; at least one.
    pub(super) fn length(&self, name: &'static str) -> Result<usize, Error> {
        match *self.shape(name).ok_or_else(|| self.missing(name))? {
            [length] if length > 0 => Ok(length),
            _ => {
                Err(self
                    .refused(format!("tensor `{name}` has shape {:?}, not that of a bias", self.shape(name))))
            }
        }
    }

    /// The vector `name` of `length` numbers.
    pub(super) fn vector(&mut self, name: &'static str, length: usize) -> Result<Array1<f32>, Error> {
        Ok(self.numbers(name, &[length])?.into())
    }

    /// A matrix [rows, columns].
    pub(super) fn matrix(
        &mut self,
        matrix: Matrix,
        rows: usize,
        columns: usize,
    ) -> Result<Array2<f32>, Error> {
        let in_memory = "as many numbers as the shape has";
        Ok(match matrix {
            Matrix::AsIs(name) => {
                Array2::from_shape_vec((rows, columns), self.numbers(name, &[rows, columns])?)
                    .expect(in_memory)
            }
            Matrix::Transposed(name) => {
                let turned = self.numbers(name, &[columns, rows])?;
                let turned = Array2::from_shape_vec((columns, rows), turned).expect(in_memory);
                turned.t().as_standard_layout().into_owned()
            }
        })
    }

    /// The single number `name`, of shape [] or [1].
    pub(super) fn scalar(&mut self, name: &'static str) -> Result<f32, Error> {
        let shape: &[usize] = if self.shape(name).is_some_and(|shape| shape == [1]) { &[1] } else { &[] };
        Ok(self.numbers(name, shape)?[0])
    }

    /// Encoder, decoder and their biases.
    pub(super) fn weights(&mut self, names: Names) -> Result<Weights, Error> {
        let (d, f) = (self.length(names.b_dec)?, self.length(names.b_enc)?);
        self.weights_of(names, d, f)
    }

    /// The same of a width and a number of features that are known.
    pub(super) fn weights_of(&mut self, names: Names, d: usize, f: usize) -> Result<Weights, Error> {
        Ok(Weights {
            w_enc: self.matrix(names.w_enc, d, f)?,
            b_enc: self.vector(names.b_enc, f)?,
            w_dec: self.matrix(names.w_dec, f, d)?,
            b_dec: self.vector(names.b_dec, d)?,
            threshold: None,
            skip: None,
        })
    }

    /// Refuses a tensor that is none of `known`: what it does to the features would be left out.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.names().into_iter().find(|name| !known.contains(&&**name)) {
            Some(name) => {
                Err(self.refused(format!("it has a tensor `{name}`, which no autoencoder of this kind has")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Refused { path: self.path.clone(), reason: reason.into() }
    }

    fn missing(&self, tensor: &'static str) -> Error {
        Error::MissingTensor { path: self.path.clone(), tensor, present: self.names().join(", ") }
    }

    fn numbers(&mut self, name: &'static str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let found = self.shape(name).ok_or_else(|| self.missing(name))?;
        let path = || self.path.clone();
        if found != shape {
            return Err(Error::Shape { path: path(), tensor: name, expected: shape.to_vec(), found });
        }
        let values = match &mut self.source {
            Source::Safetensors(file) => {
                let view = file.tensor(name).map_err(|source| Error::Safetensors { path: path(), source })?;
                let dtype = view.dtype();
                let element = Element::of_safetensors(dtype).ok_or_else(|| Error::Dtype {
                    path: path(),
                    tensor: name,
                    found: format!("{dtype:?}"),
                })?;
                element.widen(view.data())
            }
            Source::Torch(file) => {
                file.numbers(name).map_err(|source| Error::Torch { path: path(), source })?
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(Error::NotFinite { path: path(), tensor: name, index, value: values[index] }),
            None => Ok(values),
        }
    }
}
