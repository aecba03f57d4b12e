//! Finding the ONNX Runtime library. A process loads a library only once, so this is a process of its own with a single
//! test.

use std::path::{Path, PathBuf};

use language_model::{Error, Runtime};

#[test]
fn without_a_usable_library_the_error_says_how_to_fetch_one() {
    let says = |error: &Error, parts: &[&str]| {
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    };
    let missing = Runtime::load(Some(Path::new("/no/such/library.so"))).unwrap_err();
    says(&missing, &["/no/such/library.so", "scripts/fetch-onnxruntime", "ORT_DYLIB_PATH"]);

    let folder = tempfile::tempdir().unwrap();
    let empty = Runtime::load(Some(folder.path())).unwrap_err();
    assert!(matches!(empty, Error::RuntimeMissing { .. }), "{empty}");

    let text = folder.path().join("libonnxruntime.so");
    std::fs::write(&text, "not a library").unwrap();
    let unusable = Runtime::load(Some(folder.path())).unwrap_err();
    says(&unusable, &["libonnxruntime.so cannot be used", "scripts/fetch-onnxruntime"]);

    // A failure leaves the process as it was: the real library still loads, by folder and by file.
    let workspace: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "onnxruntime"].iter().collect();
    let runtime = Runtime::load(Some(&workspace)).unwrap_or_else(|error| panic!("{error}"));
    let again = Runtime::load(Some(runtime.library())).unwrap();
    assert_eq!(again.library(), runtime.library());

    // Another one in the same process would be ignored silently by the loader below us.
    let other = Runtime::load(Some(&text)).unwrap_err();
    says(&other, &["already loaded"]);
}
