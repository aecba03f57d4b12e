//! The kernels as the driver holds them.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{result, sys};
use rayon::prelude::*;

use super::driver::{Context, failed};
use crate::cuda::cubin_cache::{Build, CubinCache};
use crate::cuda::device::Kernel;
use crate::cuda::nvrtc::{self, Architecture, Waits};
use crate::cuda::sources::kernels_for;
use crate::error::DeviceError;

/// Dynamic shared memory that a kernel may use without being asked.
const PLAIN_SHARED_BYTES: u32 = 48 * 1024;

/// All modules of a device.
#[derive(Debug)]
pub(super) struct Modules {
    context: Arc<Context>,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<Kernel, Function>,
}

// SAFETY: modules and functions may be used from any thread with their context current.
unsafe impl Send for Modules {}

/// A kernel that can be launched.
#[derive(Debug, Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// The dynamic shared memory that it is allowed.
    shared_bytes: u32,
}

impl Modules {
    /// Compiles everything (or takes it from the cache) and loads it. Now rather than at the first launch: a source
    /// that does not compile shows before training starts, and nothing is loaded while a graph is recorded.
    pub(super) fn load(
        context: &Arc<Context>,
        capability: (u32, u32),
        waits: Waits,
        cache: &CubinCache,
    ) -> Result<Modules, DeviceError> {
        let architecture = Architecture(capability);
        let build = Build { architecture, waits, compiler: nvrtc::version() };
        let sources: Vec<_> = kernels_for(capability).collect();
        let cubins = sources.par_iter().map(|source| -> Result<Vec<u8>, DeviceError> {
            if let Some(cubin) = cache.read(source, build) {
                return Ok(cubin);
            }
            let compiled =
                nvrtc::compile(source, architecture, waits).map_err(|error| DeviceError::Failed {
                    operation: "compiling the kernels".to_owned(),
                    reason: error.to_string(),
                })?;
            cache.write(source, build, &compiled.cubin);
            Ok(compiled.cubin)
        });
        let cubins = cubins.collect::<Result<Vec<_>, _>>()?;
        context.bind()?;
        let mut loaded =
            Modules { context: context.clone(), modules: HashMap::new(), functions: HashMap::new() };
        for (source, cubin) in sources.iter().zip(&cubins) {
            // SAFETY: the image is machine code in ELF form, which carries its own length.
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .map_err(failed(format!("loading {}.cu", source.name)))?;
            loaded.modules.insert(source.name, module);
        }
        Ok(loaded)
    }

    /// Whether the device has this file.
    pub(super) fn have(&self, module: &str) -> bool {
        self.modules.contains_key(module)
    }

    /// The kernel's handle, allowed `shared_bytes` of dynamic shared memory.
    pub(super) fn function(
        &mut self,
        kernel: Kernel,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, DeviceError> {
        let known = self.functions.get(&kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => self.find(kernel)?,
        };
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe {
                result::function::set_function_attribute(function.handle, attribute, shared_bytes as i32)
            }
            .map_err(failed(format!("giving {} {shared_bytes} bytes of shared memory", kernel.function)))?;
            function.shared_bytes = shared_bytes;
        }
        self.functions.insert(kernel, function);
        Ok(function.handle)
    }

    fn find(&self, kernel: Kernel) -> Result<Function, DeviceError> {
        let operation = format!("finding the kernel {}", kernel.function);
        let module = self.modules.get(kernel.module).ok_or_else(|| DeviceError::Failed {
            operation: operation.clone(),
            reason: format!("there is no module {} for this device", kernel.module),
        })?;
        let name = CString::new(kernel.function).expect("names hold no zero bytes");
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(*module, name) }.map_err(failed(operation))?;
        Ok(Function { handle, shared_bytes: PLAIN_SHARED_BYTES })
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            for module in self.modules.values() {
                // SAFETY: it is loaded and not used after this.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}
