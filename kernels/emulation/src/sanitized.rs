//! A test binary's tests once more, every memory access of the kernels checked by the address sanitizer.

use std::process::Command;

use crate::library::SANITIZED;

/// Runs this binary's other tests in a process with the sanitizer; `own` is the test that calls this. In that
/// process it does nothing. Tests with one of the words `without` in their names are left out: those that access no memory
/// otherwise than others do, and take their time.
pub fn run_again_sanitized(own: &str, without: &[&str]) {
    if std::env::var_os(SANITIZED).is_some() {
        return;
    }
    let library = Command::new("g++").arg("-print-file-name=libasan.so").output().expect("g++");
    let library = String::from_utf8(library.stdout).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(without.iter().chain([&own]).flat_map(|name| ["--skip", *name]))
        .env(SANITIZED, "1")
        .env("LD_PRELOAD", library.trim())
        // What the test harness keeps until it ends is no concern here. Fibers have stacks of their own.
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains(" 0 failed"), "{}", text(&output.stdout));
}
