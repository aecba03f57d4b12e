//! The command line, and what it means: `line` → `arguments` → `settings`.

pub(crate) mod arguments;
pub(crate) mod default_store;
pub(crate) mod flags;
pub(crate) mod layers;
pub(crate) mod line;
pub(crate) mod presets;
pub(crate) mod row_settings;
pub(crate) mod selection;
pub(crate) mod settings;
