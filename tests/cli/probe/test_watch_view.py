import json
from collections.abc import Iterable
from dataclasses import replace

import jsonschema
import pytest

from gpu_agent.cli.lines import Line, plain
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.probe.schema import schema
from gpu_agent.cli.probe.watch_view import JsonView, LinesView, ScreenView, is_late
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Inventory, Outcome
from tests.cli.hosts import HOST

L4 = Gpu(index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
WELL = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=(L4,)))
ILL = replace(WELL, gpu=GpuReport(outcome=Outcome.OK, gpus=(replace(L4, health=Health.DEGRADED),)))
BROKEN = replace(WELL, gpu=GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="it is stuck: reboot."))


class Screen(LiveLines):
    """Keeps what was drawn last."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def draw(self, lines: Iterable[Line]) -> None:
        self.lines = [plain(one) for one in lines]


def test_lines_are_the_page_and_then_each_change_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    view.take(WELL, 0.1)
    assert capsys.readouterr().out.rstrip().endswith("and 0 ready models.")
    view.take(WELL, 0.1)
    assert capsys.readouterr().out == ""
    view.take(ILL, 0.1)
    assert capsys.readouterr().out.partition("  ")[2] == "GPU 0: ok → degraded\n"


def test_a_late_driver_is_told_of_once_and_its_return_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    view.take(WELL, 0.1)
    capsys.readouterr()
    for age in (5.0, 6.0, 7.0):
        view.tick(age)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "the driver has not answered for 5 s: the GPUs' figures are of " in said[0]
    view.take(WELL, 0.1)
    assert capsys.readouterr().out.endswith("the driver answers again\n")


@pytest.mark.parametrize(("age", "late"), [(None, False), (0.0, False), (3.0, False), (5.0, True)])
def test_a_reading_is_late_when_it_should_have_been_followed(age: float | None, *, late: bool) -> None:
    assert is_late(age) is late


def test_each_look_is_one_line_of_json_that_the_schema_knows(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonView()
    view.take(WELL, 0.12345)
    view.tick(1.0)
    view.take(BROKEN, None)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    for document in (first, second):
        jsonschema.validate(document, schema())
    assert (first["probe_age_seconds"], second["probe_age_seconds"]) == (0.123, None)
    assert first["at"] > 1_700_000_000


def test_a_screen_shows_the_page_and_how_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    screen = Screen()
    view = ScreenView(screen)
    view.tick(None)
    assert screen.lines[0].startswith("looking at this machine")
    view.take(WELL, 0.1)
    assert any("Could register" in one for one in screen.lines)
    assert screen.lines[-1].endswith("Ctrl-C ends")
    assert len(screen.lines) <= 24


def test_a_screen_says_since_when_a_driver_is_silent_or_broken() -> None:
    screen = Screen()
    view = ScreenView(screen)
    view.take(WELL, 65.0)
    assert "the driver has not answered for 65 s" in " ".join(screen.lines)
    view.take(BROKEN, None)
    assert "the driver does not work since " in " ".join(screen.lines)
    view.take(WELL, 0.0)
    assert "does not work" not in " ".join(screen.lines)
