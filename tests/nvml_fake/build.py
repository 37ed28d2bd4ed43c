"""Compiles the fake NVML against NVIDIA's own header, with whatever C compiler there is."""

import importlib.metadata
from pathlib import Path

from tests.c_compiler import CannotBuildError, shared_library

SOURCE = Path(__file__).with_name("nvml_fake.c")
LIBRARY = "libnvidia-ml.so.1"


def build(into: Path) -> Path:
    """Compile the library into a folder, and return that folder: it goes first in LD_LIBRARY_PATH."""
    shared_library(SOURCE, into / LIBRARY, "-I", str(_header_folder()))
    link = into / "libnvidia-ml.so"
    link.unlink(missing_ok=True)
    link.symlink_to(LIBRARY)
    return into


def _header_folder() -> Path:
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate())).parent
    raise CannotBuildError("nvml.h was not found: `pip install nvidia-nvml-dev` (it is in the dev group).")
