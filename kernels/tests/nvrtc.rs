//! Every kernel compiles for every architecture it targets, and its use of a multiprocessor's resources is known.
//! The tests need the run-time compiler (`scripts/fetch-nvrtc`) but no GPU.

use kernels::cuda::libraries::{ToolkitLibrary, load};
use kernels::cuda::nvrtc::{Architecture, Compiled, Waits, compile, version};
use kernels::cuda::sources::{Source, kernels_for};
use rayon::prelude::*;

/// The capabilities that kernels are compiled for here: the lowest, and the one that has kernels of its own.
const CAPABILITIES: [(u32, u32); 2] = [(8, 0), (9, 0)];

fn load_compiler() {
    if let Err(searched) = load(ToolkitLibrary::Compiler) {
        panic!("no NVRTC: run scripts/fetch-nvrtc, or install a CUDA toolkit (searched: {searched:?})");
    }
}

fn compiled(source: &Source, capability: (u32, u32)) -> Compiled {
    compiled_for(source, capability, Waits::Unbounded)
}

fn compiled_for(source: &Source, capability: (u32, u32), waits: Waits) -> Compiled {
    match compile(source, Architecture(capability), waits) {
        Ok(compiled) => {
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{} is no machine code", source.name);
            assert!(
                !compiled.resources.is_empty(),
                "{}.cu has no kernel, or the report changed",
                source.name
            );
            compiled
        }
        Err(error) => panic!("{error}"),
    }
}

/// What is wrong with a kernel's use of a multiprocessor, if anything: registers spilled, or other local memory (an array
/// that is indexed at run time), both of which turn accesses to registers into accesses to memory.
fn local_memory(found: &Compiled, capability: (u32, u32)) -> Vec<String> {
    let uses = found
        .resources
        .iter()
        .filter(|kernel| kernel.spill_store_bytes + kernel.spill_load_bytes + kernel.stack_bytes > 0);
    uses.map(|kernel| format!("{} for {}: {kernel:?}", kernel.kernel, Architecture(capability))).collect()
}

#[test]
fn every_kernel_compiles_without_remarks_or_spills() {
    load_compiler();
    println!("NVRTC {:?}", version());
    println!("{:>7}  {:16} {:28} {:>9} {:>9}", "", "file", "kernel", "registers", "shared B");
    let mut wrong = Vec::new();
    for capability in CAPABILITIES {
        let sources: Vec<&Source> = kernels_for(capability).collect();
        let all: Vec<Compiled> = sources.par_iter().map(|source| compiled(source, capability)).collect();
        for (source, compiled) in sources.iter().zip(&all) {
            for kernel in &compiled.resources {
                let architecture = Architecture(capability).to_string();
                println!(
                    "{architecture:>7}  {:16} {:28} {:>9} {:>9}",
                    source.name, kernel.kernel, kernel.registers, kernel.shared_bytes
                );
            }
            wrong.extend(local_memory(compiled, capability));
            wrong.extend(compiled.remarks.iter().map(|remark| format!("{}.cu: {remark}", source.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The registers that a kernel's warps begin with must fit the multiprocessor's 65,536, and so must what they take and give
/// back afterwards (setmaxnreg waits for ever for registers that nobody gives).
#[test]
fn the_registers_that_the_wgmma_screen_takes_are_there() {
    load_compiler();
    let source = kernels_for((9, 0)).find(|source| source.name == "encode_wgmma").unwrap();
    let count = |call: &str| -> u32 {
        let (_, rest) = source.text.split_once(call).unwrap_or_else(|| panic!("{call} is gone"));
        rest.split('>').next().unwrap().parse().unwrap()
    };
    let (gives, takes) = (count("give_registers<"), count("take_registers<"));
    let entry = compiled(source, (9, 0)).resources[0].registers;
    let pool = 3 * 128 * entry;
    assert!(
        pool <= 65_536 && 128 * gives + 2 * 128 * takes <= pool,
        "{entry} at first, then {gives} and {takes}"
    );
    assert!(gives < entry && takes > entry, "{entry} at first, then {gives} and {takes}");
    assert!([gives, takes].iter().all(|count| count % 8 == 0 && (24..=256).contains(count)));
}

/// The number of trap instructions (BPT, opcode 0x95c of the 16 bytes of an instruction) in a cubin's machine code.
fn traps(cubin: &[u8]) -> usize {
    let number = |at: usize, bytes: usize| {
        cubin[at..at + bytes].iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (sections, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    // Sections of code have the flag of executable instructions, 4.
    let code = (0..count).map(|at| sections + at * size).filter(|at| number(at + 8, 8) & 4 != 0);
    let instructions =
        code.flat_map(|at| cubin[number(at + 0x18, 8)..][..number(at + 0x20, 8)].chunks_exact(16));
    instructions.filter(|word| u16::from_le_bytes([word[0], word[1]]) & 0xfff == 0x95c).count()
}

#[test]
fn only_a_check_build_bounds_its_waits() {
    load_compiler();
    let source = kernels_for((9, 0)).find(|source| source.name == "encode_wgmma").unwrap();
    let [plain, check] = [Waits::Unbounded, Waits::Bounded].map(|waits| compiled_for(source, (9, 0), waits));
    // Both waits of the kernel, for a stage to be left and for one to be filled.
    assert_eq!((traps(&plain.cubin), traps(&check.cubin)), (0, 2));
    assert_eq!(local_memory(&check, (9, 0)), [""; 0]);
    assert_eq!(check.remarks, [""; 0], "products are as asynchronous as in the other build");
    let registers = |build: &Compiled| {
        build.resources.iter().find(|kernel| kernel.kernel == "encode_wgmma").unwrap().registers
    };
    assert_eq!(registers(&check), registers(&plain));
    // Nothing else waits within a kernel.
    for source in kernels_for((9, 0)).filter(|source| source.name != "encode_wgmma") {
        assert!(!source.text.contains("wait_for_phase"), "{}", source.name);
    }
}

#[test]
fn products_that_the_assembler_must_serialise_are_noticed() {
    load_compiler();
    let text = "#include \"hopper.cuh\"
    extern \"C\" __global__ void __launch_bounds__(128) f(float* out, unsigned long long a, unsigned long long b) {
        float sums[128] = {};
        fence_products();
        multiply_64x256(sums, a, b);
        for (int i = 0; i < 128; ++i) sums[i] += 1.0f;  // under way
        multiply_64x256(sums, a, b);
        commit_products();
        wait_products<0>();
        for (int i = 0; i < 128; ++i) out[i * 128 + threadIdx.x] = sums[i];
    }";
    let remarks = compiled(&Source { name: "f", text }, (9, 0)).remarks;
    assert!(remarks.iter().any(|remark| remark.contains("injected")), "{remarks:?}");
}

#[test]
fn an_ignored_request_for_registers_is_noticed() {
    load_compiler();
    // Without launch bounds nobody knows how many registers a warp begins with.
    let text = "#include \"hopper.cuh\"
    extern \"C\" __global__ void f(float* x) { take_registers<232>(); x[threadIdx.x] += 1.0f; }";
    let remarks = compiled(&Source { name: "f", text }, (9, 0)).remarks;
    assert!(remarks.iter().any(|remark| remark.contains("setmaxnreg")), "{remarks:?}");
}

#[test]
fn a_source_with_an_error_is_reported_with_the_compilers_words() {
    load_compiler();
    let source = Source { name: "wrong", text: "extern \"C\" __global__ void f() { int x = y; }" };
    let error = compile(&source, Architecture((8, 0)), Waits::Unbounded).unwrap_err().to_string();
    assert!(error.contains("wrong.cu") && error.contains("sm_80") && error.contains("\"y\""), "{error}");
}

#[test]
fn an_architecture_that_the_compiler_does_not_know_is_an_error() {
    load_compiler();
    let source = Source { name: "f", text: "extern \"C\" __global__ void f() {}" };
    let error = compile(&source, Architecture((7, 1)), Waits::Unbounded).unwrap_err().to_string();
    assert!(error.contains("sm_71"), "{error}");
}

#[test]
fn local_memory_is_noticed() {
    load_compiler();
    let text = "extern \"C\" __global__ void __launch_bounds__(1024) f(float* x) {
        float a[128];
        for (int i = 0; i < 128; ++i) a[i] = x[i * 1024 + threadIdx.x];
        for (int round = 0; round < 3; ++round) {
            #pragma unroll
            for (int i = 0; i < 128; ++i) a[i] = a[i] * a[(i * 7 + 1) % 128] + 1;
        }
        #pragma unroll
        for (int i = 0; i < 128; ++i) x[i * 1024 + threadIdx.x] = a[i];
    }";
    let found = compiled(&Source { name: "spill", text }, (8, 0));
    assert_eq!(local_memory(&found, (8, 0)).len(), 1, "{:?}", found.resources);
}
