"""The notes that the hub's own downloader leaves in a plain folder: which revision came down.

`hf download --local-dir` writes `.cache/huggingface/download/<file>.metadata`, whose first line is
the commit. It refuses to take anything else for a revision.
"""

import re

from gpu_agent.probe.models.names import below
from gpu_agent.probe.models.tree import Tree

_NOTES = (".cache", "huggingface", "download")
_NOTE = ".metadata"
_REVISION = re.compile(rb"[0-9a-f]{40}(?=\s|$)")
_HEAD_BYTES = 64


def revision_noted(tree: Tree, folder: str) -> str | None:
    """The revision that the first note of a folder states."""
    try:
        for depth in range(1, len(_NOTES)):
            tree.enter(below(folder, *_NOTES[:depth]))  # a link on the way would lead out
        for entry in tree.folder(below(folder, *_NOTES)):
            if entry.name.endswith(_NOTE):
                match = _REVISION.match(tree.head(entry.path, _HEAD_BYTES))
                return match.group().decode() if match else None
    except OSError:
        return None  # no notes, or none that may be read
    return None
