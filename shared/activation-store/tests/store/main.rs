//! Stores as a dump writes them and a trainer reads them.

mod alignment;
mod damage;
mod interruption;
mod order;
mod refusals;
mod round_trip;
mod small_stores;
