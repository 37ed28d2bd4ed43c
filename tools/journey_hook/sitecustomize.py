"""Counts the functions of `gpu_agent` that a process calls. Python imports it from PYTHONPATH by itself.

`tools.journeys` starts each program with this folder on its path and names a directory in JOURNEY_TRACE. The
file `window` there holds what to record: a name, and perhaps values to follow. On a change of that file every
process writes what it has counted to `<window>.<pid>.json`, starts again at 0, and confirms with
`ready.<pid>`.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType

_POLL_SECONDS = 0.005
_PACKAGE = f"{os.sep}gpu_agent{os.sep}"
_OPTIMIZED = 0x1
"""`CO_OPTIMIZED`: a function's code; bodies of modules and classes lack it."""
_MAX_DEPTH, _MAX_ITEMS = 7, 64


class _Recorder:
    """The counters of the present window. With `values`, only calls that pass one of them count."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._window = ""
        self._values: tuple[str, ...] = ()
        self._calls: dict[CodeType, list[float]] = {}
        """When a function was called first, and how often."""

    def begin(self) -> None:
        """Start to record, and to look for the next window."""
        self._follow()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        threading.Thread(target=self._watch, name="journey", daemon=True).start()

    def _watch(self) -> None:
        sys.setprofile(None)
        wait = threading.Event()
        while True:
            self._follow()
            wait.wait(_POLL_SECONDS)

    def _follow(self) -> None:
        try:
            window = (self._folder / "window").read_text(encoding="utf-8")
        except OSError:
            return
        if window == self._window:
            return
        name, *values = window.split()
        self._values = tuple(values)  # first, so that the new window holds nothing unfiltered
        self.write()
        self._window = window
        (self._folder / f"ready.{os.getpid()}").write_text(name, encoding="utf-8")

    def write(self) -> None:
        """Write the window's counters; what is counted from now on belongs to the next."""
        calls, self._calls = self._calls, {}
        if not self._window:
            return
        counted = [
            {
                "at": at,
                "file": code.co_filename.rpartition(_PACKAGE)[2],
                "function": code.co_qualname,
                "calls": int(count),
            }
            for code, (at, count) in calls.items()
        ]
        target = self._folder / f"{self._window.split()[0]}.{os.getpid()}.json"
        target.write_text(json.dumps(counted), encoding="utf-8")

    def _profile(self, frame: FrameType, event: str, value: object) -> None:
        code = frame.f_code
        if _PACKAGE not in code.co_filename or not code.co_flags & _OPTIMIZED or _is_import(frame):
            return
        if self._values:
            passed = self._arguments(frame) if event == "call" else [value] if event == "return" else []
            if code not in self._calls and any(_holds(one, self._values, _MAX_DEPTH) for one in passed):
                self._calls[code] = [time.monotonic(), 1]
        elif event == "call":
            self._calls.setdefault(code, [time.monotonic(), 0])[1] += 1

    @staticmethod
    def _arguments(frame: FrameType) -> list[object]:
        """What a call is handed; not the object that it belongs to, which may hold the value already."""
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]


def _is_import(frame: FrameType) -> bool:
    """Whether the call is a part of importing a module of the package; running one as a program is not."""
    caller = frame.f_back
    while caller is not None:
        code = caller.f_code
        if code.co_name == "<module>" and _PACKAGE in code.co_filename:
            return str(caller.f_globals.get("__name__")) != "__main__"
        caller = caller.f_back
    return False


def _holds(value: object, wanted: tuple[str, ...], depth: int) -> bool:
    """Whether one of the values stands in there: a number by itself, or its digits in a text."""
    if isinstance(value, bool) or value is None or depth == 0:
        return False
    if isinstance(value, int | float):
        return str(value) in wanted
    if isinstance(value, str | bytes | bytearray):
        text = value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
        return any(one in text for one in wanted)
    return any(_holds(one, wanted, depth - 1) for one in _parts(value))


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())[:_MAX_ITEMS]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[:_MAX_ITEMS]
    if not type(value).__module__.startswith("gpu_agent"):
        return []
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    known = {**getattr(value, "__dict__", {}), **{name: getattr(value, name, None) for name in slots}}
    return list(known.values())[:_MAX_ITEMS]


if "JOURNEY_TRACE" in os.environ:
    import atexit

    _recorder = _Recorder(Path(os.environ["JOURNEY_TRACE"]))
    atexit.register(_recorder.write)
    _recorder.begin()
