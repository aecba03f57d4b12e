//! The program `activation-dump`; everything is in the library of the same name.

fn main() -> std::process::ExitCode {
    activation_dump::main()
}
