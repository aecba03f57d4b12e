//! Compiling kernels at run time, for the device that was found.

use std::ffi::{CStr, CString, c_char};
use std::fmt;

use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys;
use thiserror::Error;

use super::sources::{HEADERS, Source};

/// What code is generated for: a compute capability, `sm_90a` for (9, 0) because only that has wgmma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture(pub (u32, u32));

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.0;
        write!(f, "sm_{major}{minor}{}", if self.0 == (9, 0) { "a" } else { "" })
    }
}

/// A source that could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("compiling {name}.cu for {architecture} failed: {reason}")]
pub struct CompileError {
    /// The file's name without its ending.
    name: String,
    architecture: String,
    /// What the compiler said.
    reason: String,
}

/// A compiled source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code in ELF form, as the driver loads it.
    pub cubin: Vec<u8>,
    /// What each kernel takes.
    pub resources: Vec<Resources>,
    /// Warnings, and what the assembler says of its own accord, such as that products of tensor cores had to be
    /// serialised. Empty as a rule.
    pub remarks: Vec<String>,
}

/// What a kernel takes of a multiprocessor, as the assembler reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Bytes of registers that a thread stores in local memory because it has too many.
    pub spill_store_bytes: u32,
    /// Bytes that it loads from there.
    pub spill_load_bytes: u32,
    /// Bytes of local memory of a thread, spills and arrays.
    pub stack_bytes: u32,
}

/// The compiler's version, major and minor. Its library must be loaded ([`super::libraries::load`]).
pub fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both numbers are valid for writing during the call; it cannot fail with valid pointers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// The options that all sources are compiled with, apart from the architecture.
const OPTIONS: [&str; 3] = ["--std=c++17", "--generate-line-info", "--ptxas-options=-v"];

/// What a kernel does that waits within the device for something that does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waits {
    /// It waits for ever: nothing is spent on looking at the time.
    #[default]
    Unbounded,
    /// It ends with an error after two seconds and says who waited: for checks (`hopper.cuh`).
    Bounded,
}

impl Waits {
    /// The options that sources are compiled with, apart from the architecture.
    pub(crate) fn options(self) -> impl Iterator<Item = &'static str> {
        let define = (self == Waits::Bounded).then_some("--define-macro=BOUNDED_WAITS");
        OPTIONS.into_iter().chain(define)
    }
}

/// Compiles `source`, which may include the embedded headers. The library must be loaded
/// ([`super::libraries::load`]).
///
/// # Errors
/// What the compiler reports.
pub fn compile(source: &Source, architecture: Architecture, waits: Waits) -> Result<Compiled, CompileError> {
    let failed = |reason: String| CompileError {
        name: source.name.to_owned(),
        architecture: architecture.to_string(),
        reason,
    };
    let program = Program::new(source).map_err(|error| failed(error.to_string()))?;
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(waits.options().map(str::to_owned));
    let compiled = program.compile(&options);
    let log = program.log();
    compiled.map_err(|error| failed(format!("{error}\n{log}")))?;
    let cubin = program.cubin().map_err(|error| failed(error.to_string()))?;
    Ok(Compiled { cubin, resources: parse_resources(&log), remarks: parse_remarks(&log) })
}

/// A program of the compiler, with the strings that it may refer to.
struct Program {
    program: sys::nvrtcProgram,
    _strings: Vec<CString>,
}

impl Program {
    fn new(source: &Source) -> Result<Program, NvrtcError> {
        let text = |text: &str| CString::new(text).expect("sources hold no zero bytes");
        let (code, name) = (text(source.text), text(&format!("{}.cu", source.name)));
        let headers: Vec<CString> = HEADERS.iter().map(|header| text(header.text)).collect();
        let names: Vec<CString> =
            HEADERS.iter().map(|header| text(&format!("{}.cuh", header.name))).collect();
        let pointers =
            |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end with a zero byte and live as long as the program.
        unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                code.as_ptr(),
                name.as_ptr(),
                headers.len() as i32,
                pointers(&headers).as_ptr(),
                pointers(&names).as_ptr(),
            )
        }
        .result()?;
        let strings = [code, name].into_iter().chain(headers).chain(names).collect();
        Ok(Program { program, _strings: strings })
    }

    fn compile(&self, options: &[String]) -> Result<(), NvrtcError> {
        let options: Vec<CString> =
            options.iter().map(|option| CString::new(option.as_str()).expect("no zero bytes")).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and so are the options during the call.
        unsafe { sys::nvrtcCompileProgram(self.program, pointers.len() as i32, pointers.as_ptr()) }.result()
    }

    /// Errors, warnings and the assembler's report.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the program is alive; the buffer has the size that the first call reports.
        let log = unsafe {
            if sys::nvrtcGetProgramLogSize(self.program, &mut size).result().is_err() {
                return String::new();
            }
            let mut log = vec![0u8; size + 1];
            if sys::nvrtcGetProgramLog(self.program, log.as_mut_ptr().cast()).result().is_err() {
                return String::new();
            }
            log
        };
        CStr::from_bytes_until_nul(&log)
            .map(|log| log.to_string_lossy().trim().to_owned())
            .unwrap_or_default()
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is alive; the buffer has the size that the first call reports.
        unsafe {
            sys::nvrtcGetCUBINSize(self.program, &mut size).result()?;
            let mut cubin = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.program, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive and not used after this.
        unsafe { sys::nvrtcDestroyProgram(&mut self.program) };
    }
}

/// Reads the report of `ptxas -v`:
///
/// ```text
/// ptxas info    : Compiling entry function 'f' for 'sm_80'
/// ptxas info    : Function properties for f
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 10 registers, used 1 barriers, 1200 bytes smem, 364 bytes cmem[0]
/// ```
fn parse_resources(log: &str) -> Vec<Resources> {
    let before = |line: &str, unit: &str| -> u32 {
        let words = line.split(unit).next().filter(|part| part.len() < line.len());
        words.and_then(|part| part.split_whitespace().last()?.parse().ok()).unwrap_or(0)
    };
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Resources { kernel, ..Resources::default() });
        }
        let Some(current) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            current.stack_bytes = before(line, " bytes stack frame");
            current.spill_store_bytes = before(line, " bytes spill stores");
            current.spill_load_bytes = before(line, " bytes spill loads");
        }
        if line.contains(" registers") {
            current.registers = before(line, " registers");
            current.shared_bytes = before(line, " bytes smem");
        }
    }
    found
}

/// The lines of a log that are no part of the report of [`parse_resources`].
fn parse_remarks(log: &str) -> Vec<String> {
    const REPORT: [&str; 6] = [
        " bytes gmem",
        "Compiling entry function '",
        "Function properties for ",
        " bytes stack frame",
        ": Used ",
        ": Compile time = ",
    ];
    let is_remark = |line: &&str| !line.is_empty() && !REPORT.iter().any(|part| line.contains(part));
    log.lines().map(str::trim).filter(is_remark).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'f' for 'sm_80'
ptxas info    : Function properties for f
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1200 bytes smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function 'g' for 'sm_80'
ptxas info    : Function properties for g
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 364 bytes cmem[0]";
        let f = Resources {
            kernel: "f".into(),
            registers: 10,
            shared_bytes: 1200,
            spill_store_bytes: 8,
            spill_load_bytes: 12,
            stack_bytes: 16,
        };
        let g = Resources { kernel: "g".into(), registers: 255, ..Resources::default() };
        assert_eq!(parse_resources(log), [f, g]);
        assert_eq!(parse_resources("warning: nothing"), []);
        assert!(parse_remarks(log).is_empty());
    }

    #[test]
    fn what_the_compiler_and_the_assembler_remark_is_kept() {
        let warning = "f.cu(1): warning #177-D: variable \"x\" was declared but never referenced";
        let remark = "ptxas info    : (C7517) warpgroup.wait is injected in around line 52 by compiler to allow use of \
                      registers defined by GMMA in function 'f'";
        let log = format!(
            "{warning}\n\n{remark}\nptxas info    : 40 bytes gmem, 64 bytes cmem[4]\n\
             ptxas info    : Compiling entry function 'f' for 'sm_90a'\nptxas info    : Compile time = 56.435 ms"
        );
        assert_eq!(parse_remarks(&log), [warning, remark]);
    }

    #[test]
    fn architectures_are_named_as_the_compiler_wants_them() {
        assert_eq!(Architecture((8, 0)).to_string(), "sm_80");
        assert_eq!(Architecture((9, 0)).to_string(), "sm_90a");
        assert_eq!(Architecture((12, 0)).to_string(), "sm_120");
    }
}
