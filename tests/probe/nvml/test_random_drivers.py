"""Drivers that misbehave at random: the probe never raises, never hangs, and what it says is always valid.

Some hundreds here; `make drivers` plays thousands.
"""

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.nvml_fake import campaign
from tests.nvml_fake.random_machines import machine
from tests.nvml_fake.verdict import FIGURES, judge

CASES = int(os.environ.get("DRIVER_CASES", "400"))
READ = Gpu(uuid="GPU-1", name="H100", index=0, unknowns=dict.fromkeys(FIGURES, "not supported"))


def judged(*gpus: Gpu) -> None:
    judge(GpuReport(outcome=Outcome.OK, gpus=gpus), HealthTracker(), now=0.0)


def test_whatever_the_driver_does_the_probe_answers_in_time_and_validly(tmp_path: Path) -> None:
    tally = campaign.run(tmp_path, range(CASES))
    assert tally.cases == CASES
    assert tally.gpus > CASES
    assert tally.ended > 0
    assert tally.hung > 0
    assert tally.whole_way >= CASES // campaign.WHOLE_WAY_EVERY


def test_the_same_seed_draws_the_same_machine() -> None:
    assert machine(random.Random(7)) == machine(random.Random(7)) != machine(random.Random(8))


def test_a_report_that_keeps_its_promises_passes() -> None:
    judged(READ)


@pytest.mark.parametrize(
    "broken",
    [
        replace(READ, unknowns={}),
        replace(READ, temperature_c=40),
        replace(READ, memory_mb=5 << 20, unknowns=dict.fromkeys(set(FIGURES) - {"memory_mb"}, "no")),
        replace(READ, utilization_percent=101),
    ],
    ids=["unknown without a reason", "known and unknown", "absurd memory", "absurd use"],
)
def test_a_report_that_breaks_one_is_noticed(broken: Gpu) -> None:
    with pytest.raises(AssertionError):
        judged(broken)


def test_two_gpus_with_one_uuid_are_noticed() -> None:
    with pytest.raises(AssertionError):
        judged(READ, READ)


def test_a_child_that_ends_by_itself_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = next(seed for seed in range(1, 99) if not machine(random.Random(seed)).may_end)
    monkeypatch.setattr(campaign, "CHILD_COMMAND", ("true",))
    with pytest.raises(campaign.BrokenPromiseError, match="and no call ends it"):
        campaign.run(tmp_path, [harmless])


def test_a_traceback_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import json, sys, traceback\n"
        "for line in sys.stdin:\n"
        "    print('Traceback (most recent call last):', file=sys.stderr)\n"
        "    print(json.dumps({'id': json.loads(line)['id'], 'outcome': 'ok', 'gpus': []}), flush=True)\n"
    )
    monkeypatch.setattr(campaign, "CHILD_COMMAND", (sys.executable, "-c", code))
    with pytest.raises(campaign.BrokenPromiseError, match="Traceback"):
        campaign.run(tmp_path, [1])
