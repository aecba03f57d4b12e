"""What there is on this machine: programs, NVIDIA's libraries, tools, room for files."""

import contextlib
import dataclasses
import glob
import os
import pathlib
import shutil
import site
import sys
import sysconfig
import tempfile

# What the engine loads, and what ONNX Runtime's CUDA provider loads besides.
LIBRARIES = ["libnvrtc-builtins.so.", "libnvrtc.so.", "libcublasLt.so.", "libcublas.so.", "libcudart.so.", "libcurand.so.",
             "libcufft.so.", "libcudnn.so."]
# Where tools lie that no PATH names.
TOOL_FOLDERS = ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/NVIDIA-Nsight-Compute*"]


@dataclasses.dataclass
class Programs:
    gpu_check: pathlib.Path
    trainer: pathlib.Path
    dump: pathlib.Path
    cuda_kernels: pathlib.Path | None
    cuda_step: pathlib.Path | None
    # A folder, or an archive of one; `None` where there is none for a GPU.
    onnxruntime: pathlib.Path | None


def programs(root, built_here):
    """Those in gpu/ if that is there, unless those `built_here` are asked for; else those that cargo built."""
    packed, built = root / "gpu", release_folder(root)
    if (packed / "gpu_check").exists() and not built_here:
        archive = packed / "onnxruntime.tar.xz"
        return Programs(packed / "gpu_check", packed / "sae-trainer", packed / "activation-dump", packed / "cuda_kernels",
                        packed / "cuda_step", archive if archive.exists() else None)
    found = Programs(built / "examples/gpu_check", built / "sae-trainer", built / "activation-dump",
                     newest(built / "deps", "cuda_kernels"), newest(built / "deps", "cuda_step"), None)
    if not found.gpu_check.exists():
        sys.exit(f"error: no {found.gpu_check}; run scripts/gpu-check pack, or cargo build --release --examples --bins")
    return found


def release_folder(root):
    """Where cargo puts what it builds."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or root / "target") / "release"


def newest(folder, test):
    """cargo's executable of a test: NAME-0123456789abcdef."""
    found = [path for path in folder.glob(f"{test}-*") if not path.suffix and os.access(path, os.X_OK)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def library_folders():
    """Folders with NVIDIA's libraries: those in the linker's path, then torch's wheels, which torch itself must find as they
    are, then toolkits. A toolkit can lack cuBLAS, and a variable can name one that is not there: each library is looked for by
    itself."""
    candidates = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    for packages in dict.fromkeys([sysconfig.get_paths()["purelib"], *site.getsitepackages()]):
        candidates += sorted(glob.glob(f"{packages}/nvidia/*/lib"))
    for toolkit in filter(None, [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]):
        candidates += [f"{toolkit}/{part}" for part in ("lib64", "lib", "targets/x86_64-linux/lib")]
    folders, missing = [], []
    for library in LIBRARIES:
        found = next((folder for folder in candidates if folder and glob.glob(f"{glob.escape(folder)}/{library}*")), None)
        if found is None:
            missing.append(library + "*")
        elif found not in folders:
            folders.append(found)
    return folders, missing


def tool(name):
    """A tool's path; it need not be on the PATH."""
    places = [place for pattern in TOOL_FOLDERS for place in sorted(glob.glob(pattern), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=":".join(places))


@contextlib.contextmanager
def scratch(out):
    """The parts' environment: NVIDIA's libraries in the linker's path, a cache of compiled kernels, which the next call finds, and SCRATCH, a folder
    for files, which is gone afterwards; OUT, the folder of what is kept."""
    folders, missing = library_folders()
    if missing:
        print(f"not found anywhere: {', '.join(missing)}", flush=True)
    path = dict.fromkeys([*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *folders])
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, path)), "SCRATCH": folder, "OUT": str(out)}
        environment.setdefault("XDG_CACHE_HOME", f"{tempfile.gettempdir()}/gpu-check-cache")
        yield environment
