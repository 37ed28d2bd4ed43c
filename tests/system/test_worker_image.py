"""The agent as a worker image runs it: a plain virtual environment, no systemd, in the foreground."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.programs import Registry
from tests.system.enclosure import Enclosure
from tests.system.wheels import collect
from tests.waiting import patience

pytestmark = pytest.mark.timeout(600)

ENTRY = """
set -e
python3 -m venv /opt/gpu-agent
/opt/gpu-agent/bin/pip install --quiet --no-index --find-links /srv/wheels gpu-agent
export LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control
exec /opt/gpu-agent/bin/gpu-agent run --registry "$1" --state-dir /var/lib/gpu-agent
"""


@pytest.fixture(scope="module")
def shared(suite: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    assert root.is_dir()
    folder = tmp_path_factory.mktemp(suite)
    driver = folder / "driver"
    driver.mkdir()
    FakeNvml(driver, gpus=1)
    wheels = collect(folder / "wheels", suite=suite)
    return {"/srv/wheels": wheels, "/srv/library": build(folder / "library"), "/srv/driver": driver}


@contextmanager
def image(
    root: Path, scratch: Path, registry: Registry, *options: str, shared: dict[str, Path]
) -> Iterator[Enclosure]:
    command = ("sh", "-c", ENTRY, "entry", registry.node_url)
    first = "(sd-stubinit)" if "--as-pid2" in options else "sh"
    with Enclosure(root, scratch, *options, *command, first=first, shared=shared) as started:
        yield started


def test_as_pid_1_it_works_leaves_no_zombies_and_ends_at_sigterm(
    root: Path, shared: dict[str, Path], tmp_path: Path
) -> None:
    with Registry() as registry, image(root, tmp_path, registry, shared=shared) as started:
        node = registry.await_ready(1, within_seconds=60)[0]
        first = psutil.Process(started.leader)
        program = first.children()[0]
        started.run("sh", "-c", "for orphan in 1 2 3; do (sleep 0.1 &); done")
        started.until(lambda: first.children() == [program], within_seconds=10, what="no zombies")
        assert program.is_running()
        os.kill(started.leader, signal.SIGTERM)
        assert started.wait(patience(5)) == 0, started.console()
        gone = registry.await_status(node["node_id"], "offline", within_seconds=2)
        assert gone["reason_code"] == "unregistered"


def test_under_another_init_it_ends_at_sigterm_with_a_goodbye(
    root: Path, shared: dict[str, Path], tmp_path: Path
) -> None:
    with Registry() as registry, image(root, tmp_path, registry, "--as-pid2", shared=shared) as started:
        node = registry.await_ready(1, within_seconds=60)[0]
        agent = psutil.Process(started.leader).children()[0]
        assert agent.name() != "sh"
        agent.send_signal(signal.SIGTERM)
        assert started.wait(patience(5)) == 0, started.console()
        gone = registry.await_status(node["node_id"], "offline", within_seconds=2)
        assert gone["reason_code"] == "unregistered"
