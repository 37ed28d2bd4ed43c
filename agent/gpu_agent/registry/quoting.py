"""Text that a node wrote, clipped where a message or a log event quotes it.

A node may write a megabyte; the registry stores, logs, sends and shows what it quotes. So no quote and no
sentence is longer than a person would read.
"""

LONGEST_QUOTE = 200
LONGEST_SENTENCE = 1000
"""Characters."""

_CUT = "…"


def clip_quote(text: str) -> str:
    """Clip one thing that a node wrote."""
    return _clip(text, LONGEST_QUOTE)


def clip_sentence(text: str) -> str:
    """Clip a sentence that may hold quotes."""
    return _clip(text, LONGEST_SENTENCE)


def _clip(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT
