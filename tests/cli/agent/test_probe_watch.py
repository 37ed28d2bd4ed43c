import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from gpu_agent.cli.agent.probe_watch import PAGE, Reading, next_reading, update_of
from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.output.text import Line, plain_text
from gpu_agent.cli.output.watch import Update, drawer, printer
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Inventory, Outcome
from gpu_agent.wire.probe_document import probe_schema
from tests.cli.hosts import HOST
from tests.cli.terminal import OnTerminal
from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND, eventually


class Watching:
    """A `gpu-agent probe --watch` that is read as it goes."""

    def __init__(self, *words: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*COMMAND, "probe", "--watch", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(iter(self._process.stdout.readline, ""))

    def await_words(self, words: str, *, within_seconds: float = 20) -> None:
        eventually(
            lambda: any(words in one for one in self.lines),
            within_seconds=within_seconds,
            what=f"{words!r}; said: {self.lines}",
        )

    def end(self) -> tuple[int, str]:
        """Interrupt it; its exit code, and what it said on stderr."""
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(10)
        self._reader.join(5)
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        said = self._process.stderr.read()
        self._process.stderr.close()
        self._process.stdout.close()
        return code, said


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    machine = FakeNvml(tmp_path, gpus=2)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    yield machine
    machine.unset("hang")


def test_in_a_pipe_each_change_is_a_line_and_ctrl_c_is_a_good_end(fake: FakeNvml) -> None:
    watching = Watching()
    watching.await_words("Could register: all 2")
    fake.set("error", "nvmlDeviceGetTemperature", "1", "GPU_IS_LOST")
    watching.await_words("GPU 1: ok → lost")
    assert watching.end() == (0, "")


def test_a_driver_that_hangs_is_reported_of_and_ends_nothing(fake: FakeNvml) -> None:
    watching = Watching()
    watching.await_words("Could register: all 2")
    fake.set("hang", "nvmlDeviceGetTemperature", "*")
    watching.await_words("the driver has not answered for ")
    fake.unset("hang")
    watching.await_words("the driver answers again")
    assert watching.end() == (0, "")


def test_a_driver_that_hangs_from_the_start_is_shown_and_left_behind(fake: FakeNvml) -> None:
    fake.set("hang", "nvmlDeviceGetCount_v2", "*")
    watching = Watching()
    watching.await_words("nvml_hung")
    assert watching.end()[0] == 0


def test_json_lines_are_documents_of_the_published_schema() -> None:
    watching = Watching("--json")
    eventually(lambda: len(watching.lines) >= 2, within_seconds=20, what="two documents")
    assert watching.end() == (0, "")
    for text in watching.lines:
        jsonschema.validate(json.loads(text), probe_schema())


def test_it_ends_when_its_reader_has_left() -> None:
    words = " ".join([*COMMAND, "probe", "--watch", "--json"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -1"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["could_register"] is True


def test_a_terminal_is_redrawn_and_restored_with_the_last_page() -> None:
    with OnTerminal("probe", "--watch") as terminal:
        terminal.await_words("Ctrl-C ends")
        terminal.await_words("Could register: all 2")
        terminal.send(signal.SIGINT)
        assert terminal.wait() == 0
        shown = terminal.shown
    assert "\x1b[?1049h" in shown
    assert "Could register: all 2" in shown.rpartition("\x1b[?1049l")[2]


def test_a_preview_is_nothing_to_watch() -> None:
    done = subprocess.run(
        [*COMMAND, "probe", "--watch", "--register-preview"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "--watch and --register-preview do not go together" in done.stderr


L4 = Gpu(index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
WELL = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=(L4,)))
ILL = replace(WELL, gpu=GpuReport(outcome=Outcome.OK, gpus=(replace(L4, health=Health.DEGRADED),)))
BROKEN = replace(WELL, gpu=GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="it is stuck: reboot."))


class Screen(LiveLines):
    """Keeps what was drawn last."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def draw(self, lines: Iterable[Line]) -> None:
        self.lines = [plain_text(one) for one in lines]


class Machine:
    """Shows its inventories in turn, each with the age of the GPUs' last good reading."""

    def __init__(self, show: Callable[[Update[Reading]], None]) -> None:
        self._show = show
        self.newest: Reading | None = None

    def read(self, inventory: Inventory, age_seconds: float | None = 0.1) -> None:
        self.newest = next_reading(self.newest, inventory, at=time.time())
        self.tick(age_seconds)

    def tick(self, age_seconds: float | None) -> None:
        self._show(update_of(self.newest, age_seconds))


def test_lines_are_the_page_and_then_each_change_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(printer(PAGE))
    machine.tick(None)
    assert capsys.readouterr().out == ""
    machine.read(WELL)
    assert capsys.readouterr().out.rstrip().endswith("and 0 ready models.")
    machine.read(WELL)
    assert capsys.readouterr().out == ""
    machine.read(ILL)
    assert capsys.readouterr().out.partition("  ")[2] == "GPU 0: ok → degraded\n"


def test_a_late_driver_is_reported_of_once_and_its_return_once(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(printer(PAGE))
    machine.read(WELL)
    capsys.readouterr()
    for age in (5.0, 6.0, 7.0):
        machine.tick(age)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "the driver has not answered for 5 s: the GPUs' figures are of " in said[0]
    machine.read(WELL)
    assert capsys.readouterr().out.endswith("the driver answers again\n")


@pytest.mark.parametrize(("age", "late"), [(None, False), (0.0, False), (3.0, False), (5.0, True)])
def test_a_reading_is_late_when_it_should_have_been_followed(age: float | None, *, late: bool) -> None:
    assert Reading(WELL, at=0.0, age_seconds=age).is_late is late


def test_each_look_is_one_line_of_json_that_the_schema_knows(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(printer(PAGE, as_json=True))
    machine.read(WELL, 0.12345)
    machine.tick(1.0)
    machine.tick(6.0)
    machine.read(BROKEN, None)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    for document in (first, second):
        jsonschema.validate(document, probe_schema())
    assert (first["probe_age_seconds"], second["probe_age_seconds"]) == (0.123, None)
    assert first["at"] > 1_700_000_000


def test_a_screen_shows_the_page_and_how_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    screen = Screen()
    machine = Machine(drawer(PAGE, screen))
    machine.tick(None)
    assert screen.lines[-1].startswith("reading this machine")
    machine.read(WELL)
    assert any("Could register" in one for one in screen.lines)
    assert screen.lines[-1].endswith("Ctrl-C ends")
    assert len(screen.lines) <= 24


def test_a_screen_says_since_when_a_driver_is_silent_or_broken() -> None:
    screen = Screen()
    machine = Machine(drawer(PAGE, screen))
    machine.read(WELL, 65.0)
    assert "the driver has not answered for 65 s" in " ".join(screen.lines)
    machine.read(BROKEN, None)
    assert "the driver does not work since " in " ".join(screen.lines)
    assert machine.newest is not None
    since = machine.newest.broken_since
    machine.read(BROKEN, None)
    assert machine.newest.broken_since == since
    machine.read(WELL, 0.0)
    assert "does not work" not in " ".join(screen.lines)
