//! The program `sae-trainer`. All of its code except the allocator is in the library of the same name.

mod allocator;

#[global_allocator]
static ALLOCATOR: allocator::CacheLines = allocator::CacheLines;

fn main() -> std::process::ExitCode {
    sae_trainer::main()
}
