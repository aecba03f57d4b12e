//! Figures for `scripts/gpu-check`: one JSON object per line. The script knows these keys: `figure`, the name; `seconds`;
//! `operations` and `bytes`, the least work that takes that time, from which it computes a lower bound; `tokens_per_second`.
//! It keeps all others.

use serde_json::{Map, Value};

/// Prints a figure; `fields` is an object.
pub(crate) fn print(name: &str, fields: Value) {
    let mut line = Map::new();
    line.insert("figure".to_owned(), name.into());
    if let Value::Object(fields) = fields {
        line.extend(fields);
    }
    println!("{}", Value::Object(line));
}
