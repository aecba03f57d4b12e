//! Every kernel compiles for every architecture it is made for, and what it takes of a multiprocessor is known.
//! Needs the run-time compiler (`scripts/fetch-nvrtc`), no GPU.

use kernels::cuda::libraries::{ToolkitLibrary, load};
use kernels::cuda::nvrtc::{Architecture, Resources, compile, version};
use kernels::cuda::sources::{Source, kernels_for};
use rayon::prelude::*;

/// The capabilities that kernels are compiled for here: the lowest, and the one that has kernels of its own.
const CAPABILITIES: [(u32, u32); 2] = [(8, 0), (9, 0)];

fn load_compiler() {
    if let Err(searched) = load(ToolkitLibrary::Compiler) {
        panic!("no NVRTC: run scripts/fetch-nvrtc, or install a CUDA toolkit (searched: {searched:?})");
    }
}

fn resources(source: &Source, capability: (u32, u32)) -> Vec<Resources> {
    match compile(source, Architecture(capability)) {
        Ok(compiled) => {
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{} is no machine code", source.name);
            assert!(
                !compiled.resources.is_empty(),
                "{}.cu has no kernel, or the report changed",
                source.name
            );
            compiled.resources
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_kernel_compiles_without_spilling_registers() {
    load_compiler();
    println!("NVRTC {:?}", version());
    println!("{:>7}  {:16} {:28} {:>9} {:>9} {:>6}", "", "file", "kernel", "registers", "shared B", "spills");
    let mut spilling = Vec::new();
    for capability in CAPABILITIES {
        let sources: Vec<&Source> = kernels_for(capability).collect();
        let compiled: Vec<Vec<Resources>> =
            sources.par_iter().map(|source| resources(source, capability)).collect();
        for (source, kernels) in sources.iter().zip(compiled) {
            for kernel in kernels {
                let spills = kernel.spill_store_bytes + kernel.spill_load_bytes;
                println!(
                    "{:>7}  {:16} {:28} {:>9} {:>9} {:>6}",
                    Architecture(capability).to_string(),
                    source.name,
                    kernel.kernel,
                    kernel.registers,
                    kernel.shared_bytes,
                    spills
                );
                if spills > 0 {
                    spilling.push(format!("{} for {}", kernel.kernel, Architecture(capability)));
                }
            }
        }
    }
    assert!(spilling.is_empty(), "these spill registers to local memory: {spilling:?}");
}

#[test]
fn a_source_with_an_error_is_reported_with_the_compilers_words() {
    load_compiler();
    let source = Source { name: "wrong", text: "extern \"C\" __global__ void f() { int x = y; }" };
    let error = compile(&source, Architecture((8, 0))).unwrap_err().to_string();
    assert!(error.contains("wrong.cu") && error.contains("sm_80") && error.contains("\"y\""), "{error}");
}

#[test]
fn an_architecture_that_the_compiler_does_not_know_is_an_error() {
    load_compiler();
    let source = Source { name: "f", text: "extern \"C\" __global__ void f() {}" };
    let error = compile(&source, Architecture((7, 1))).unwrap_err().to_string();
    assert!(error.contains("sm_71"), "{error}");
}

#[test]
fn spilling_is_noticed() {
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
    let found = resources(&Source { name: "spill", text }, (8, 0));
    assert!(found[0].spill_store_bytes + found[0].stack_bytes > 0, "{found:?}");
}
