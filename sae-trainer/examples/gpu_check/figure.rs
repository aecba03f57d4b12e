//! Figures for `scripts/gpu-check`: a JSON object a line. It knows these keys: `figure`, the name; `seconds`; `operations` and
//! `bytes`, the least work that takes that time, from which it reckons the floor; `tokens_per_second`. Others are kept.

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
