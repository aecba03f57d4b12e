//! The program `sae-trainer`; everything is in the library of the same name.

fn main() -> std::process::ExitCode {
    sae_trainer::main()
}
