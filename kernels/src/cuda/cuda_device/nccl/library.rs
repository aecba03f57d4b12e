//! NCCL's library, loaded at run time: a program that uses it starts where there is none.
//!
//! A dozen functions with their types of `nccl.h`. They move bytes; nothing is reduced by NCCL.

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::error::NcclError;
use crate::cuda::libraries;

/// The names that are tried, in this order.
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Communicators that are made without blocking came with it, and with them every wait has an end.
const OLDEST: c_int = 21_400;

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;
/// `ncclResult_t`.
pub(super) type Status = c_int;
pub(super) const SUCCESS: Status = 0;
pub(super) const REMOTE_ERROR: Status = 6;
pub(super) const IN_PROGRESS: Status = 7;
/// `ncclUint8` of `ncclDataType_t`.
pub(super) const BYTES: c_int = 1;

/// `ncclUniqueId`: where the ranks of a communicator find each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclConfig_t` as NCCL 2.14 had it. Later versions take what is missing for not set, by `size` and `version`.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// Of the next field in later versions; ignored by this one's number.
    not_set: c_int,
}

impl Config {
    /// Of a communicator none of whose calls blocks.
    pub(super) fn without_blocking() -> Config {
        let version = OLDEST as c_uint;
        Config { size: size_of::<Config>(), magic: 0xcafe_beef, version, blocking: 0, not_set: c_int::MIN }
    }
}

type Transfer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;

/// The functions that are called.
pub(super) struct Functions {
    pub(super) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    pub(super) comm_init_rank_config:
        unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Status,
    pub(super) comm_get_async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    pub(super) comm_count: unsafe extern "C" fn(Comm, *mut c_int) -> Status,
    pub(super) comm_user_rank: unsafe extern "C" fn(Comm, *mut c_int) -> Status,
    pub(super) comm_finalize: unsafe extern "C" fn(Comm) -> Status,
    pub(super) comm_destroy: unsafe extern "C" fn(Comm) -> Status,
    pub(super) comm_abort: unsafe extern "C" fn(Comm) -> Status,
    pub(super) group_start: unsafe extern "C" fn() -> Status,
    pub(super) group_end: unsafe extern "C" fn() -> Status,
    /// From the device's memory, which is only read.
    pub(super) send: Transfer,
    pub(super) recv: Transfer,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    /// The version as NCCL writes it: 2.27.5.
    pub(super) version: String,
    /// Never closed: NCCL has threads of its own.
    _library: Library,
}

impl Functions {
    /// The library of this process, found and loaded when it is first asked for.
    ///
    /// # Errors
    /// Where it was looked for in vain, or one that is too old.
    pub(super) fn get() -> Result<&'static Functions, NcclError> {
        static LOADED: OnceLock<Result<Functions, NcclError>> = OnceLock::new();
        LOADED.get_or_init(Functions::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Functions, NcclError> {
        let mut tried = Vec::new();
        for path in candidates() {
            // SAFETY: loading NCCL runs its initialisers, which is what using it means.
            match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
                Ok(library) => return Functions::of(library, path),
                Err(error) => tried.push(error.to_string()),
            }
        }
        Err(NcclError::NotFound { tried: tried.join("; ") })
    }

    fn of(library: Library, path: OsString) -> Result<Functions, NcclError> {
        let file = path.to_string_lossy().into_owned();
        let missing = |error: libloading::Error| NcclError::NotFound { tried: error.to_string() };
        // SAFETY: the names are nccl.h's, with its types.
        unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int) -> Status =
                *library.get(b"ncclGetVersion").map_err(missing)?;
            let mut version = 0;
            if get_version(&mut version) != SUCCESS || version < OLDEST {
                return Err(NcclError::TooOld { file, found: written(version), oldest: written(OLDEST) });
            }
            macro_rules! function {
                ($name:literal) => {
                    *library.get($name.as_bytes()).map_err(missing)?
                };
            }
            Ok(Functions {
                get_unique_id: function!("ncclGetUniqueId"),
                comm_init_rank_config: function!("ncclCommInitRankConfig"),
                comm_get_async_error: function!("ncclCommGetAsyncError"),
                comm_count: function!("ncclCommCount"),
                comm_user_rank: function!("ncclCommUserRank"),
                comm_finalize: function!("ncclCommFinalize"),
                comm_destroy: function!("ncclCommDestroy"),
                comm_abort: function!("ncclCommAbort"),
                group_start: function!("ncclGroupStart"),
                group_end: function!("ncclGroupEnd"),
                send: function!("ncclSend"),
                recv: function!("ncclRecv"),
                get_error_string: function!("ncclGetErrorString"),
                get_last_error: function!("ncclGetLastError"),
                version: written(version),
                _library: library,
            })
        }
    }

    /// What a status means, in NCCL's words.
    pub(super) fn meaning(&self, status: Status) -> String {
        // SAFETY: it takes any number and returns a string that is there for good.
        let text = unsafe { words((self.get_error_string)(status)) };
        format!("{text} ({status})")
    }

    /// The same with what NCCL logged last of `comm`, which may be null.
    pub(super) fn explained(&self, status: Status, comm: Comm) -> String {
        let meaning = self.meaning(status);
        // SAFETY: a communicator that is alive or null, and a string that is read at once.
        let last = unsafe { words((self.get_last_error)(comm)) };
        let last = last.split_whitespace().collect::<Vec<_>>().join(" ");
        if last.is_empty() { meaning } else { format!("{meaning}: {last}") }
    }
}

/// # Safety
/// `text` is null or leads to a string that nobody changes meanwhile.
unsafe fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A version as people write it.
fn written(code: c_int) -> String {
    let (major, minor, patch) = match code {
        // Up to 2.8 there was less room.
        ..10_000 => (code / 1000, code / 100 % 10, code % 100),
        _ => (code / 10_000, code / 100 % 100, code % 100),
    };
    format!("{major}.{minor}.{patch}")
}

/// By name where the dynamic linker finds it, then where toolkits and wheels put their libraries.
fn candidates() -> Vec<OsString> {
    let mut paths: Vec<OsString> = FILES.iter().map(OsString::from).collect();
    for folder in libraries::folders() {
        let files = FILES.iter().map(|file| folder.join(file)).filter(|file| file.is_file());
        paths.extend(files.map(PathBuf::into_os_string));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_nccl_numbers_them() {
        assert_eq!(written(21_805), "2.18.5");
        assert_eq!(written(22_705), "2.27.5");
        assert_eq!(written(2708), "2.7.8");
        assert_eq!(written(OLDEST), "2.14.0");
    }

    #[test]
    fn the_configuration_has_the_size_that_its_version_had() {
        assert_eq!((size_of::<Config>(), std::mem::offset_of!(Config, blocking)), (24, 16));
        assert_eq!((size_of::<UniqueId>(), align_of::<UniqueId>()), (128, 1));
    }

    /// With NVIDIA's own library, which needs no GPU for this: `pip download nvidia-nccl-cu12`, its lib folder in LD_LIBRARY_PATH.
    #[test]
    #[ignore = "needs NVIDIA's libnccl.so.2"]
    fn nvidias_library_has_all_functions() {
        let functions = Functions::get().unwrap();
        println!("NCCL {}", functions.version);
        assert!(functions.version.starts_with("2."));
        let meaning = functions.meaning(5);
        assert_eq!(meaning, "invalid usage (run with NCCL_DEBUG=WARN for details) (5)");
        assert!(functions.meaning(REMOTE_ERROR).contains("remote process"), "{}", functions.meaning(6));
        assert!(!functions.explained(SUCCESS, std::ptr::null_mut()).is_empty());
        // Of a device there is no word until a communicator is made.
        let mut id = UniqueId([0; 128]);
        // SAFETY: it may be written.
        assert_eq!(unsafe { (functions.get_unique_id)(&mut id) }, SUCCESS);
        assert!(id.0.iter().any(|byte| *byte != 0));
    }
}
