//! Graphs of the tiny models of `tests/data`.

mod bad_models;
mod golden;
mod models;
mod predictions;
mod products;
