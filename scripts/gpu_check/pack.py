"""Makes gpu/: all that the calls need on a machine without Rust and without a network."""

import hashlib
import pathlib
import re
import subprocess
import sys

from . import machine, provider

# What can be carried, of the working tree and gpu/ together.
LIMIT = 64 << 20
MIB = 1 << 20


def pack():
    folder = pathlib.Path("gpu")
    folder.mkdir(exist_ok=True)
    cargo = ["cargo", "build", "--release", "--locked", "-p", "sae-trainer", "-p", "activation-dump", "--bins", "--example",
             "gpu_check"]
    subprocess.run(cargo, check=True)
    release = machine.release_folder(pathlib.Path.cwd())
    programs = {"gpu_check": release / "examples/gpu_check", "sae-trainer": release / "sae-trainer",
                "activation-dump": release / "activation-dump", **{name: built_test(name) for name in ("cuda_kernels", "cuda_step")}}
    for name, built in programs.items():
        subprocess.run(["strip", "-o", folder / name, built], check=True)
    pack_onnxruntime(folder)
    return report(folder)


def built_test(name):
    """cargo's last words on a test: "Executable tests/x.rs (target/release/deps/x-0123456789abcdef)"."""
    command = ["cargo", "test", "--release", "--locked", "-p", "kernels", "--test", name, "--no-run"]
    done = subprocess.run(command, text=True, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return re.search(r"Executable.*\((.*)\)", done.stderr)[1]


def pack_onnxruntime(folder):
    """The archive, unless it is there and was made by this very code: it takes minutes."""
    archive, stamp = folder / "onnxruntime.tar.xz", folder / "onnxruntime.stamp"
    made_by = hashlib.sha256(pathlib.Path(provider.__file__).read_bytes()).hexdigest()
    if archive.exists() and stamp.exists() and stamp.read_text() == made_by:
        return
    provider.make(archive)
    stamp.write_text(made_by)


def report(folder):
    """Lists what is carried; an error if it is too much."""
    sizes = {str(path): path.stat().st_size for path in sorted(folder.iterdir())}
    tree = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], stdout=subprocess.PIPE,
                          check=True).stdout.decode().split("\0")
    sizes["the working tree"] = sum(path.stat().st_size for path in map(pathlib.Path, filter(None, tree)) if path.exists())
    for name, size in sizes.items():
        print(f"{size / MIB:8.2f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / MIB:8.2f} MiB  together, of {LIMIT // MIB}")
    if total > LIMIT:
        print("error: this is too much to be carried", file=sys.stderr)
        return 1
    return 0
