"""Ids that a person may have meant by one that nobody knows. The known ones are handed in."""

import difflib
from collections.abc import Iterable

SHOWN = 3
_LIKE = 0.75
"""Ids that a registry gave begin alike, so less likeness than this says nothing."""
_TELLING = 3
"""From so many letters on, a part of an id is taken for the whole."""


def nearest(meant: str, known: Iterable[str]) -> list[str]:
    """Return up to three known ids: those that hold what was written first, then those that look like it."""
    ids = list(known)
    word = meant.casefold()
    holding = [one for one in ids if len(word) >= _TELLING and word in one.casefold()]
    folded = {one.casefold(): one for one in ids}
    like = [folded[one] for one in difflib.get_close_matches(word, folded, SHOWN, _LIKE)]
    return list(dict.fromkeys([*holding, *like]))[:SHOWN]


def did_you_mean(meant: str, known: Iterable[str]) -> str:
    """Say it as the end of a sentence; empty when nothing is near."""
    found = nearest(meant, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""
