"""Bitsets: sets of small numbers as integers, and columns of small numbers as planes of bits.

An integer of n bits is a set of up to n positions. `&` intersects two of them in 0.3 µs for 100 000
positions, far faster than a scan in Python.
"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

_Key = TypeVar("_Key")

FEW = 32
"""Up to so many holders a posting is a plain set: a label that names one node must not cost a bitmap."""

_LAST_MEMBERS = 6
"""Among so few the steps from one to the next cost less than more halving."""


def members(bits: int) -> Iterator[int]:
    """List a set's positions, highest first."""
    while bits:
        position = bits.bit_length() - 1
        yield position
        bits ^= 1 << position


def bitset_of(positions: Sequence[int]) -> int:
    """Make a set of many positions at once, in time that does not grow with its square."""
    octets = bytearray(max(positions, default=0) // 8 + 1)
    for position in positions:
        octets[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(octets, "little")


def pick(bits: int, chance: float) -> int:
    """Pick a position of a set that is not empty, each as likely as any other; `chance` is from [0, 1)."""
    count = bits.bit_count()
    skipped, base = int(chance * count), 0
    while count > _LAST_MEMBERS:
        half = bits.bit_length() >> 1
        high = bits >> half
        above = high.bit_count()
        below = count - above
        if skipped < below:
            bits ^= high << half
            count = below
        else:
            skipped -= below
            base += half
            bits, count = high, above
    for _ in range(count - 1 - skipped):
        bits ^= 1 << bits.bit_length() - 1
    return base + bits.bit_length() - 1


class Column:
    """A number below `2 ** width` for each position, as one set of positions per binary digit."""

    __slots__ = ("_planes", "top")

    def __init__(self, width: int) -> None:
        self._planes = [0] * width
        self.top = (1 << width) - 1
        """The largest number that fits."""

    def change(self, bit: int, old: int, new: int) -> None:
        """Replace a position's number; `bit` is `1 << position`, and an unset position holds 0."""
        differing = old ^ new
        place = 0
        while differing:
            if differing & 1:
                self._planes[place] ^= bit
            differing >>= 1
            place += 1

    def best(self, among: int) -> int:
        """Keep those of `among` that hold the largest number there."""
        for plane in reversed(self._planes):
            if plane and (better := among & plane):
                among = better
        return among

    def at_least(self, least: int, among: int) -> int:
        """Keep those of `among` that hold `least` or more."""
        if not least:
            return among
        lowest = (least & -least).bit_length() - 1  # the places below it decide nothing
        enough, least = self._planes[lowest], least >> lowest
        for plane in self._planes[lowest + 1 :]:
            least >>= 1
            if least & 1:
                enough &= plane
            elif plane:
                enough |= plane
        return among & enough


class Postings(Generic[_Key]):
    """Which positions hold a key. A key without holders takes no room."""

    __slots__ = ("_few", "_many", "_one")

    def __init__(self) -> None:
        self._one: dict[_Key, int] = {}
        """The holder of a key that has one: a fleet has many models that are on one node only."""
        self._few: dict[_Key, set[int]] = {}
        self._many: dict[_Key, int] = {}

    def holders(self, key: _Key) -> int:
        """Return the set of positions that hold the key."""
        many = self._many.get(key)
        if many is not None:
            return many
        one = self._one.get(key)
        return _united(self._few.get(key, ())) if one is None else 1 << one

    def holders_of_any(self, keys: Iterable[_Key]) -> int:
        """Return the set of positions that hold at least one of the keys."""
        bits = 0
        for key in keys:
            bits |= self.holders(key)
        return bits

    def __iter__(self) -> Iterator[_Key]:
        """List the keys that have holders."""
        yield from self._one
        yield from self._few
        yield from self._many

    def move(self, position: int, old: AbstractSet[_Key], new: AbstractSet[_Key]) -> None:
        """Let a position hold the keys of `new` where it held those of `old`."""
        for key in old - new:
            self._remove(key, position)
        for key in new - old:
            self._add(key, position)

    def _add(self, key: _Key, position: int) -> None:
        if key in self._many:
            self._many[key] |= 1 << position
            return
        few = self._few.get(key)
        if few is None:
            first = self._one.pop(key, None)
            if first is None:
                self._one[key] = position
            else:
                self._few[key] = {first, position}
            return
        few.add(position)
        if len(few) > FEW:
            self._many[key] = _united(self._few.pop(key))

    def _remove(self, key: _Key, position: int) -> None:
        if key in self._many:
            left = self._many[key] ^ 1 << position
            if left:
                self._many[key] = left
            else:
                del self._many[key]
            return
        few = self._few.get(key)
        if few is None:
            del self._one[key]
            return
        few.remove(position)
        if len(few) == 1:
            self._one[key] = self._few.pop(key).pop()


def _united(positions: Iterable[int]) -> int:
    bits = 0
    for position in positions:
        bits |= 1 << position
    return bits
