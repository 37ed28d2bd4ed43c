"""A fake libcuda, compiled on the spot, and the file that says what goes wrong in it (`cuda_fake.c`)."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from tests.c_compiler import shared_library

SOURCE = Path(__file__).parent / "cuda_fake.c"
LIBRARY = "libcuda.so.1"


@functools.cache
def built_library() -> Path:
    """The folder that holds the library, made once per test process and removed with it."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-fake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shared_library([SOURCE], folder / LIBRARY)
    return folder


class FakeCuda:
    """The library as the check's process finds it, and its control file."""

    def __init__(self, folder: Path) -> None:
        self.control = folder / "cuda.control"
        self.control.write_text("")

    def state(self, *lines: str) -> None:
        """Say what goes wrong from now on: all of it."""
        new = self.control.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.control)

    def environ(self) -> dict[str, str]:
        """An environment in which the library is found."""
        older = os.environ.get("LD_LIBRARY_PATH")
        path = os.pathsep.join([str(built_library()), *([older] if older else [])])
        return {**os.environ, "LD_LIBRARY_PATH": path, "CUDA_FAKE_CONTROL": str(self.control)}
