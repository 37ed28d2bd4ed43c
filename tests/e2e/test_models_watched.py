"""A real agent reports models that appear, break or disappear long before its next full scan."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_agent.probe.models.inotify import InotifyWatcher
from tests.probe.models.caches import Repository, repository, revision, whisper_files
from tests.programs import Agent, Registry, eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        InotifyWatcher.open() is None, reason="no notices of the file system here: it is polled"
    ),
]

WITHIN_SECONDS = 3.0
"""Two from the change to the heartbeat, and one that a heartbeat may wait for the one before it."""


class _Watched:
    """A hub cache, the agent that reports it, and what the registry knows."""

    def __init__(self, hub: Path, registry: Registry) -> None:
        self.hub = hub
        self._registry = registry
        self._node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]

    def states(self) -> dict[str, str]:
        node = self._registry.get(f"/v1/nodes/{self._node_id}")
        return {model["model_id"]: model["status"] for model in node["installed_models"]}

    def become(self, expected: dict[str, str], change: Callable[[], object]) -> None:
        """After the change the registry's view is the expected one, in time."""
        began = time.monotonic()
        change()
        eventually(lambda: self.states() == expected or None, within_seconds=20, what=str(expected))
        assert time.monotonic() - began < WITHIN_SECONDS


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[_Watched]:
    hub = tmp_path / "hub"
    hub.mkdir()
    config = tmp_path / "agent.toml"
    config.write_text(f'hub_roots = ["{hub}"]\nollama_roots = []\nprobe_interval_seconds = 30\n')
    with (
        Registry("--allow-simulated") as registry,
        Agent(registry.node_url, tmp_path / "state", "--config", str(config)),
    ):
        yield _Watched(hub, registry)


def test_a_model_that_appears_breaks_or_disappears_is_reported_within_two_seconds_and_a_heartbeat(
    watched: _Watched,
) -> None:
    made: list[Repository] = []

    def begin() -> None:
        made.append(repository(watched.hub, "openai/whisper-small"))
        made[0].ref("main", revision(1))
        made[0].incomplete()

    def finish() -> None:
        made[0].snapshot(revision(1), whisper_files())
        (made[0].path / "blobs" / "deadbeef.incomplete").unlink()

    def lose() -> None:
        weights = made[0].path / "snapshots" / revision(1) / "model.safetensors"
        weights.resolve().unlink()

    def remove() -> None:
        for path in sorted(made[0].path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        made[0].path.rmdir()

    watched.become({"openai/whisper-small": "downloading"}, begin)
    watched.become({"openai/whisper-small": "ready"}, finish)
    watched.become({"openai/whisper-small": "error"}, lose)
    watched.become({}, remove)
