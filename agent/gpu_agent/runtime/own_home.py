"""This user's home, where there is one. It loads next to nothing: a probe pays for it."""

from pathlib import Path


def home() -> Path | None:
    """This user's home directory; None for a user who has none, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None
