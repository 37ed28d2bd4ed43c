"""Places that the platform gives a process, where it gives one."""

from pathlib import Path


def home() -> Path | None:
    """This user's home directory; None for a user who has none, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None
