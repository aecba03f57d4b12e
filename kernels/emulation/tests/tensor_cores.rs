//! The tensor-core screens run on the CPU: functions replace their instructions (`cpp/tensor_cores.h`), and the rest is
//! the kernels' own code. These tests cannot show whether those functions do what the hardware does.

use std::path::Path;
use std::process::Command;

#[test]
fn the_tensor_core_screens_set_the_bits_of_the_definition() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp");
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("screen_check");
    let compiled = Command::new("g++")
        .args(["-std=c++17", "-O1", "-g", "-fsanitize=address", "-Wall", "-Wno-unknown-pragmas"])
        .arg("-I")
        .arg(&sources)
        .arg("-I")
        .arg(kernels)
        .args([sources.join("screen_check.cpp"), sources.join("fibers.cpp")])
        .arg("-o")
        .arg(&program)
        .output()
        .expect("g++ starts");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let run =
        Command::new(&program).env("ASAN_OPTIONS", "detect_leaks=0").output().expect("the check starts");
    let (output, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    print!("{output}");
    assert!(run.status.success(), "{output}{errors}");
}
