//! Runs libFuzzer on the target that the environment variable `TARGET` names.

#![no_main]

use std::sync::LazyLock;

use fuzz_targets::{BoundedMemory, Ground, Target};

#[global_allocator]
static MEMORY: BoundedMemory = BoundedMemory;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").expect("TARGET names a target");
    Target::named(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});
static GROUND: LazyLock<Ground> = LazyLock::new(Ground::new);

libfuzzer_sys::fuzz_target!(
    // libFuzzer's own hook ends the process at panics that the programs catch; those that nobody catches still end it.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| TARGET.run(&GROUND, bytes)
);
