"""Compiles the fake NVML against NVIDIA's own header, with whatever C compiler there is."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from tests.c_compiler import CannotBuildError, shared_library

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
LIBRARY = "libnvidia-ml.so.1"


def build(into: Path, *, without: Iterable[str] = ()) -> Path:
    """Compile the library into a folder, and return that folder: it goes first in LD_LIBRARY_PATH.

    `without` names symbols that this library lacks, as an older driver does: looking one up fails.
    """
    absent = [f"-D{symbol}=absent_{symbol}" for symbol in without]
    shared_library(SOURCES, into / LIBRARY, "-I", str(_header_folder()), *absent)
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
