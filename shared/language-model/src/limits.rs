//! Limits on a model's input.

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
    /// Refuses ids that do not form whole contexts or that the model does not accept.
    pub(crate) fn check(&self, ids: &[i64], contexts: usize, length: usize) -> Result<(), Error> {
        if contexts == 0 || length == 0 || contexts.checked_mul(length) != Some(ids.len()) {
            return Err(Error::Input(format!(
                "{} token ids do not make {contexts} contexts of {length} tokens",
                ids.len()
            )));
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
        if let Some(index) = ids.iter().position(outside) {
            return Err(Error::Input(format!(
                "token id {} (context {}, position {}) is not in the model's vocabulary of {vocabulary}",
                ids[index],
                index / length,
                index % length,
            )));
        }
        Ok(())
    }
}
