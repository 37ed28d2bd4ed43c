"""ONNX files: whether all of the model is here, and what other files hold its weights.

A model is a protobuf message, `ModelProto` in `onnx/onnx.proto` of github.com/onnx/onnx, and the numbers of
the fields are from there. Each message says how long it is, so the weights within are skipped. A message at
the top says nothing of those after it: a model counts as whole when it has the graph and the version of the
operators, which no checker lets it lack. Tensors in other files follow `docs/ExternalData.md`.
"""

from collections.abc import Iterator, Mapping
from posixpath import isabs, normpath

from gpu_agent.probe.models.file_cursor import (
    CutShortError,
    FileCursor,
    ForeignFileError,
    LongHeaderError,
    foreign_content,
)

_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5
_IR_VERSION, _GRAPH, _OPERATORS = 1, 7, 8
_OPERATORS_SINCE = 3
"""Files of an older version have no version of their operators."""
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_ELSEWHERE = 1
_NESTED = {  # what may hold a tensor, as type → field → the type of that field
    "graph": {_NODE: "node", _INITIALIZER: "tensor", _SPARSE: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MARK = b"location"
"""A node holds it if one of its tensors is elsewhere."""
_SHORT_BYTES = 65_536
_DEEPEST = 24
_MOST_FIELDS = 200_000
"""Looked at in one file, which takes half a second; large models have a tenth."""
_MOST_FILES = 10_000
_LONGEST_TEXT = 4_096
_MOST_ELEMENTS = 1 << 63
"""Of a tensor; ONNX counts them in 64 bits. A number without bound takes minutes to multiply."""
_MOST_DIGITS = 20
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64}
_BITS |= {15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
"""Data type of a tensor → bits of an element."""
_MORE = 0x80
"""Bit of a byte of a number: another follows."""
_LONGEST_VARINT_BITS = 70
_NO_FILE = "it is no ONNX file"


def onnx_external_data(cursor: FileCursor) -> Mapping[str, int]:
    """The files that hold weights of a model, from its own folder → how many bytes each must have at least.

    Raises:
        CutShortError: the model ends early.
        ForeignFileError: it is no model, or its weights are outside of its folder.
    """
    foreign = foreign_content(cursor.peek(512))
    if foreign:
        raise ForeignFileError(foreign)
    walk = _Walk(cursor)
    graph: tuple[int, int] | None = None
    version, operators = 0, False
    for number, value in walk.fields(cursor.size):
        if number == _IR_VERSION:
            version = value
        elif number == _GRAPH:
            graph = cursor.position, value
        operators = operators or number == _OPERATORS
    if version == 0 and graph is None:
        raise ForeignFileError(_NO_FILE)
    if graph is None or (version >= _OPERATORS_SINCE and not operators):
        raise CutShortError
    return walk.external_data(*graph)


class _Walk:
    """Goes through the messages of one file, up to a bound."""

    def __init__(self, cursor: FileCursor) -> None:
        self._cursor = cursor
        self._left = _MOST_FIELDS
        self._needed: dict[str, int] = {}

    def external_data(self, position: int, length: int) -> Mapping[str, int]:
        """What the graph at this position needs; what is beyond the bound is not looked at."""
        try:
            self._cursor.move_to(position)
            self._visit("graph", position + length)
        except (_EnoughError, LongHeaderError):
            pass
        return self._needed

    def fields(self, end: int) -> Iterator[tuple[int, int]]:
        """Number and value of each field up to `end`; of a text or message its length.

        The position is where its content begins, and may be moved within it before the next is asked for.
        """
        cursor = self._cursor
        while cursor.position < end:
            self._left -= 1
            if self._left < 0:
                raise _EnoughError(_NO_FILE)
            number, wire = divmod(self._varint(), 8)
            if wire == _VARINT:
                yield number, self._varint()
            elif wire == _MESSAGE:
                length = self._varint()
                after = cursor.position + length
                if after > end and end < cursor.size:
                    raise ForeignFileError(_NO_FILE)
                yield number, length
                cursor.move_to(after)
            elif wire in (_FIXED32, _FIXED64):
                cursor.move_to(cursor.position + (4 if wire == _FIXED32 else 8))
            else:
                raise ForeignFileError(_NO_FILE)
            if number == 0:
                raise ForeignFileError(_NO_FILE)

    def _visit(self, kind: str, end: int, depth: int = 0) -> None:
        """Find the tensors in a graph, a node, or what else may hold them."""
        if depth > _DEEPEST:
            raise _EnoughError(_NO_FILE)
        cursor = self._cursor
        for number, length in self.fields(end):
            nested = _NESTED[kind].get(number)
            if nested == "tensor":
                self._visit_tensor(cursor.position + length)
            elif nested == "node" and length <= _SHORT_BYTES:
                position = cursor.position
                if _MARK in cursor.read(length):
                    cursor.move_to(position)
                    self._visit(nested, position + length, depth + 1)
            elif nested:
                self._visit(nested, cursor.position + length, depth + 1)

    def _visit_tensor(self, end: int) -> None:
        elements, data_type, elsewhere = 1, 0, False
        stated: dict[str, str] = {}
        for number, value in self.fields(end):
            match number:
                case 1:  # dims
                    elements = min(elements * value, _MOST_ELEMENTS)
                case 2:  # data_type
                    data_type = value
                case 13:  # external_data
                    stated.update(self._entry(self._cursor.position + value))
                case 14:  # data_location
                    elsewhere = value == _ELSEWHERE
                case _:
                    pass
        if elsewhere:
            self._need(stated, elements * _BITS.get(data_type, 0) // 8)

    def _need(self, stated: Mapping[str, str], least_bytes: int) -> None:
        place = stated.get("location", "")
        name = normpath(place)
        if not place:
            raise ForeignFileError("it names no file for its weights")
        if isabs(place) or name.split("/")[0] in ("..", ".") or "\\" in name:
            raise ForeignFileError("its weights are outside of its folder")
        try:
            length = int(stated["length"][:_MOST_DIGITS]) if "length" in stated else least_bytes
            offset = int(stated.get("offset", "0")[:_MOST_DIGITS])
        except ValueError:
            offset = length = -1
        if offset < 0 or length < 0:
            raise ForeignFileError("it does not say how many bytes of another file it needs")
        if len(self._needed) == _MOST_FILES and name not in self._needed:
            raise _EnoughError(_NO_FILE)
        self._needed[name] = max(offset + length, self._needed.get(name, 0))

    def _entry(self, end: int) -> dict[str, str]:
        """Key and value of a `StringStringEntryProto`."""
        texts = {1: "", 2: ""}
        for number, length in self.fields(end):
            if number in texts and length <= _LONGEST_TEXT:
                texts[number] = self._cursor.read(length).decode(errors="replace")
        return {texts[1]: texts[2]}

    def _varint(self) -> int:
        cursor = self._cursor
        value = cursor.read_byte()
        if value < _MORE:
            return value
        value -= _MORE
        for shift in range(7, _LONGEST_VARINT_BITS, 7):
            byte = cursor.read_byte()
            value |= (byte & (_MORE - 1)) << shift
            if byte < _MORE:
                return value
        raise ForeignFileError(_NO_FILE)


class _EnoughError(ForeignFileError):
    """More fields, files or levels than any known model has."""
