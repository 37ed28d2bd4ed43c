"""The checker finds what is planted in real registries, and finds nothing in those that are right."""

import random
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.histories import planted
from tests.histories.__main__ import main
from tests.histories.campaign import FLEET, Fault, Stage, draw_fault, freeze
from tests.histories.clients import Address
from tests.histories.network import Cut
from tests.histories.nodes import Nodes
from tests.histories.objects import Result, check
from tests.histories.record import read
from tests.histories.registries import FORMS, OneProcess, Registry, ThreeInstances, Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MOST_HISTORIES = 8
QUICK = partial(draw_fault, longest_seconds=1.0)
FROZEN_SECONDS = 8.0
"""Longer than a lease in etcd lasts, so that another instance leads."""


def play(
    registry: Registry, running: ExitStack, *, histories: int = MOST_HISTORIES, fault: Fault = QUICK
) -> list[Result]:
    """Play histories until one shows a violation."""
    stage = Stage(registry, running, seed=0)
    results: list[Result] = []
    while len(results) < histories and not any(one.violations for one in results):
        results.append(stage.play(len(results), seed=0, fault=fault).result)
    return results


def command(bug: str) -> tuple[str, ...]:
    return (sys.executable, "-P", planted.__file__, bug)


@pytest.mark.parametrize("bug", ["acknowledge_before_storing", "answer_from_old_state"])
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    with ExitStack() as running:
        results = play(OneProcess(tmp_path, running, command=command(bug)), running)
    assert any("is not linearizable" in one.what for one in results[-1].violations)


def test_a_leader_that_goes_on_after_its_lease_is_found(tmp_path: Path) -> None:
    def freeze_leader(registry: Registry, _dice: random.Random) -> str:
        return freeze(registry.victims()[0], FROZEN_SECONDS)

    with ExitStack() as running:
        registry = ThreeInstances(tmp_path, running, command=command("go_on_after_the_lease"))
        results = play(registry, running, fault=freeze_leader)
    assert any("is not linearizable" in one.what for one in results[-1].violations)


class TwoLeaders:
    """Two registries and databases; every node is connected to both, and none knows the other's claims."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self._first, self._second = OneProcess(folder / "1", running), OneProcess(folder / "2", running)
        nodes = Nodes(FLEET, self._second.node_urls, seed=0)
        nodes.start()
        running.callback(nodes.stop)

    @property
    def api(self) -> tuple[Address, ...]:
        return (*self._first.api, *self._second.api)

    @property
    def node_urls(self) -> tuple[str, ...]:
        return tuple(self._first.node_urls)

    def victims(self) -> tuple[Victim, ...]:
        return (*self._first.victims(), *self._second.victims())

    def cuts(self) -> tuple[Cut, ...]:
        return ()


def test_a_gpu_that_two_leaders_give_out_is_found_and_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FORMS, "two", TwoLeaders)
    words = ["histories", "--forms", "two", "--runs", str(MOST_HISTORIES), "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 1
    (written,) = tmp_path.glob("*.json")
    assert str(written) in capsys.readouterr().out
    problems = [one.what for one in check(read(written)).violations]
    assert any(one.startswith("GPU-") for one in problems)
    assert any(one.startswith("h") for one in problems)
    monkeypatch.setattr(sys, "argv", ["histories", "--check", str(written)])
    assert main() == 1
    assert problems[0] in capsys.readouterr().out


@pytest.mark.parametrize("form", ["one", "gateways", "etcd"])
def test_a_registry_that_is_right_shows_no_violation(form: str, tmp_path: Path) -> None:
    with ExitStack() as running:
        results = play(FORMS[form](tmp_path, running), running, histories=3)
    assert [violation for one in results for violation in one.violations] == []
    assert not any(one.undecided for one in results)
