"""Whether the user of a service gets at the program that it is to run: by modes, and by the unit's own walls.

It judges, and opens nothing but folders on the way. What a list of further rights (an ACL) allows beyond the
modes it does not see.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

if sys.platform != "win32":
    import pwd

_READ, _ENTER = 4, 1
_OWNER_SHIFT, _GROUP_SHIFT, _OTHERS_SHIFT = 6, 3, 0
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named, not used
_SEEN_HOMES = frozenset({"no", "false", "off", "0", "read-only"})
_YES = frozenset({"yes", "true", "on", "1", "disconnected"})


@dataclass(frozen=True, slots=True)
class User:
    """Somebody by number; a user who is still to be made has none, and owns nothing."""

    name: str
    uid: int | None = None
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Closed:
    """The place where the way ends."""

    place: Path
    why: str
    path: Path | None = None
    """What it was the way to."""

    def __str__(self) -> str:
        """Say it as a part of a sentence."""
        return f"{self.place} ({self.why})"


def closed(paths: Iterable[Path], user: User, *, unit: str) -> Closed | None:
    """Find the first place on the way to any of the paths where a user of that unit cannot go on."""
    walls = tuple(_walls(unit))
    for path in paths:
        for place in _way(path):
            for wall, why in walls:
                if place.is_relative_to(wall):
                    return Closed(wall, why, path)
            found = _forbidden(place, user)
            if found is not None:
                return replace(found, path=path)
    return None


def user_named(name: str) -> User:
    """Look a user of this machine up."""
    if sys.platform == "win32":
        return User(name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return User(name)
    return User(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def _walls(unit: str) -> Iterator[tuple[Path, str]]:
    """What the unit hides from its service."""
    stated = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[:1].isalpha())
    homes = stated.get("ProtectHome", "no").strip().lower()
    if homes not in _SEEN_HOMES:
        yield from ((folder, f"the unit says ProtectHome={homes}") for folder in _HOMES)
    if stated.get("PrivateTmp", "no").strip().lower() in _YES:
        yield from ((folder, "the unit says PrivateTmp=yes") for folder in _TEMPORARY)


def _way(path: Path) -> Iterator[Path]:
    """Yield every place on the way to a path, from the root on, with those that links lead to."""
    resolved = path.resolve()
    for way in (path.absolute(), resolved) if resolved != path.absolute() else (resolved,):
        yield from reversed(way.parents)
        yield way


def _forbidden(place: Path, user: User) -> Closed | None:
    try:
        found = place.stat()
    except OSError as error:
        return Closed(place, error.strerror or str(error))
    needed = _ENTER if stat.S_ISDIR(found.st_mode) else _READ
    if user.uid is not None and found.st_uid == user.uid:
        shift = _OWNER_SHIFT
    elif found.st_gid in user.gids:
        shift = _GROUP_SHIFT
    else:
        shift = _OTHERS_SHIFT
    if found.st_mode >> shift & needed:
        return None
    return Closed(place, f"mode {stat.S_IMODE(found.st_mode):04o}, of user {found.st_uid}")
