"""Compiles the fake NVML against NVIDIA's own header, with whatever C compiler there is."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_fake.c")
LIBRARY = "libnvidia-ml.so.1"


class CannotBuildError(Exception):
    """The machine lacks what the fake is made from; the message names the next step."""


def build(into: Path) -> Path:
    """Compile the library into a folder, and return that folder: it goes first in LD_LIBRARY_PATH."""
    into.mkdir(parents=True, exist_ok=True)
    made = into / LIBRARY
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-Werror"]
    command = [*_compiler(), *flags, "-I", str(_header_folder()), "-o", str(made), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode != 0:
        raise CannotBuildError(f"{' '.join(command)} failed:\n{result.stderr}")
    link = into / "libnvidia-ml.so"
    link.unlink(missing_ok=True)
    link.symlink_to(LIBRARY)
    return into


def _compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CannotBuildError(
        "No C compiler was found: install one (`apt install gcc`), or `pip install ziglang` into this venv."
    )


def _header_folder() -> Path:
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate())).parent
    raise CannotBuildError("nvml.h was not found: `pip install nvidia-nvml-dev` (it is in the dev group).")
