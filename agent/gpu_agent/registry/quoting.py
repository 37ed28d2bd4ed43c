"""Text that a node wrote, clipped where a message or a log event quotes it.

A node may write a megabyte; the registry stores, logs, sends and shows what it quotes. So no quote and no
sentence is longer than a person would read.
"""

from collections.abc import Iterable
from unicodedata import category

LONGEST_QUOTE = 200
LONGEST_SENTENCE = 1000
"""Characters."""

SHOWN_NAMES = 8
"""Of a list of many names."""

_CUT = "…"
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def clip_quote(text: str) -> str:
    """Clip one thing that a node wrote."""
    return _clip(text, LONGEST_QUOTE)


def clip_sentence(text: str) -> str:
    """Clip a sentence that may hold quotes."""
    return _clip(text, LONGEST_SENTENCE)


def one_line(text: str) -> str:
    """Reduce a text to a line that shows as it is, without control and bidi characters."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or category(one) == "Zs" else _UNPRINTABLE for one in text)


def listed(names: Iterable[str], *, in_order: bool = False, empty: str = "none") -> str:
    """List a few of many names, sorted unless they come in an order of their own."""
    known = list(names) if in_order else sorted(names)
    shown = known[:SHOWN_NAMES]
    more = len(known) - len(shown)
    return ", ".join(map(clip_quote, shown)) + (f" and {more} more" if more else "") if shown else empty


def _clip(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT
