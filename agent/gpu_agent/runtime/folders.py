"""A path as an owner writes it into a setting: `~` is the user's home.

Looks at nothing on a disk. Refuses what no path can be; why comes as a `ValueError` with the next step.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_NUL = "\0"


def _expanded(path: Path) -> Path:
    """Read `~` as the user's home, where there is one."""
    if _NUL in str(path):
        raise ValueError("a path holds no NUL character; write it without")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("it begins with ~, but that user has no home here; write the whole path") from None


Folder = Annotated[Path, AfterValidator(_expanded)]
"""A place on the disk, a file's or a folder's."""
