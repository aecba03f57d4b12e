//! The seam between the step and the machine it runs on: memory, kernel launches, dense products.
//!
//! Everything above (the step) is written once against [`Device`] and runs on a GPU and, in the tests,
//! on an emulation that executes the same `.cu` files on the CPU. All work is ordered: an operation sees the
//! results of every operation called before it on the same device. Calls may return before the work is done;
//! only [`Device::download`], [`Device::collect`], [`Device::put`] and [`Device::synchronize`] wait.

use crate::error::DeviceError;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The name that the vendor gave it.
    pub name: String,
    /// Major and minor compute capability, such as (9, 0).
    pub compute_capability: (u32, u32),
    /// The number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// The most shared memory that one block can be given (opt-in), in bytes.
    pub shared_memory_per_block: usize,
    /// The size of the second-level cache in bytes.
    pub l2_bytes: usize,
    /// The size of its memory in bytes.
    pub memory_bytes: usize,
}

/// A function of one of the files in `kernels/cuda`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file's name without `.cu`.
    pub module: &'static str,
    /// The `extern "C" __global__` function.
    pub function: &'static str,
}

/// One argument of a kernel.
#[derive(Debug)]
pub enum Argument<'a, B> {
    /// A pointer to a byte of a buffer.
    Buffer(&'a B, usize),
    /// A null pointer, where the kernel takes one.
    Null,
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
    /// A single-precision number.
    F32(f32),
}

/// A kernel launch.
#[derive(Debug)]
pub struct Launch<'a, B> {
    /// What is launched.
    pub kernel: Kernel,
    /// The number of blocks in x, y and z.
    pub grid: [u32; 3],
    /// The number of threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The names of the kernel's parameters, as the caller understands them: for checks of their order.
    pub parameters: &'a [&'static str],
    /// The arguments, in the order of the kernel's parameters.
    pub arguments: &'a [Argument<'a, B>],
}

/// What the elements of a product's factors are; products are summed and written in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// float32, multiplied as such (not TF32).
    F32,
    /// bfloat16.
    Bf16,
}

/// A factor of a product, row-major in a buffer.
#[derive(Debug)]
pub struct Factor<'a, B> {
    /// Where it lies.
    pub buffer: &'a B,
    /// Its first byte in the buffer.
    pub offset: usize,
    /// Elements from one stored row to the next.
    pub stride: usize,
    /// Whether the product takes it transposed.
    pub transposed: bool,
}

/// out [m,n] (float32, row-major) = a [m,k] · b [k,n] + keep · out, a and b after their transposition.
#[derive(Debug)]
pub struct Gemm<'a, B> {
    /// m, n and k.
    pub sizes: (usize, usize, usize),
    /// The type of both factors.
    pub element: Element,
    /// a.
    pub a: Factor<'a, B>,
    /// b.
    pub b: Factor<'a, B>,
    /// out.
    pub out: &'a B,
    /// The first byte of out in its buffer.
    pub out_offset: usize,
    /// Elements from one row of out to the next.
    pub out_stride: usize,
    /// Whether the product is added to out (true) or replaces it.
    pub accumulate: bool,
}

/// The search for candidates: which z_ij can be positive, judged by a product of bfloat16 numbers. What is
/// computed and how the arrays lie is said in `kernels/cuda/README.md`.
#[derive(Debug)]
pub struct Screen<'a, B> {
    /// The number of features F.
    pub features: usize,
    /// The number of rows B.
    pub rows: usize,
    /// Numbers in a row of both factors: d rounded up to a multiple of 64, zeros beyond d.
    pub stride: usize,
    /// W_enc transposed, bfloat16 [F,stride].
    pub encoder: &'a B,
    /// The encoder's input, bfloat16 [B,stride].
    pub x: &'a B,
    /// b_enc,j plus the room for its rounding, float32 [F].
    pub feature_base: &'a B,
    /// ‖w_j‖, rounded up, float32 [F].
    pub feature_norm: &'a B,
    /// ‖w_j − bf16(w_j)‖, rounded up, float32 [F].
    pub feature_residual: &'a B,
    /// ‖bf16(x_i)‖, rounded up, float32 [B].
    pub row_norm: &'a B,
    /// ‖x_i − bf16(x_i)‖ plus the accumulation's bound, rounded up, float32 [B].
    pub row_residual: &'a B,
    /// The mask, [F,words] words of 32 bits.
    pub mask: &'a B,
    /// ⌈B/32⌉ rounded up to a multiple of 4.
    pub words: usize,
}

/// Bytes that the devices of all ranks give each other.
#[derive(Debug)]
pub enum Move<'a, B> {
    /// Part k of `from` goes to rank k, and part k of `to` comes from there.
    AllToAll {
        /// As many parts as there are ranks.
        from: &'a B,
        /// As many again.
        to: &'a B,
        /// Bytes of a part.
        part: usize,
    },
    /// Part k comes from rank k, where it lies already.
    AllGather {
        /// As many parts as there are ranks.
        of: &'a B,
        /// Bytes of a part.
        part: usize,
    },
}

/// A machine that runs the kernels.
pub trait Device {
    /// Memory of the device. Freed when dropped, after the work that uses it.
    type Buffer;
    /// Memory of the host that kernels use where it lies: for the few numbers that enter a step and leave it, which then
    /// need no copy between steps. Freed when dropped, after the work that uses it.
    type Mailbox;
    /// Recorded work.
    type Graph;

    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Free bytes of memory at the moment.
    ///
    /// # Errors
    /// If the device does not answer.
    fn free_memory(&self) -> Result<usize, DeviceError>;

    /// Memory for `bytes` bytes, aligned to 256, with any content. `what` is named if there is none left.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver said.
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Self::Buffer, DeviceError>;

    /// A buffer's size in bytes.
    fn length(&self, buffer: &Self::Buffer) -> usize;

    /// A number that differs between buffers alive at the same time.
    fn identity(&self, buffer: &Self::Buffer) -> u64;

    /// Copies `bytes` into a buffer from byte `offset` on. `bytes` may be changed after the return.
    ///
    /// # Errors
    /// If the range is not within the buffer, or what the driver said.
    fn upload(&mut self, to: &mut Self::Buffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for all work and copies bytes of a buffer from `offset` on.
    ///
    /// # Errors
    /// If the range is not within the buffer, or what the driver said; errors of earlier work may show here.
    fn download(&mut self, from: &Self::Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Sets `bytes` bytes from `offset` on to 0.
    ///
    /// # Errors
    /// If the range is not within the buffer, or what the driver said.
    fn zero(&mut self, buffer: &mut Self::Buffer, offset: usize, bytes: usize) -> Result<(), DeviceError>;

    /// A mailbox of `bytes` zeros.
    ///
    /// # Errors
    /// What the driver said.
    fn mailbox(&mut self, bytes: usize) -> Result<Self::Mailbox, DeviceError>;

    /// The mailbox as an argument of kernels.
    fn memory<'a>(&self, mailbox: &'a Self::Mailbox) -> &'a Self::Buffer;

    /// Waits until posted work has left the mailbox, and puts `bytes` there from `offset` on.
    ///
    /// # Errors
    /// If the range is not within the mailbox, or what the driver said; errors of earlier work may show here.
    fn put(&mut self, mailbox: &mut Self::Mailbox, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Says that all work which uses the mailbox has been queued.
    ///
    /// # Errors
    /// What the driver said.
    fn post(&mut self, mailbox: &mut Self::Mailbox) -> Result<(), DeviceError>;

    /// Waits for the posted work (not for what was queued later) and reads what it left from `offset` on.
    ///
    /// # Errors
    /// If the range is not within the mailbox, or what the driver said; errors of earlier work may show here.
    fn collect(&mut self, mailbox: &Self::Mailbox, offset: usize, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Launches a kernel. A grid with a 0 in it is no launch.
    ///
    /// # Safety
    /// The arguments are what the kernel's parameters ask for, in number and type, and every buffer is as
    /// large as the kernel's description says for these arguments, grid and block.
    ///
    /// # Errors
    /// If the kernel cannot be compiled, loaded or launched.
    unsafe fn launch(&mut self, launch: &Launch<'_, Self::Buffer>) -> Result<(), DeviceError>;

    /// A dense product.
    ///
    /// # Errors
    /// If a factor or the product does not lie within its buffer, or what the library said.
    fn gemm(&mut self, gemm: &Gemm<'_, Self::Buffer>) -> Result<(), DeviceError>;

    /// Finds the candidates.
    ///
    /// # Errors
    /// If an array is smaller than [`Screen`] says, or as [`Device::launch`].
    fn screen(&mut self, screen: &Screen<'_, Self::Buffer>) -> Result<(), DeviceError>;

    /// Exchanges bytes with the devices of the other ranks, which are asked for the same at the same time. Never between the
    /// beginning and the end of a recording.
    ///
    /// # Errors
    /// Where this is nobody's peer, if parts do not lie within their buffers, or if a rank is lost.
    fn exchange(&mut self, moves: &[Move<'_, Self::Buffer>]) -> Result<(), DeviceError> {
        let _ = moves;
        let reason = "this device was not connected with those of other ranks".to_owned();
        Err(DeviceError::Failed { operation: "an exchange between devices".to_owned(), reason })
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// Errors of earlier work.
    fn synchronize(&mut self) -> Result<(), DeviceError>;

    /// Begins to record launches, products, screens and zeroings instead of running them. Returns whether the
    /// device can: where it answers false, what follows is run as always. Uploads and downloads are no part
    /// of what is recorded and do not happen in between.
    ///
    /// # Errors
    /// What the driver said.
    fn begin_recording(&mut self) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// Ends the recording, without running what was recorded.
    ///
    /// # Errors
    /// What the driver said.
    fn end_recording(&mut self) -> Result<Self::Graph, DeviceError>;

    /// Whether recorded work may be replayed now; false while every launch is measured.
    fn replays(&self) -> bool {
        true
    }

    /// Runs recorded work. Its buffers must still be alive.
    ///
    /// # Errors
    /// What the driver said.
    fn replay(&mut self, graph: &Self::Graph) -> Result<(), DeviceError>;
}
