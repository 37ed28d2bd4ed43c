import argparse
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe_asked import Asked
from gpu_agent.cli.probe_reading import asked_by, inventory_of
from gpu_agent.probe.nvml_head_start import start_child
from tests.nvml_fake.control import FakeNvml


def test_where_nothing_is_configured_the_arguments_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.cli.probe_asked.SYSTEM_CONFIGURATION", Path("/nowhere"))
    given = argparse.Namespace(config=None, state_dir=None, simulate="1xL4-24GB")
    assert asked_by(given) == Asked(simulate="1xL4-24GB")


def test_a_simulated_machine_lets_a_child_go_that_was_started(tmp_path: Path) -> None:
    child = start_child(env=FakeNvml(tmp_path).environment())
    inventory = inventory_of(Asked(simulate="2xL4-24GB"), child)
    assert (inventory.simulated, len(inventory.gpu.gpus)) == (True, 2)
    assert child.process is not None
    assert child.process.wait(5) is not None


def test_what_cannot_be_simulated_is_a_configuration_failure() -> None:
    with pytest.raises(Failure, match="H100-80GB") as failed:
        inventory_of(Asked(simulate="8xH10-80GB"), None)
    assert failed.value.code is ExitCode.CONFIGURATION
