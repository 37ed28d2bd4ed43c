"""A machine for the service's commands: a folder for its root, and stand-ins for systemd's programs."""

from pathlib import Path

import pytest

from gpu_agent.runtime.systemd.install import Machine, Program, User
from tests.machine_programs import MachinePrograms


class ServiceMachine:
    """Root asks, and systemd runs it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "root"
        self.programs = MachinePrograms(folder / "bin", monkeypatch)
        for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles", "journalctl"):
            self.programs.say(name)
        self.programs.say("systemctl", code=0)
        self._source = folder / "systemd"
        self._source.mkdir()
        for component in ("agent", "registry"):
            unit = f"[Unit]\n\n[Service]\nExecStart=/usr/bin/gpu-agent {component}\n"
            (self._source / f"gpu-{component}.service").write_text(unit)
            (self._source / f"gpu-{component}.sysusers.conf").write_text(f"u gpu-{component} -\n")
            (self._source / f"{component}.toml.example").write_text('log_level = "info"\n')
        (self.root / "run/systemd/system").mkdir(parents=True)
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("gpu_agent.cli.service.program", self._program)
        monkeypatch.setattr("gpu_agent.cli.service.program_path", lambda: Path("/bin/sh"))
        user = folder.stat().st_uid  # the test's folders are its user's alone
        monkeypatch.setattr("gpu_agent.cli.service.find_user", lambda name: User(name, user))
        self.asks(0)

    def asks(self, uid: int) -> None:
        """Have that user run the command."""
        machine = Machine(self.root, self._source, uid)
        self._monkeypatch.setattr("gpu_agent.cli.service.this_machine", lambda: machine)

    def without_systemd(self) -> None:
        """Have something else run the machine."""
        (self.root / "run/systemd/system").rmdir()

    def files(self) -> set[str]:
        """All files of the machine, from its root."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    @staticmethod
    def _program(component: str) -> Program:
        assert component in ("agent", "registry")
        return Program(Path("/bin/sh"), "1.0", ())
