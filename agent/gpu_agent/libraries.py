"""Loads the agent's libraries without `importlib.metadata`, which they load and never use here.

It brings `csv`, `zipfile` and more: 0.8 MiB in a process that runs for months. websockets loads it for
unreleased versions of itself, pydantic to search all packages for plugins, of which the agent needs none.
While both load it, it is a stand-in. Import this before anything that makes a pydantic model.
"""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

_UNUSED = "importlib.metadata"
_LOADING_IT = ("pydantic.plugin._loader", "websockets.version")

_stand_in = ModuleType(_UNUSED)
_stand_in.__dict__["entry_points"] = lambda **_: ()
_was_loaded = sys.modules.setdefault(_UNUSED, _stand_in) is not _stand_in
try:
    for _name in _LOADING_IT:
        with suppress(ImportError):  # another version has no such part: it loads what it likes
            import_module(_name)
finally:
    if not _was_loaded:
        del sys.modules[_UNUSED]
