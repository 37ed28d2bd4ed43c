"""Places that the platform gives a process, where it gives one."""

from pathlib import Path

from platformdirs import user_state_path

_NO_HOME = Path("/nonexistent")
"""What Debian writes down as the home of who has none: what is looked for there is not there."""


def state_place(name: str) -> Path:
    """Where this user's programs keep their state, each by its name."""
    try:
        found = user_state_path(name, appauthor=False)
    except RuntimeError:
        found = Path()
    return found if found.is_absolute() else _NO_HOME / ".local" / "state" / name
