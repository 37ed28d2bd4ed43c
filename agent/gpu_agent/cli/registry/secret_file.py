"""A file for a secret: readable by its owner alone from its first moment, and whole or not there at all.

The file is opened before the secret exists, so that no secret is made which then finds no place.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.cli.outcome import ExitCode, Failure


@contextmanager
def secret_file(path: Path) -> Iterator[Callable[[str], None]]:
    """Hand out what writes the secret, mode 0600; raises `Failure` when the file cannot be made."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:

        def write(secret: str) -> None:
            try:
                file.write(f"{secret}\n")
                file.flush()
                os.fsync(descriptor)
                Path(name).replace(path)
            except OSError as error:
                raise _unwritable(path, error) from None

        try:
            yield write
        finally:
            with contextlib.suppress(FileNotFoundError):  # it has become the file
                Path(name).unlink()


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(
        f"{path} cannot be written ({error.strerror or error}): name another place with --out FILE",
        code=ExitCode.CONFIGURATION,
    )
