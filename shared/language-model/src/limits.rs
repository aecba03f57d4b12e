//! Limits on a model's input.

use ndarray::ArrayView2;

use crate::Error;

/// Limits on a model's input; `None` if a limit is unknown or does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) vocabulary: Option<usize>,
    pub(crate) positions: Option<usize>,
    pub(crate) contexts: Option<usize>,
    pub(crate) length: Option<usize>,
}

impl Limits {
    /// Refuses ids `[contexts, length]` that the model does not accept.
    pub(crate) fn check(&self, ids: ArrayView2<'_, i64>) -> Result<(), Error> {
        let (contexts, length) = ids.dim();
        if ids.is_empty() {
            return Err(Error::Input(format!("{contexts} contexts of {length} tokens have no token")));
        }
        if let Some(positions) = self.positions.filter(|positions| length > *positions) {
            return Err(Error::Input(format!(
                "a context of {length} tokens is longer than the model's {positions} positions"
            )));
        }
        if let Some(fixed) = self.length.filter(|fixed| length != *fixed) {
            return Err(Error::Input(format!(
                "this ONNX file takes contexts of {fixed} tokens only, not of {length}"
            )));
        }
        if let Some(fixed) = self.contexts.filter(|fixed| contexts != *fixed) {
            return Err(Error::Input(format!(
                "this ONNX file takes {fixed} contexts at a time only, not {contexts}"
            )));
        }
        let vocabulary = self.vocabulary.unwrap_or(usize::MAX);
        let outside = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= vocabulary);
        if let Some(((context, position), id)) = ids.indexed_iter().find(|(_, id)| outside(id)) {
            return Err(Error::Input(format!(
                "token id {id} (context {context}, position {position}) is not in the model's vocabulary of \
                 {vocabulary}"
            )));
        }
        Ok(())
    }
}
