"""Safetensors files: whether one is whole, by its header, which says where the last tensor ends."""

import re
from bisect import bisect_left

from gpu_agent.probe.models.file_cursor import FileCursor, ForeignFileError, foreign_content

# The format is that of github.com/huggingface/safetensors: the header's length in eight bytes, a JSON object,
# then the tensors, whose `data_offsets` count from the header's end. The JSON is searched, not parsed: ten
# times as fast, and in pieces.

_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000
"""The format's own bound."""
_OFFSETS = re.compile(rb'"data_offsets"[^",]*,\s*(\d{1,30})')
r"""No text in the header can look so: JSON writes a quotation mark within one as `\"`.

Wider than the format where that costs nothing: of what it admits, the end is never overlooked.
"""
_USUAL_OFFSETS = b'"data_offsets":['
"""As the format's own library writes them."""
USUAL_HEADER_BYTES = 16_384
"""Nearly each header is shorter."""
_LONGEST_MATCH_BYTES = 256
_PIECE_BYTES = 1 << 20
_NO_HEADER = "it has no header of a safetensors file"


def safetensors_problem(cursor: FileCursor) -> str | None:
    """What the file lacks of what its header states; `None` when it is whole.

    Raises:
        CutShortError: it ends within its header.
        ForeignFileError: it is no file of this format.
    """
    head, at = cursor.window(min(_LENGTH_BYTES + 1, cursor.size))
    length = int.from_bytes(head[at : at + _LENGTH_BYTES], "little")
    first = head[at + _LENGTH_BYTES : at + _LENGTH_BYTES + 1]
    if length > _LONGEST_HEADER_BYTES or first not in (b"", b"{"):
        raise ForeignFileError(foreign_content(cursor.peek(512)) or _NO_HEADER)
    whole = _LENGTH_BYTES + length
    piece = cursor.read(min(_PIECE_BYTES, whole))
    if is_plainly_whole(piece, cursor.size):
        return None
    end = _largest(_OFFSETS.findall(piece))
    while cursor.position < whole:
        rest = piece[-_LONGEST_MATCH_BYTES:]  # a match that the end of a piece cuts is found with the next
        piece = rest + cursor.read(min(_PIECE_BYTES, whole - cursor.position))
        end = max(end, _largest(_OFFSETS.findall(piece)))
    if not piece.rstrip().endswith(b"}"):
        raise ForeignFileError(_NO_HEADER)
    whole += end
    return None if cursor.size >= whole else f"{cursor.size} of {whole} bytes are here"


def is_plainly_whole(head: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is seen to be whole; False where that takes a closer look.

    The format allows neither holes nor overlaps, and its library loads no file that has any. So where a
    tensor ends at the file's end and none begins there, it is the last. It takes a fifth of the time of a
    look at each.
    """
    whole = _LENGTH_BYTES + int.from_bytes(head[:_LENGTH_BYTES], "little")
    if whole > len(head) or head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        return False
    end = size - whole
    at = head.rfind(b",%d]" % end, 0, whole)
    begin = head.rfind(_USUAL_OFFSETS, 0, max(at, 0)) + len(_USUAL_OFFSETS)
    return (
        begin > _LENGTH_BYTES + len(_USUAL_OFFSETS)
        and head[begin:at].isdigit()
        and head.rfind(b"%b%d," % (_USUAL_OFFSETS, end), 0, whole) < 0  # in a third of the time of `in`
        and head[at:whole].rstrip().endswith(b"}")
    )


def _largest(numbers: list[bytes]) -> int:
    """The largest of numbers without leading zeros: of the longest the last in order, found as texts.

    To convert each takes three times as long.
    """
    if not numbers:
        return 0
    numbers.sort(key=len)
    return int(max(numbers[bisect_left(numbers, len(numbers[-1]), key=len) :]))
