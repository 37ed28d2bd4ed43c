import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.agent.probe_report import preview
from gpu_agent.cli.command import Arguments
from gpu_agent.cli.main import main
from gpu_agent.node.identity import FILE
from gpu_agent.probe.simulation.gpus import SimulatedGpus
from gpu_agent.probe.snapshot import Sources, take
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.inventory import GpuReport, Outcome
from gpu_agent.wire.messages import NodeRegister
from tests.cli.terminal import OnTerminal
from tests.nvml_fake.control import FakeNvml
from tests.waiting import patience

GPUS = SimulatedGpus("2xL4-24GB", seed="a").read(0.0)


def previewed(state_dir: Path, report: GpuReport = GPUS) -> tuple[NodeRegister, bool]:
    arguments = Arguments(config=None, simulate=None, state_dir=str(state_dir))
    made = preview(take(report, Sources(), simulated=True), arguments)
    message = decode_from_node(made.frame)
    assert isinstance(message, NodeRegister)
    return message, made.would_be_sent


def test_the_preview_reads_as_a_registration(tmp_path: Path) -> None:
    message, sent = previewed(tmp_path)
    assert (message.simulated, len(message.hardware.gpus), message.node_id, sent) == (True, 2, None, True)


def test_the_stored_id_is_reported_as_the_agent_would(tmp_path: Path) -> None:
    identity = tmp_path / FILE
    identity.write_text(json.dumps({"format": 1, "node_id": "node-7", "node_token": "secret"}))
    identity.chmod(0o644)
    before = identity.stat()
    message, _ = previewed(tmp_path)
    assert message.node_id == "node-7"
    assert "secret" not in message.model_dump_json()
    assert (identity.stat().st_mode, identity.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [identity]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 2, "node_id": "x"}', '{"format": 1, "node_id": "a b"}']
)
def test_an_identity_that_cannot_be_understood_is_none_and_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    message, _ = previewed(tmp_path)
    assert message.node_id is None
    assert (tmp_path / FILE).read_text() == text


def test_r01_a_registration_without_a_gpu_is_one_that_stays_unsent(tmp_path: Path) -> None:
    _, sent = previewed(tmp_path, GpuReport(outcome=Outcome.NO_DRIVER))
    assert sent is False


def test_a_name_that_would_steer_a_terminal_is_escaped_and_means_the_same(tmp_path: Path) -> None:
    name = "L4\u202e\x9b31m\x7f\U000e0001 é"
    report = replace(GPUS, gpus=(replace(GPUS.gpus[0], name=name), *GPUS.gpus[1:]))
    arguments = Arguments(config=None, simulate=None, state_dir=str(tmp_path))
    frame = preview(take(report, Sources(), simulated=True), arguments).frame
    assert frame.isprintable()
    assert "é" in frame
    assert json.loads(frame)["hardware"]["gpus"][0]["name"] == name


@pytest.mark.parametrize("heavy", ["pydantic", "asyncio", "websockets", "platformdirs", "tempfile"])
def test_the_json_form_loads_nothing_heavy(heavy: str) -> None:
    program = (
        "import sys; from gpu_agent.cli.main import main; "
        "main(['probe', '--json', '--simulate', '8xH100-80GB']); "
        f"sys.exit({heavy!r} in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=patience(20)
    )
    assert done.returncode == 0, f"{heavy} is loaded: {done.stderr}"


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
    assert "Could register: 7 of the 8 GPUs are usable." in shown


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
