//! Dense products by cuBLAS.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublas::{result, sys};

use super::driver::{Context, CudaBuffer, Stream};
use crate::cuda::device::{Element, Factor, Gemm};
use crate::error::DeviceError;

/// Memory that cuBLAS works in: what NVIDIA recommends for Hopper. Given, not left to cuBLAS, because products are
/// recorded in graphs and because it makes results repeatable.
const WORKSPACE: usize = 32 * 1024 * 1024;

/// A cuBLAS handle on a stream.
#[derive(Debug)]
pub(super) struct Blas {
    context: Arc<Context>,
    handle: sys::cublasHandle_t,
    _workspace: CudaBuffer,
}

// SAFETY: the handle may be used from any thread, one at a time, with its context current.
unsafe impl Send for Blas {}

fn failed(operation: &'static str) -> impl Fn(result::CublasError) -> DeviceError {
    move |error| DeviceError::Failed { operation: format!("cuBLAS: {operation}"), reason: error.to_string() }
}

impl Blas {
    /// A handle whose products run on `stream`. The library must be loaded and `context` current.
    pub(super) fn new(context: &Arc<Context>, stream: &Stream) -> Result<Blas, DeviceError> {
        let workspace =
            CudaBuffer::new(context, WORKSPACE).map_err(super::driver::failed("cuBLAS' workspace"))?;
        let handle = result::create_handle().map_err(failed("creating a handle"))?;
        let blas = Blas { context: context.clone(), handle, _workspace: workspace };
        // SAFETY: handle and stream are alive. Setting the stream resets the workspace, so it comes first.
        unsafe { result::set_stream(handle, stream.handle.cast()) }.map_err(failed("using a stream"))?;
        // SAFETY: the workspace is that large and lives as long as the handle.
        unsafe {
            sys::cublasSetWorkspace_v2(handle, blas._workspace.pointer as *mut c_void, WORKSPACE)
                .result()
                .map_err(failed("using a workspace"))?;
        }
        Ok(blas)
    }

    /// out [m,n] = a [m,k] · b [k,n] (+ out), all row-major and within their buffers.
    pub(super) fn gemm(&self, gemm: &Gemm<'_, CudaBuffer>) -> Result<(), DeviceError> {
        let (m, n, k) = gemm.sizes;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let (alpha, beta) = (1.0f32, if gemm.accumulate { 1.0f32 } else { 0.0 });
        let element = match gemm.element {
            Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        // The call with sizes of 64 bits: the caller bounds each size by 31 bits, and products of two can be larger.
        let size = |number: usize| i64::try_from(number).expect("sizes were checked against 31 bits");
        // Row-major out is column-major outᵀ = bᵀ aᵀ: the factors change places, and a stored matrix is read as its
        // transpose without being told so.
        let operation = |factor: &Factor<'_, CudaBuffer>| match factor.transposed {
            false => sys::cublasOperation_t::CUBLAS_OP_N,
            true => sys::cublasOperation_t::CUBLAS_OP_T,
        };
        let address =
            |factor: &Factor<'_, CudaBuffer>| (factor.buffer.pointer + factor.offset as u64) as *const c_void;
        // SAFETY: the caller checked that everything lies within its buffer; alpha and beta are host memory, which is
        // how a handle reads them unless told otherwise.
        unsafe {
            sys::cublasGemmEx_64(
                self.handle,
                operation(&gemm.b),
                operation(&gemm.a),
                size(n),
                size(m),
                size(k),
                (&raw const alpha).cast(),
                address(&gemm.b),
                element,
                size(gemm.b.stride),
                address(&gemm.a),
                element,
                size(gemm.a.stride),
                (&raw const beta).cast(),
                (gemm.out.pointer + gemm.out_offset as u64) as *mut c_void,
                sys::cudaDataType_t::CUDA_R_32F,
                size(gemm.out_stride),
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .result()
        .map_err(failed("a product"))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: it is alive and not used after this.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}
