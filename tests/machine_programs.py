"""Stand-ins for programs of a machine, such as systemctl: they write down how they are called, and talk."""

import os
from pathlib import Path

import pytest


class MachinePrograms:
    """A folder of programs that is found before all others."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        self._calls = folder / "calls"
        self._calls.touch()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def say(self, name: str, text: str = "", *, code: int = 0) -> None:
        """Have a program say this, and end with that."""
        said = self._folder / f"{name}.said"
        said.write_text(text, encoding="utf-8")
        program = self._folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self._calls}\ncat {said}\nexit {code}\n')
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """How they were called, in order."""
        return self._calls.read_text(encoding="utf-8").splitlines()
