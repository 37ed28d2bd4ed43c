"""A real agent with one of its places on a disk that never answers, and one on a disk that does."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hung_disk import hung
from tests.programs import Agent, Registry, eventually

pytestmark = pytest.mark.e2e

PATIENCE_SECONDS = 30.0


class _Machine:
    """The two places, the settings that name them, and what a registry hears of both."""

    def __init__(self, folder: Path) -> None:
        self.dead, self.well, self.later = (folder / name for name in ("dead", "well", "later"))
        for place in (self.dead, self.well):
            self.add(place, place.name)
        self.config = folder / "agent.toml"
        self.name_places(self.dead, self.well)

    def add(self, place: Path, name: str) -> None:
        (place / name).mkdir(parents=True)
        (place / name / "model.json").write_text(f'{{"model_id": "{name}", "version": "1"}}')

    def name_places(self, *places: Path) -> None:
        self.config.write_text(
            f"model_directories = {[str(place) for place in places]}\n"
            "hub_roots = []\nollama_roots = []\nprobe_interval_seconds = 1\n"
            "[advanced]\nnvml_stale_after_seconds = 6\n"
        )


@pytest.fixture
def machine(tmp_path: Path) -> _Machine:
    return _Machine(tmp_path)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry("--allow-simulated") as registry:
        yield registry


def _waiting_for_the_disk(pid: int) -> int | None:
    """How many threads wait, as the kernel shows; `None` where it does not."""
    places = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it ended
            places.append((task / "wchan").read_text())
    waiting = [place for place in places if "fuse" in place or place == "request_wait_answer"]
    return len(waiting) if set(places) - {"0"} else None


class _ShownModels:
    """What the registry knows of the agent's models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._node_id = registry.await_ready(1, within_seconds=PATIENCE_SECONDS)[0]["node_id"]

    def become(self, **expected: str) -> None:
        """It is so, now or soon."""
        eventually(lambda: self._states() == expected, within_seconds=PATIENCE_SECONDS, what=f"{expected}")

    def _states(self) -> dict[str, str]:
        node = self._registry.get(f"/v1/nodes/{self._node_id}")
        return {model["model_id"]: model["status"] for model in node["installed_models"]}


def test_an_agent_starts_reloads_and_stops_beside_a_hanging_disk(
    machine: _Machine, registry: Registry, tmp_path: Path
) -> None:
    with (
        hung(machine.dead),
        Agent(registry.node_url, tmp_path / "state", "--config", str(machine.config)) as agent,
    ):
        models = _ShownModels(registry)
        models.become(well="ready")
        machine.add(machine.later, "later")
        machine.name_places(machine.dead, machine.well, machine.later)
        agent.send(signal.SIGHUP)
        agent.await_event("settings_reloaded", within_seconds=PATIENCE_SECONDS)
        models.become(well="ready", later="ready")
        place = str(machine.dead)
        agent.await_event("model_scan_failed", within_seconds=PATIENCE_SECONDS, place=place)
        assert _waiting_for_the_disk(agent.pid) in (1, None)
        agent.end()


def test_only_models_on_the_hanging_disk_are_in_error_until_it_answers_again(
    machine: _Machine, registry: Registry, tmp_path: Path
) -> None:
    with Agent(registry.node_url, tmp_path / "state", "--config", str(machine.config)) as agent:
        models = _ShownModels(registry)
        models.become(dead="ready", well="ready")
        with hung(machine.dead):
            models.become(dead="error", well="ready")
            assert agent.events("host_scan_overdue") == []
        models.become(dead="ready", well="ready")
        agent.await_event("model_disk_recovered", place=str(machine.dead))
