"""Secrets taken out of words before anybody is shown them: tokens, and passwords in URLs.

It knows none of them: it goes by their shape.
"""

import re

REDACTED = "[redacted]"

_SECRET = re.compile(r"(gpu[jno]_[0-9a-f]{8}_)[A-Za-z0-9_-]+")

_SOUNDS = re.compile(r"(?i)token|secret|passw|credential|api.?key")

_PASSWORD = re.compile(r"(://[^\s/:@\"']*:)[^\s/@\"']+@")
"""What stands between a URL's user and its host."""


def sounds_secret(name: str) -> bool:
    """Say whether something of that name is likely to be one."""
    return _SOUNDS.search(name) is not None


def holds_token(text: str) -> bool:
    """Say whether a token of ours stands in a text."""
    return _SECRET.search(text) is not None


def without_secrets(line: str) -> str:
    """Keep a token's id and take its secret out, wherever it got in: a path, a fault's text, a traceback."""
    return _PASSWORD.sub(rf"\1{REDACTED}@", _SECRET.sub(rf"\1{REDACTED}", line))
