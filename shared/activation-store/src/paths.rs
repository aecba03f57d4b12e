//! Names of a store's files, relative to its folder.

use crate::catalog::SMALL_FILES;
use crate::journal::MANIFEST;

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

/// Whether a file of a store has this name, with dots for slashes, until it is whole.
pub(crate) fn is_a_temporary_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.split('.').collect::<Vec<_>>()[..] {
        ["activations" | "tokens", "c", number, "0"] | ["origin", "c", number] => is_number(number),
        _ => name == MANIFEST || SMALL_FILES.iter().any(|file| file.replace('/', ".") == name),
    }
}
