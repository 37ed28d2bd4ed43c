import contextlib
import os
import pty
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.completion_scripts import WITH_THE_PROGRAM, script
from tests.programs import eventually
from tests.waiting import patience

ZSH = shutil.which("zsh")
pytestmark = pytest.mark.skipif(ZSH is None, reason="no zsh on this machine")


class Zsh:
    """An interactive zsh on a terminal, with the completion in its search path."""

    def __init__(self, folder: Path) -> None:
        (folder / "_gpu-agent").write_text(script("zsh"))
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [ZSH or "", "-f", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env={"HOME": str(folder), "PATH": WITH_THE_PROGRAM["PATH"], "TERM": "dumb", "LISTMAX": "999"},
        )
        os.close(slave)
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.run(
            f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; unsetopt beep", prompt="ready"
        )

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how a terminal ends
            while data := os.read(self._master, 65536):
                self._shown += data

    def run(self, command: str, *, prompt: str) -> None:
        """Run a line, and wait for the next prompt: what is typed before it may be thrown away."""
        self.type(f"{command}; PROMPT='{prompt[:1]}''{prompt[1:]}> '\n")
        self.shows(f"{prompt}> ")

    def type(self, keys: str) -> None:
        self._shown = b""
        os.write(self._master, keys.encode())

    def shows(self, words: str) -> None:
        eventually(
            lambda: words in self._shown.decode(errors="replace"),
            within_seconds=20,
            what=f"{words!r} in {self._shown!r}",
        )

    def end(self) -> None:
        self._process.kill()
        self._process.wait(patience(5))
        self._reader.join(patience(5))
        os.close(self._master)


@pytest.fixture
def zsh(tmp_path: Path) -> Iterator[Zsh]:
    running = Zsh(tmp_path)
    try:
        yield running
    finally:
        running.end()


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("gpu-agent pro\t", "gpu-agent probe"),
        ("gpu-agent registry tok\t", "gpu-agent registry token"),
        ("gpu-agent registry token r\t\t", "revoke a token now"),
        ("gpu-agent run --join\t", "gpu-agent run --join-token-file"),
        ("gpu-agent run --log-level warn\t", "gpu-agent run --log-level warning"),
        ("gpu-agent completion fi\t", "gpu-agent completion fish"),
        ("gpu-agent run --config agent.t\t", "gpu-agent run --config agent.toml"),
    ],
)
def test_zsh_completes_what_may_follow(zsh: Zsh, tmp_path: Path, typed: str, shown: str) -> None:
    (tmp_path / "agent.toml").touch()
    zsh.type(typed)
    zsh.shows(shown)


def test_zsh_completes_after_the_script_is_sourced(zsh: Zsh, tmp_path: Path) -> None:
    zsh.run(f"unfunction _gpu-agent; source {tmp_path}/_gpu-agent", prompt="again")
    zsh.type("gpu-agent doc\t")
    zsh.shows("gpu-agent doctor")
