"""The names of files: put together as paths, and made readable for people and messages.

It refuses to touch a disk: a name may be of a file that is not there.
"""

import os


def below(folder: str, *names: str) -> str:
    """The path of what is called `names` below `folder`."""
    return os.sep.join((folder, *names))  # noqa: PTH118  a Path for each would cost more than its file


def readable(name: str) -> str:
    """A file's name as text that any JSON reader takes: what is no printable text becomes `\ufffd`."""
    if name.isprintable():
        return name
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
