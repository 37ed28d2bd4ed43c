"""Text that a node wrote, clipped where a message or a log event quotes it.

A node may write a megabyte; the registry stores, logs, sends and shows what it quotes. So no quote and no
sentence is longer than a person would read.
"""

LONGEST_QUOTE = 200
LONGEST_SENTENCE = 1000
"""Characters."""

_CUT = "…"


def quoted(text: str) -> str:
    """Quote one thing that somebody else wrote."""
    return _clipped(text, LONGEST_QUOTE)


def sentence(text: str) -> str:
    """Say a sentence that may hold quotes."""
    return _clipped(text, LONGEST_SENTENCE)


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT
