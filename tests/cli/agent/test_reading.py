import os
import threading
import time
from pathlib import Path

import pytest

from gpu_agent.cli.agent import reading
from gpu_agent.cli.agent.reading import (
    ProbeRequest,
    is_configured,
    probe_request,
    read_host_and_models,
    read_inventory,
)
from gpu_agent.cli.agent.settings import load_settings
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.scanner import DISK_SILENT, DiskPatience, ModelScanner, Scan
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS
from gpu_agent.probe.nvml.process import start_child
from gpu_agent.probe.snapshot import Sources
from tests.hung_disk import hung
from tests.nvml_fake.control import FakeNvml
from tests.waiting import patience


def test_where_nothing_is_configured_the_arguments_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SYSTEM_CONFIGURATION", Path("/nowhere"))
    given = Arguments(config=None, state_dir=None, simulate="1xL4-24GB")
    assert probe_request(given) == ProbeRequest(simulate="1xL4-24GB")


def test_a_simulated_machine_ends_a_child_that_was_started(tmp_path: Path) -> None:
    child = start_child(env=FakeNvml(tmp_path).environment())
    inventory = read_inventory(ProbeRequest(simulate="2xL4-24GB"), child)
    assert (inventory.simulated, len(inventory.gpu.gpus)) == (True, 2)
    assert child.process is not None
    assert child.process.wait(patience(5)) is not None


def test_what_cannot_be_simulated_is_a_configuration_failure() -> None:
    with pytest.raises(Failure, match="H100-80GB") as failed:
        read_inventory(ProbeRequest(simulate="8xH10-80GB"), None)
    assert failed.value.code is ExitCode.CONFIGURATION


def test_a_disk_that_never_answers_leaves_the_host_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> Scan:
        answered.wait(patience(30))
        return Scan()

    monkeypatch.setattr(ModelScanner, "scan", hang)
    try:
        around = read_host_and_models(Sources(), within_seconds=0.2)
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
    monkeypatch.setattr(HostProbe, "read", lambda probe: (answered.wait(patience(30)), true_read(probe))[1])
    began = time.monotonic()
    try:
        around = read_host_and_models(Sources(), within_seconds=0.2)
    finally:
        answered.set()
    assert time.monotonic() - began < patience(10)
    assert around.host.cpu_logical_cores == len(os.sched_getaffinity(0))
    assert (around.host.memory_total_mb or 0) > 100
    assert "did not answer" in around.host.unknowns["memory_used_mb"]
    assert not around.models_complete


def test_a_model_cache_that_does_not_answer_is_named_and_the_other_models_are_listed(tmp_path: Path) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    (well / "found.gguf").write_bytes(b"GGUF")
    scanner = ModelScanner(
        [ModelFolders([dead]), ModelFolders([well])], patience=DiskPatience(wait_seconds=0.1)
    )
    with hung(dead):
        around = read_host_and_models(Sources(scanner=scanner), within_seconds=2)
    assert [model.model_id for model in around.models] == ["found"]
    assert around.models_unsearched == {str(dead): DISK_SILENT}
    assert [disk.path for disk in around.host.cache_disks] == [str(well)]
    assert around.host.unknowns["cache_disks:dead"] == "no answer"


class Ending(threading.Thread):
    """A thread that ends at the moment when its end is checked."""

    checked = threading.Event()

    def is_alive(self) -> bool:
        self.checked.set()
        self.join(patience(30))
        return super().is_alive()


def test_a_reading_that_ends_at_its_deadline_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelScanner, "scan", lambda *_, **__: (Ending.checked.wait(patience(30)), Scan())[1])
    monkeypatch.setattr("gpu_agent.cli.agent.reading.threading.Thread", Ending)
    around = read_host_and_models(Sources(), within_seconds=0.05)
    assert "models" not in around.host.unknowns


def test_a_driver_and_a_disk_that_hang_cost_one_deadline_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlDeviceGetCount_v2", "*")
    answered = threading.Event()
    monkeypatch.setattr(ModelScanner, "scan", lambda *_, **__: (answered.wait(patience(30)), Scan())[1])
    child = start_child(env=fake.environment())
    began = time.monotonic()
    try:
        inventory = read_inventory(ProbeRequest(), child)
    finally:
        answered.set()
        fake.unset("hang")
    assert child.process is not None
    child.process.wait(patience(10))
    assert time.monotonic() - began < DEADLINE_SECONDS + 1.5
    assert "nvml_hung" in (inventory.gpu.detail or "")
    assert "models" in inventory.host.unknowns


@pytest.mark.parametrize(
    ("options", "environ", "configured"),
    [
        ({}, {}, False),
        ({}, {"GPU_MODE": "x"}, False),
        ({}, {"GPU_AGENT_SIMULATE": "L4"}, True),
        ({}, {"gpu_agent_simulate": "L4"}, True),
        ({"config": "agent.toml"}, {}, True),
        ({"state_dir": "state"}, {}, True),
    ],
)
def test_settings_are_loaded_only_where_there_are_some(
    options: dict[str, str],
    environ: dict[str, str],
    configured: bool,  # noqa: FBT001 - a table's column
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "SYSTEM_CONFIGURATION", tmp_path / "agent.toml")
    arguments = Arguments(**{"config": None, "state_dir": None, **options})
    assert is_configured(arguments, environ) is configured
    (tmp_path / "agent.toml").touch()
    assert is_configured(arguments, environ) is True


CONFIGURATION = """
model_directories = ["/srv/models"]
accept_public_jobs = true
simulate = "4xL4-24GB"
state_dir = "/var/lib/one"
[labels]
zone = "a"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIGURATION)
    return path


def arguments(**given: object) -> Arguments:
    return Arguments(**{"config": None, "simulate": None, "state_dir": None, **given})


def test_the_probes_part_and_the_owners_part_are_read_without_a_registry(path: Path) -> None:
    given = arguments(config=str(path))
    assert probe_request(given).options.model_paths["directory"] == (Path("/srv/models"),)
    assert (probe_request(given).simulate, probe_request(given).state_dir) == (
        "4xL4-24GB",
        Path("/var/lib/one"),
    )
    owner = load_settings(given).owner
    assert (owner.labels, owner.accept_public_jobs) == ({"zone": "a"}, True)


def test_the_commands_own_options_come_first(path: Path) -> None:
    given = probe_request(arguments(config=str(path), simulate="1xL4-24GB", state_dir="/var/lib/two"))
    assert (given.simulate, given.state_dir) == ("1xL4-24GB", Path("/var/lib/two"))
    assert given.seed != probe_request(arguments(config=str(path))).seed


def test_a_missing_file_is_a_configuration_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"nowhere\.toml") as failed:
        probe_request(arguments(config=str(tmp_path / "nowhere.toml")))
    assert failed.value.code is ExitCode.CONFIGURATION


def test_settings_for_tls_prevent_no_probe(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    for named in ('registry_url = "wss://registry.example"\n', ""):
        file.write_text(f'{named}tls_ca_file = "/etc/gpu-agent/ca.pem"\n')
        assert load_settings(arguments(config=str(file))).security.ca_file == Path("/etc/gpu-agent/ca.pem")
