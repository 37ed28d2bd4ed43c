"""A repository of a hub cache as the hub's own library leaves it, listed in as few steps as possible.

Nearly each is so: its blobs are files, none is being fetched, its refs are files that hold revisions which
are here, and its snapshots hold nothing but links to its blobs. A cache has thousands, so the way through one
is a straight line. Of any other repository nothing is said here: `huggingface` looks at it closely.
"""

import os
from itertools import islice
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

from gpu_agent.probe.models.files import FOLLOWS_NO_LINK, MAX_ENTRIES, READ_FLAGS
from gpu_agent.probe.models.source import Mark, Root

# A Path per entry of a large cache costs more than the stat behind it:
# ruff: noqa: PTH115

BLOBS, SNAPSHOTS, REFS = os.sep + "blobs", os.sep + "snapshots", os.sep + "refs"
INCOMPLETE = ".incomplete"
MAX_REF_BYTES = 256
_TO_BLOBS = os.pardir + os.sep + os.pardir + BLOBS + os.sep
"""How the links of a snapshot begin."""

_Watched = dict[str, Mark | None]


class PlainSnapshot(NamedTuple):
    """The files of one revision, by name."""

    revision: str
    names: tuple[str, ...]
    places: tuple[str, ...]
    """Where their bytes are."""


class PlainRepository(NamedTuple):
    """All that is in one repository, by revision, and what shows that it changed."""

    snapshots: list[PlainSnapshot]
    watched: _Watched


class _UnusualError(OSError):
    """The repository is not plain."""


def list_plain(root: Root, path: str) -> PlainRepository | None:
    """List a repository in a real folder; `None` where it is not plain."""
    watched: _Watched = {}
    try:
        places = _blobs(root, path + BLOBS, watched)
        revisions = _folder(root, path + SNAPSHOTS, watched)
        held = _held_by_refs(root, path + REFS, watched)
        snapshots, left = [], MAX_ENTRIES - len(places) - len(revisions) - len(held)
        for revision in revisions:
            snapshot = _snapshot(root, revision, places=places, watched=watched)
            snapshots.append(snapshot)
            left -= len(snapshot.names)
            if left < 0:
                return None
    except OSError:
        return None  # a close look meets it again, and reports it
    if not snapshots or not {snapshot.revision for snapshot in snapshots}.issuperset(held):
        return None
    snapshots.sort()
    return PlainRepository(snapshots, watched)


def _folder(root: Root, path: str, watched: _Watched) -> list[os.DirEntry[str]]:
    status = os.lstat(path)
    if not S_ISDIR(status.st_mode) or (status.st_dev != root.device and not root.holds(status)):
        raise _UnusualError
    with os.scandir(path) as entries:
        listed = list(islice(entries, MAX_ENTRIES))
    watched[path] = status.st_ino, status.st_mtime_ns, status.st_size
    return listed


def _blobs(root: Root, path: str, watched: _Watched) -> dict[str, str]:
    """The text of a link to each blob → the blob."""
    listed = _folder(root, path, watched)
    places = {_TO_BLOBS + blob.name: blob.path for blob in listed if blob.is_file(follow_symlinks=False)}
    if len(places) != len(listed) or INCOMPLETE in "/".join(places):
        raise _UnusualError
    return places


def _held_by_refs(root: Root, path: str, watched: _Watched) -> list[str]:
    """The revisions that the refs hold; a repository that was fetched by revision has no refs."""
    try:
        refs = _folder(root, path, watched)
    except FileNotFoundError:
        watched[path] = None
        return []
    return [_held_by(root, ref.path, watched) for ref in refs]


def _held_by(root: Root, path: str, watched: _Watched) -> str:
    if not FOLLOWS_NO_LINK:
        raise _UnusualError
    descriptor = os.open(path, READ_FLAGS)
    try:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode) or (status.st_dev != root.device and not root.holds(status)):
            raise _UnusualError
        text = os.read(descriptor, MAX_REF_BYTES)
    finally:
        os.close(descriptor)
    watched[path] = status.st_ino, status.st_mtime_ns, status.st_size
    return text.decode(errors="replace").strip()


def _snapshot(
    root: Root, revision: os.DirEntry[str], *, places: dict[str, str], watched: _Watched
) -> PlainSnapshot:
    if revision.name.startswith("."):
        raise _UnusualError
    path = revision.path
    names = [entry.name for entry in _folder(root, path, watched)]
    names.sort()
    begin = path + os.sep
    try:
        found = tuple([places[os.readlink(begin + name)] for name in names])
    except KeyError:
        raise _UnusualError from None  # it leads elsewhere, or nowhere
    return PlainSnapshot(revision.name, tuple(names), found)
