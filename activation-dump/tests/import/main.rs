//! `activation-dump import`: every format becomes a store with all of its rows, and what is damaged is refused before anything is
//! written.

mod damage;
mod formats;
mod interruption;
mod sources;
