"""Safetensors files by their heads, and the index that names their parts: is all of it here?

A file says in its header where its last tensor ends. It refuses to read a tensor, and a header beyond a
bound: such a file is taken at its word.
"""

from gpu_agent.probe.models.contents import object_in
from gpu_agent.probe.models.kinds import texts
from gpu_agent.probe.models.tree import Found, Tree, reason

SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_MAX_INDEX_BYTES = 8 << 20


def shortfall(tree: Tree, file: Found) -> str | None:
    """What a file lacks of what its header says; `None` when it is whole or cannot be told."""
    size = tree.size(file)
    try:
        length = int.from_bytes(tree.head(file.path, _LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            return "it ends within its header"
        if length > _MAX_HEADER_BYTES:
            return None
        header = tree.head(file.path, _LENGTH_BYTES + length)[_LENGTH_BYTES:]
    except OSError as error:
        return reason(error)
    if not header.startswith(b"{"):
        return "it has no header of a safetensors file"
    whole = _LENGTH_BYTES + length + _end(header)
    return None if size >= whole else f"{size} of {whole} bytes are here"


def parts_in(tree: Tree, index: Found) -> frozenset[str]:
    """The files that an index names."""
    try:
        text = tree.head(index.path, _MAX_INDEX_BYTES)
    except OSError:
        return frozenset()
    parts = object_in(text).get("weight_map")
    return frozenset(texts(list(parts.values()))) if isinstance(parts, dict) else frozenset()


def _end(header: bytes) -> int:
    """Where the last tensor ends, counted from the header's own end; 0 when the header does not tell."""
    ends = [0]
    for tensor in object_in(header).values():
        match tensor:
            case {"data_offsets": [int(), int(end)]}:
                ends.append(end)
            case _:
                pass  # the metadata, or nothing that this reader knows
    return max(ends)
