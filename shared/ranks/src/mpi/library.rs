//! An MPI library, loaded at run time: a program that uses it starts where there is none.
//!
//! Three binary interfaces are known. They differ in what a handle is: a pointer in the standard one of MPI 5 and in Open MPI, a
//! 32-bit number in MPICH and its relatives. A number and a pointer are handed over in the same register, so one type stands for
//! both here.

use std::env;
use std::ffi::{OsStr, OsString, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::launcher::Launcher;

/// A handle: of a communicator, a type, a request.
pub(super) type Handle = usize;

/// Which interface a library has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    /// That of the MPI 5 standard.
    Standard,
    /// MPICH's, which its relatives share.
    Mpich,
    /// Open MPI's.
    OpenMpi,
}

impl Interface {
    /// The name of the library's file.
    fn file(self) -> &'static str {
        match self {
            Interface::Standard => "libmpi_abi.so.1",
            Interface::Mpich => "libmpi.so.12",
            Interface::OpenMpi => "libmpi.so.40",
        }
    }

    /// Those to be tried, in this order: that which the launcher's own library has, or which speaks with the launcher, first.
    fn of(launcher: Launcher) -> [Interface; 3] {
        use Interface::{Mpich, OpenMpi, Standard};
        match launcher {
            Launcher::OpenMpi | Launcher::Pmix => [OpenMpi, Standard, Mpich],
            Launcher::Pmi => [Mpich, Standard, OpenMpi],
            Launcher::Slurm | Launcher::Torchrun => [Standard, Mpich, OpenMpi],
        }
    }

    /// MPI_THREAD_SERIALIZED: any thread may call, one at a time.
    pub(super) fn serialized(self) -> c_int {
        match self {
            Interface::Standard => 2048,
            Interface::Mpich | Interface::OpenMpi => 2,
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file())
    }
}

type Collective = unsafe extern "C" fn(
    *const c_void,
    c_int,
    Handle,
    *mut c_void,
    c_int,
    Handle,
    Handle,
    *mut Handle,
) -> c_int;

/// The functions that are called, and the handles that they are given.
pub(super) struct Functions {
    pub(super) interface: Interface,
    /// MPI_COMM_WORLD.
    pub(super) world: Handle,
    /// MPI_BYTE.
    pub(super) byte: Handle,
    pub(super) init_thread: unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int,
    pub(super) comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) ialltoall: Collective,
    pub(super) iallgather: Collective,
    pub(super) ibcast: unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle, *mut Handle) -> c_int,
    pub(super) test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut c_void) -> c_int,
    pub(super) abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    pub(super) finalize: unsafe extern "C" fn() -> c_int,
    /// Never closed: MPI does not come back once it was finalized.
    _library: Library,
}

impl Functions {
    /// Loads `asked` if that is given, and otherwise the first library that is found.
    ///
    /// # Errors
    /// What was tried, with the reason of each.
    pub(super) fn load(asked: Option<&OsStr>, launcher: Launcher) -> Result<Functions, String> {
        let mut tried = Vec::new();
        for path in candidates(asked, launcher) {
            match Functions::of(&path) {
                Ok(functions) => return Ok(functions),
                Err(reason) => tried.push(format!("{}: {reason}", path.to_string_lossy())),
            }
        }
        // Folders where there is no such file say nothing.
        Err(tried.join("; "))
    }

    fn of(path: &OsStr) -> Result<Functions, String> {
        // SAFETY: loading an MPI library runs its initialisers, which is what using it means. Its parts load others, which look for
        // its names among the global ones.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| error.to_string())?;
        // SAFETY: the names below are those of the MPI standard, with its types.
        unsafe {
            let address = |name: &str| -> Result<Handle, String> {
                let symbol =
                    library.get::<*mut c_void>(name.as_bytes()).map_err(|error| error.to_string())?;
                Ok(symbol.as_raw_ptr() as Handle)
            };
            let is_open_mpi = address("ompi_mpi_comm_world").is_ok();
            let is_standard = Path::new(path)
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libmpi_abi"));
            let (interface, world, byte) = match (is_standard, is_open_mpi) {
                (true, _) => (Interface::Standard, 0x101, 0x247),
                (_, true) => (Interface::OpenMpi, address("ompi_mpi_comm_world")?, address("ompi_mpi_byte")?),
                _ => (Interface::Mpich, 0x4400_0000, 0x4c00_010d),
            };
            macro_rules! function {
                ($name:literal) => {
                    *library.get($name.as_bytes()).map_err(|error| error.to_string())?
                };
            }
            Ok(Functions {
                interface,
                world,
                byte,
                init_thread: function!("MPI_Init_thread"),
                comm_rank: function!("MPI_Comm_rank"),
                comm_size: function!("MPI_Comm_size"),
                ialltoall: function!("MPI_Ialltoall"),
                iallgather: function!("MPI_Iallgather"),
                ibcast: function!("MPI_Ibcast"),
                test: function!("MPI_Test"),
                abort: function!("MPI_Abort"),
                finalize: function!("MPI_Finalize"),
                _library: library,
            })
        }
    }
}

/// What to load, in this order: the libraries beside the launcher, which are the ones that it can speak with, then those that the
/// dynamic linker finds.
fn candidates(asked: Option<&OsStr>, launcher: Launcher) -> Vec<OsString> {
    if let Some(asked) = asked {
        return vec![asked.to_owned()];
    }
    let parent = std::fs::read_link(format!("/proc/{}/exe", std::os::unix::process::parent_id())).ok();
    let path = env::var_os("PATH").unwrap_or_default();
    let launchers =
        env::split_paths(&path).map(|folder| folder.join("mpiexec")).filter(|file| file.is_file());
    let own = env::current_exe().ok();
    let programs = parent.into_iter().chain(launchers.take(1)).chain(own);
    let folders: Vec<PathBuf> = programs.flat_map(|program| library_folders(&program)).collect();
    let mut found = Vec::new();
    for interface in Interface::of(launcher) {
        let files = folders.iter().map(|folder| folder.join(interface.file())).filter(|file| file.is_file());
        found.extend(files.map(PathBuf::into_os_string));
    }
    found.extend(Interface::of(launcher).map(|interface| interface.file().into()));
    let mut seen = std::collections::HashSet::new();
    found.retain(|path| seen.insert(path.clone()));
    found
}

/// Where the libraries of a program lie that is in `PREFIX/bin`, or deeper.
fn library_folders(program: &Path) -> Vec<PathBuf> {
    let prefixes = program.ancestors().skip(2).take(3).filter(|prefix| prefix.parent().is_some());
    prefixes.flat_map(|prefix| ["lib", "lib64"].map(|name| prefix.join(name))).collect()
}
