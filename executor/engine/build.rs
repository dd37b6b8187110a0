//! Compiles the engine's kernels, for the build for GPUs only: NVIDIA's compiler makes a GPU's own code of them, and puts PTX
//! beside it, of which the driver makes the code of newer GPUs when a model is loaded. Everything else needs no build script.
#![allow(clippy::panic, clippy::print_stdout, reason = "this is how a build fails, and how it tells Cargo anything")]

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 5] = ["attention", "layers", "answers", "stored", "eights"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // candle's own kernels are compiled for the same kind of GPU; 90 is Hopper.
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".to_owned());
    println!("cargo::rerun-if-changed=src/cuda/device.cuh");
    for kernel in KERNELS {
        let source = format!("src/cuda/{kernel}.cu");
        println!("cargo::rerun-if-changed={source}");
        let both = format!("-gencode=arch=compute_{capability},code=[sm_{capability},compute_{capability}]");
        compile(&source, &["-fatbin", &both], &out.join(format!("{kernel}.fatbin")));
    }
}

fn compile(source: &str, kind: &[&str], out: &Path) {
    let nvcc = std::env::var_os("NVCC").map(PathBuf::from);
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let nvcc = nvcc.or(home.filter(|nvcc| nvcc.is_file())).unwrap_or_else(|| "nvcc".into());
    let done = Command::new(&nvcc).args(["-std=c++17", "-O3"]).args(kind).arg("-o").arg(out).arg(source).status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{}: {source} was not compiled: {status}", nvcc.display()),
        Err(error) => {
            panic!("{}: {error}; `eval \"$(infra/cuda/setup)\"` provides NVIDIA's compiler", nvcc.display())
        }
    }
}
