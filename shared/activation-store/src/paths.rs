//! Names of a store's files, relative to its folder.

/// A shard of the `activations` array.
pub(crate) fn activations(shard: u64) -> String {
    format!("activations/c/{shard}/0")
}

/// A shard of the `origin` array.
pub(crate) fn origin(shard: u64) -> String {
    format!("origin/c/{shard}")
}

/// A chunk of the `tokens` array.
pub(crate) fn tokens(chunk: u64) -> String {
    format!("tokens/c/{chunk}/0")
}
