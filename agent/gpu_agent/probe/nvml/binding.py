"""The door to NVML's binding, `pynvml`, loaded without what the binding imports and never uses.

It imports `find_library` from `ctypes.util`, whose module brings `subprocess`, `shutil` and `tempfile`: a
quarter of the child's start. While it loads, that module is a stand-in, which loads the true one if anything
ever calls it.
"""

import sys
from types import ModuleType

_UNUSED = "ctypes.util"


def _find_library(name: str) -> str | None:
    from ctypes.util import find_library  # noqa: PLC0415 - see above

    return find_library(name)


_stand_in = ModuleType(_UNUSED)
_stand_in.__dict__["find_library"] = _find_library
_was_loaded = sys.modules.setdefault(_UNUSED, _stand_in) is not _stand_in
try:
    import pynvml as pynvml  # noqa: PLC0414 - exported
finally:
    if not _was_loaded:
        del sys.modules[_UNUSED]
