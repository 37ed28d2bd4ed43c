"""Loads the agent's libraries without some modules that these load and the agent never uses.

They take 1.6 MiB of a process that runs for months:

- `importlib.metadata`, which brings `csv`, `zipfile` and more. websockets loads it for unreleased versions of
  itself, pydantic to search all packages for plugins, of which the agent needs none.
- `urllib.request`, which brings `http.client` and `email`. websockets looks for the system's proxies with it;
  the agent connects by itself, through the proxy of its settings.

While the libraries load, each is a stand-in. Import this before anything that makes a pydantic model.
"""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

_metadata = ModuleType("importlib.metadata")
_metadata.__dict__["entry_points"] = lambda **_: ()
_LOADED_WITHOUT = (
    ("pydantic.plugin._loader", _metadata),
    ("websockets.version", _metadata),
    ("websockets.proxy", ModuleType("urllib.request")),
)


def _load_without(name: str, stand_in: ModuleType) -> None:
    unused = stand_in.__name__
    was_loaded = sys.modules.setdefault(unused, stand_in) is not stand_in
    try:
        with suppress(ImportError):  # another version has no such part: it loads what it likes
            import_module(name)
    finally:
        if not was_loaded:
            del sys.modules[unused]


for _name, _stand_in in _LOADED_WITHOUT:
    _load_without(_name, _stand_in)
