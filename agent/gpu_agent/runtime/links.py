"""Links that somebody else has put on the way to a place where we are about to write.

Whoever may make a link there chooses where our files go. It looks, and touches nothing.
"""

import os
import stat
from pathlib import Path

_SUPERUSER = 0


def strangers_link(path: Path) -> str | None:
    """Say which link on the way to a place neither we nor root have made, with the next step; None is well.

    Raises `OSError` where the way cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return None
    for place in (*reversed(path.absolute().parents), path.absolute()):
        try:
            found = place.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), _SUPERUSER):
            return f"{place} is a link that user {found.st_uid} has made; remove it"
    return None
