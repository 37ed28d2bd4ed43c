from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from tests.cli.a_terminal import OnTerminal
from tests.nvml_fake.control import FakeNvml


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    machine = FakeNvml(tmp_path, gpus=8)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    return machine


def test_a_terminal_of_80_columns_sees_bars_and_colours_and_no_broken_line(fake: FakeNvml) -> None:
    fake.set("error", "nvmlDeviceGetTemperature", "3", "GPU_IS_LOST")
    with OnTerminal("probe") as terminal:
        assert terminal.wait() == 0
        shown = terminal.shown
    assert "█" in shown
    assert "\x1b[32mok" in shown
    assert "\x1b[1;31mlost" in shown
    assert "next step:" in shown
    assert "Could register: 7 of 8 GPUs are usable." in shown


def test_a_name_from_the_driver_cannot_steer_the_terminal(fake: FakeNvml) -> None:
    fake.set("name", 0, "evil \x1b[2J\x1b]0;owned\x07 card")
    with OnTerminal("probe") as terminal:
        assert terminal.wait() == 0
        shown = terminal.shown
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown


def test_a_pipe_gets_no_colours_and_no_bars(fake: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "█" not in said
    assert fake.fact("uuid", 7) in said
