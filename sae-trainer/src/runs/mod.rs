//! A run: whether it can be done (`plan`), which rows it reads (`streams`, `batches`, `input_scale`), how it goes (`run`, with
//! `initial`, `schedule`, `revive`, `decoder_bias`), with whom (`team`), and what it leaves on disk (`shared_folder`, `together`, `folder`, `checkpoint`,
//! `panel_checkpoint`, `sliced_sae`, `record`, `event_file`, `sae_config`).

pub(crate) mod batches;
pub(crate) mod checkpoint;
pub(crate) mod decoder_bias;
pub(crate) mod encoder_bias;
pub(crate) mod event_file;
pub(crate) mod folder;
pub(crate) mod initial;
pub(crate) mod input_scale;
pub(crate) mod panel_checkpoint;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod revive;
pub(crate) mod run;
pub(crate) mod sae_config;
pub(crate) mod schedule;
pub(crate) mod shared_folder;
pub(crate) mod sliced_sae;
pub(crate) mod streams;
pub(crate) mod team;
pub(crate) mod together;
