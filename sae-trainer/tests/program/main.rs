//! The program as a user runs it, on small stores.

mod bench;
mod compare;
mod cuda;
mod damage;
mod default_store;
mod endings;
mod errors;
mod eval;
mod faults;
mod features;
mod fixture;
mod formats;
mod gpu_check;
mod held_out;
mod kinds;
mod neuronpedia;
mod neuronpedia_server;
mod neuronpedia_upload;
mod ranks;
mod ranks_cuda;
mod recipes;
mod report;
mod resume;
mod sweep;
mod training;
mod transcoder;
