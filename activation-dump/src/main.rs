//! The program `activation-dump`. All of its code is in the library of the same name.

fn main() -> std::process::ExitCode {
    activation_dump::main()
}
