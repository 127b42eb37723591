"""Takes what Python needs to use PyTorch on the CPU out of its packages: python -c ... VERSION FOLDER_OF_WHEELS FOLDER_TO_MAKE.

The package is built for CUDA, and its library for Python wants libraries of CUDA's that have gigabytes. On a machine without a GPU nothing
in them is ever called, so libraries of the same names, in which each function does nothing, stand in for them. What is the same in
libtorch is a link to that, which lies beside the folder to be made.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

version, wheels, made = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

LIBRARIES = ["libtorch_python.so", "libshm.so", "libc10_cuda.so", "libtorch_global_deps.so"]
LINKS = ["libc10.so", "libtorch_cpu.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"]
# Which library has what is missing, by how its names begin; the last has all the rest.
STAND_INS = {"libcudnn.so.9": "cudnn", "libcufile.so.0": "cuFile", "libtorch.so": "none", "libtorch_cuda.so": ""}
# Names of PyTorch's and CUDA's: a C++ library's are to be found elsewhere.
OURS = re.compile(r"(_Z(N|NK|TIN|TVN)(2at|3c10|3sdp|4c10d|5torch)|cu|nv)")
# It gives a reference, to which is written while the library is loaded.
REFERENCES = ["_ZN4c10d15get_gil_checkerEv"]


def wanted(name):
    file = Path(name)
    is_library = file.parent.as_posix() == "torch/lib" and file.name in LIBRARIES
    is_module = file.parent.as_posix() == "torch" and file.name.startswith("_C.")
    is_source = file.suffix == ".py" and file.parts[0] in ("torch", "torchgen", "functorch")
    return is_library or is_module or is_source or name == "torch/bin/torch_shm_manager"


def symbols(kind, *libraries):
    """Names that libraries have, or miss; what is merely weak may be missing."""
    command = ["nm", "--dynamic", f"--{kind}-only", *map(str, libraries)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split() for line in lines]
    return {line[-1].split("@")[0] for line in fields if len(line) == 3 or line[:1] == ["U"]}


def assembly(names):
    lines = [".data", "place: .zero 64"]
    for name in names:
        if name.startswith("_ZTI"):  # What is said of a class: its kind, and its name.
            lines += [".balign 8", f".globl {name}", f".type {name}, @object"]
            lines += [f"{name}: .quad _ZTVN10__cxxabiv117__class_type_infoE + 16, {name}.name", f".size {name}, 16"]
            lines += [f'{name}.name: .asciz "{name[4:]}"']
        elif name.startswith("_ZTV"):  # Its functions, of which none is called.
            lines += [".balign 8", f".globl {name}", f".type {name}, @object", f"{name}: .zero 1024", f".size {name}, 1024"]
        else:
            gives = "leaq place(%rip), %rax" if name in REFERENCES else "xorl %eax, %eax"
            lines += [".text", f".globl {name}", f".type {name}, @function", f"{name}: {gives}", "ret", ".data"]
    return "\n".join(lines) + '\n.section .note.GNU-stack, "", @progbits\n'


def stand_in(library, names):
    source, versions = made / "stand-in.s", made / "versions"
    source.write_text(assembly(names))
    # Who is linked with it may ask for its names by its version.
    versions.write_text(f"{library} {{ global: *; }};\n")
    command = [os.environ.get("CXX", "c++"), "-shared", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    subprocess.run([*command, "-o", str(lib / library), str(source)], check=True)
    source.unlink()
    versions.unlink()


(wheel,) = wheels.glob("torch-*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in filter(wanted, archive.namelist()):
        archive.extract(name, made)
lib = made / "torch/lib"
libtorch = wheels.parent / f"libtorch-{version}/lib"
for name in LINKS:
    (lib / name).symlink_to(Path("../../..", libtorch.parent.name, "lib", name))
own = [lib / name for name in LIBRARIES]
there = symbols("defined", *own, *(libtorch / name for name in LINKS))
missing = sorted(name for name in symbols("undefined", *own) - there if OURS.match(name))
for library, start in STAND_INS.items():
    mine = [name for name in missing if name.startswith(start)]
    stand_in(library, mine)
    missing = [name for name in missing if name not in mine]
