"""Makes ONNX Runtime with its CUDA provider small enough to be carried to a machine without a network.

The PyPI wheel `onnxruntime-gpu` holds the provider with machine code for six architectures and for many kernels of quantized
and mixture-of-experts models and of generation, 284 MB that hardly compress. Here the machine code of other architectures and
of kernels that prefixes of a model never call is overwritten with zeros. Nothing moves; the driver reads a kernel's code only
when the first kernel of its file is launched.
"""

import collections
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile

VERSION = "1.31.1"
WHEEL_HASH = "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7"  # SHA-256, CPython 3.12, x86-64
PROVIDER = "libonnxruntime_providers_cuda.so"
CAPI = "onnxruntime/capi/"
FILES = [f"{CAPI}libonnxruntime.so.{VERSION}", f"{CAPI}libonnxruntime_providers_shared.so", CAPI + PROVIDER,
         "onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"]

ARCHITECTURE = 90
# Files all of whose kernels have one of these in their names are left out: mixtures of experts, products of quantized weights,
# attention over a cache of keys and values.
UNUSED = re.compile(rb"[mM]oe|MixedInput|GemmUniversal|fpA_intB|splitkv|masked_multihead")

FATBIN_MAGIC = b"\x50\xed\x55\xba"
ELF = 2  # the kind of an entry that is machine code


def make(archive):
    """Writes the archive of the libraries and their licences."""
    if shutil.which("zstd") is None:
        sys.exit("error: the kernels' names are read with zstd, which is not installed")
    with tempfile.TemporaryDirectory(dir=archive.parent) as work:
        work = pathlib.Path(work)
        wheel = download(work)
        folder = work / "onnxruntime"
        folder.mkdir()
        with zipfile.ZipFile(wheel) as files:
            for name in FILES:
                (folder / pathlib.Path(name).name).write_bytes(files.read(name))
        library = bytearray((folder / PROVIDER).read_bytes())
        print(f"{PROVIDER}: {dict(slim(library))}", flush=True)
        (folder / PROVIDER).write_bytes(library)
        made = work / archive.name
        with tarfile.open(made, "w:xz", preset=6) as out:
            for file in sorted(folder.iterdir()):
                out.add(file, file.name)
        made.rename(archive)


def download(work):
    """The wheel, checked by pip against its hash."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"onnxruntime-gpu=={VERSION} --hash=sha256:{WHEEL_HASH}\n")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
                    "--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--abi", "cp312", "--python-version",
                    "3.12", "--platform", "manylinux_2_28_x86_64", "--dest", work, "--requirement", requirements], check=True)
    return next(work.glob("*.whl"))


def slim(library):
    """Overwrites machine code that is not needed; how many bytes were kept and dropped."""
    count = collections.Counter(kept=0, dropped=0)
    position = 0
    while (position := library.find(FATBIN_MAGIC, position)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", library, position + 4)
        end = position + header + size
        if version != 1 or header != 16 or end > len(library):
            position += len(FATBIN_MAGIC)  # these bytes by chance
            continue
        entry = position + header
        while entry < end:
            # Kind, version, sizes of the entry's header and payload; the compressed size, the architecture.
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
            compressed, = struct.unpack_from("<I", library, entry + 16)
            architecture, = struct.unpack_from("<I", library, entry + 28)
            payload = entry + entry_header
            if kind == ELF:
                needed = architecture == ARCHITECTURE and is_needed(library[payload:payload + compressed])
                count["kept" if needed else "dropped"] += entry_size
                if not needed:
                    library[payload:payload + entry_size] = bytes(entry_size)
            entry = payload + entry_size
        position = end
    if not count["kept"]:
        sys.exit(f"error: {PROVIDER} holds no machine code for architecture {ARCHITECTURE} in the format known here")
    return count


def is_needed(compressed):
    """Whether any kernel in an ELF file, compressed by zstd, may be called."""
    code = subprocess.run(["zstd", "--decompress", "--stdout"], input=compressed, stdout=subprocess.PIPE, check=True).stdout
    kernels = re.findall(rb"\0\.text\.([\w$.]+)", code)
    return not kernels or not all(UNUSED.search(kernel) for kernel in kernels)
