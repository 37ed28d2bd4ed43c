import argparse
import os
import threading
import time
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe.asked import Asked
from gpu_agent.cli.probe.reading import asked_by, inventory_of, surroundings_of
from gpu_agent.probe.host import HostProbe
from gpu_agent.probe.models.catalogue import SILENT, Catalogue, Patience, Scan
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.nvml.head_start import start_child
from gpu_agent.probe.nvml.process import DEADLINE_SECONDS
from gpu_agent.probe.snapshot import Sources
from tests.hung_disk import hung
from tests.nvml_fake.control import FakeNvml


def test_where_nothing_is_configured_the_arguments_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.cli.probe.asked.SYSTEM_CONFIGURATION", Path("/nowhere"))
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


def test_a_disk_that_never_answers_leaves_the_host_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> Scan:
        answered.wait(30)
        return Scan()

    monkeypatch.setattr(Catalogue, "scan", hang)
    try:
        around = surroundings_of(Sources(), within_seconds=0.2)
    finally:
        answered.set()
    assert around.host.cpu_logical_cores >= 1
    assert "did not answer within 0.2 s" in around.host.unknowns["models"]
    assert (around.models, around.models_complete) == ((), False)


def test_a_host_that_never_answers_costs_half_a_second_more_and_is_what_the_kernel_says_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    true_read = HostProbe.read
    monkeypatch.setattr(HostProbe, "read", lambda probe: (answered.wait(30), true_read(probe))[1])
    began = time.monotonic()
    try:
        around = surroundings_of(Sources(), within_seconds=0.2)
    finally:
        answered.set()
    assert time.monotonic() - began < 10
    assert around.host.cpu_logical_cores == len(os.sched_getaffinity(0))
    assert around.host.memory_total_mb > 100
    assert "did not answer" in around.host.unknowns["memory_used_mb"]
    assert not around.models_complete


def test_a_place_that_does_not_answer_is_named_and_the_models_elsewhere_are_listed(tmp_path: Path) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    (well / "found.gguf").write_bytes(b"GGUF")
    catalogue = Catalogue([ModelFolders([dead]), ModelFolders([well])], patience=Patience(wait_seconds=0.1))
    with hung(dead):
        around = surroundings_of(Sources(catalogue=catalogue), within_seconds=2)
    assert [model.model_id for model in around.models] == ["found"]
    assert around.models_unsearched == {str(dead): SILENT}
    assert [disk.path for disk in around.host.cache_disks] == [str(well)]
    assert around.host.unknowns["cache_disks:dead"] == "no answer"


class Ending(threading.Thread):
    """A thread that ends at the very moment when somebody looks whether it lives."""

    last_word = threading.Event()

    def is_alive(self) -> bool:
        self.last_word.set()
        self.join(30)
        return super().is_alive()


def test_a_look_that_ends_as_its_deadline_passes_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "scan", lambda *_, **__: (Ending.last_word.wait(30), Scan())[1])
    monkeypatch.setattr("gpu_agent.cli.probe.reading.threading.Thread", Ending)
    around = surroundings_of(Sources(), within_seconds=0.05)
    assert "models" not in around.host.unknowns


def test_a_driver_and_a_disk_that_hang_cost_one_deadline_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlDeviceGetCount_v2", "*")
    answered = threading.Event()
    monkeypatch.setattr(Catalogue, "scan", lambda *_, **__: (answered.wait(30), Scan())[1])
    child = start_child(env=fake.environment())
    began = time.monotonic()
    try:
        inventory = inventory_of(Asked(), child)
    finally:
        answered.set()
        fake.unset("hang")
    assert child.process is not None
    child.process.wait(10)
    assert time.monotonic() - began < DEADLINE_SECONDS + 1.5
    assert "nvml_hung" in (inventory.gpu.detail or "")
    assert "models" in inventory.host.unknowns
