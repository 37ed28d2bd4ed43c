"""Words from elsewhere, made safe for a terminal: no name or reason may move its cursor or colour it."""


def printable(words: object) -> str:
    """Write what cannot be seen as an escape; line ends too, so that a line stays one."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
