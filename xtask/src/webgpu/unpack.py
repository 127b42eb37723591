"""Takes ONNX Runtime's library out of its package: python -c ... VERSION FOLDER_OF_WHEELS FOLDER_TO_MAKE."""

import shutil
import sys
import zipfile
from pathlib import Path

version, wheels, made = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

(wheel,) = wheels.glob("onnxruntime_webgpu-*.whl")
made.mkdir(parents=True)
with zipfile.ZipFile(wheel) as archive:
    library = archive.open(f"onnxruntime/capi/libonnxruntime.so.{version}")
    with library as source, (made / "libonnxruntime.so").open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
