//! A test binary's tests once more, every memory access of the kernels checked by the address sanitizer.

use std::process::Command;

use crate::library::SANITIZED;

/// Runs this binary's other tests in a process with the sanitizer; `own` is the test that calls this. In that
/// process it does nothing.
pub fn run_again_sanitized(own: &str) {
    if std::env::var_os(SANITIZED).is_some() {
        return;
    }
    let library = Command::new("g++").arg("-print-file-name=libasan.so").output().expect("g++");
    let library = String::from_utf8(library.stdout).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", own])
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
