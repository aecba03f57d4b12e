//! What a person sees while a run goes on and when it ends.

pub(crate) mod announce;
pub(crate) mod progress;
pub(crate) mod table;
