//! The program `sae-trainer`; everything but its allocator is in the library of the same name.

mod allocator;

#[global_allocator]
static ALLOCATOR: allocator::CacheLines = allocator::CacheLines;

fn main() -> std::process::ExitCode {
    sae_trainer::main()
}
