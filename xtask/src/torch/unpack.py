"""Takes what the CPU needs out of PyTorch's packages: python -c ... VERSION FOLDER_OF_WHEELS FOLDER_TO_MAKE."""

import shutil
import sys
import zipfile
from pathlib import Path

version, wheels, made = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

# libtorch_cuda.so must not be there: torch-sys would link it.
LIBRARIES = {
    "torch": ["libc10.so", "libtorch_cpu.so", "libtorch.so", "libgomp.so.1"],
    "nvidia_cuda_runtime": ["libcudart.so.13"],
    "nvidia_cuda_cupti": ["libcupti.so.13"],
}

for package, libraries in LIBRARIES.items():
    (wheel,) = wheels.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = Path(name)
            if name.startswith("torch/include/") and not name.endswith("/"):
                place = made / file.relative_to("torch")
            elif file.parent.name == "lib" and file.name in libraries:
                place = made / "lib" / file.name
            else:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

missing = [name for names in LIBRARIES.values() for name in names if not (made / "lib" / name).is_file()]
if missing:
    sys.exit(f"the packages do not have {', '.join(missing)}")
(made / "lib/libgomp.so").symlink_to("libgomp.so.1")
(made / "build-version").write_text(version + "\n")
