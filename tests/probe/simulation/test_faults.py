from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.collectors.validation import validate
from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.health.xids import XIDS
from gpu_agent.probe.simulation.gpus import SimulatedGpus
from gpu_agent.probe.simulation.spec import FAULTS
from gpu_agent.wire.inventory import Gpu, Health

START = 1_700_000_000.0
NVMLS_ALONE: dict[str, Any] = {"events": {}, "recovery_action": None, "fabric_faults": None}
"""What no collector reports."""


def course(spec: str, moments: Iterator[int] | range) -> dict[int, tuple[Gpu, ...]]:
    """What the tracker says of the machine at each second that it is read."""
    machine, tracker = SimulatedGpus(spec, seed="m"), HealthTracker()
    return {
        after: tracker.observe(
            machine.read(START + after), now_wall=START + after, now_mono=float(after)
        ).gpus
        for after in moments
    }


def first(healths: dict[int, tuple[Gpu, ...]], health: Health, *, after: int = 0) -> int:
    return next(at for at, (gpu, *_) in healths.items() if at >= after and gpu.health is health)


def codes(gpu: Gpu) -> list[str]:
    return [each.code for each in gpu.reasons]


@pytest.mark.parametrize(
    ("fault", "health", "code"),
    [
        ("lost", Health.LOST, "gpu_lost"),
        ("unknown", Health.UNKNOWN, "gpu_inaccessible"),
        ("degraded", Health.DEGRADED, "row_remap_pending"),
        ("xid79", Health.LOST, "xid_79"),
        ("xid48", Health.DEGRADED, "xid_48"),
        ("xid119", Health.LOST, "xid_119"),
        ("xid63", Health.DEGRADED, "row_remap_pending"),
        ("xid154", Health.LOST, "recovery_reset"),
        ("ecc", Health.DEGRADED, "ecc_uncorrected"),
        ("sram", Health.DEGRADED, "sram_ecc_threshold"),
        ("reset", Health.LOST, "recovery_reset"),
        ("prohibited", Health.UNKNOWN, "compute_mode_prohibited"),
        ("fabric", Health.DEGRADED, "fabric_route_unhealthy"),
        ("nvlinkdown", Health.DEGRADED, "nvlink_down"),
        ("nvlinkerrors", Health.DEGRADED, "nvlink_errors"),
    ],
)
def test_a_fault_shows_at_once_with_its_reason_and_is_over_after_its_end(
    fault: str, health: Health, code: str
) -> None:
    seen = course(f"H100:{fault}@60s-120s", range(0, 300, 5))
    assert first(seen, health) == 60
    assert code in codes(seen[60][0])
    assert seen[115][0].health is health
    assert 120 <= first(seen, Health.OK, after=60) <= 135
    assert seen[295][0].reasons == ()


def test_heat_degrades_once_it_has_lasted_a_minute() -> None:
    seen = course("L4:hot@60s-240s", range(0, 400, 5))
    assert seen[60][0].temperature_c == 94
    assert seen[60][0].throttle_reasons == ("hw_thermal_slowdown",)
    assert 120 < first(seen, Health.DEGRADED) <= 130
    assert codes(seen[200][0]) == ["hw_thermal_slowdown"]
    assert 240 <= first(seen, Health.OK, after=130) <= 255


@pytest.mark.parametrize(("fault", "code"), [("slowdown", "hw_slowdown"), ("pcie", "pcie_link_slow")])
def test_what_slows_a_gpu_down_degrades_it_once_it_has_lasted_a_minute(fault: str, code: str) -> None:
    seen = course(f"H100:{fault}@60s-240s", range(0, 400, 5))
    assert 120 < first(seen, Health.DEGRADED) <= 130
    assert codes(seen[200][0]) == [code]
    assert 240 <= first(seen, Health.OK, after=130) <= 260


def test_an_xid_of_an_application_never_changes_health() -> None:
    seen = course("L4:xid31@60s", range(0, 100, 5))
    assert seen[60][0].events == {"xid_31": 1}
    assert {gpu.health for gpu, *_ in seen.values()} == {Health.OK}


@pytest.mark.parametrize("fault", ["lost", "unknown", "xid79"])
def test_a_gpu_that_does_not_answer_keeps_its_identity_and_has_no_figures(fault: str) -> None:
    before = SimulatedGpus("L4", seed="m").read(0).gpus[0]
    (gpu,) = SimulatedGpus(f"L4:{fault}", seed="m").read(0).gpus
    assert (gpu.uuid, gpu.name, gpu.memory_mb) == (before.uuid, before.name, before.memory_mb)
    assert (gpu.temperature_c, gpu.memory_used_mb, gpu.utilization_percent) == (None, None, None)


def test_a_fault_of_the_whole_gpu_concerns_its_mig_devices_and_no_other_gpu() -> None:
    seen = course("2xA100-80GB/2x3g.40gb:lost#1@10s", range(0, 20, 5))
    assert [gpu.health.value for gpu in seen[10]] == ["lost"] * 3 + ["ok"] * 3


def test_a_reason_of_the_whole_gpu_clears_from_its_mig_devices_with_it() -> None:
    seen = course("A100-80GB/2x3g.40gb:degraded@0s-10s", range(0, 40, 5))
    assert [gpu.health.value for gpu in seen[5]] == ["degraded"] * 3
    assert [gpu.health.value for gpu in seen[35]] == ["ok"] * 3


def test_a_reset_is_seen_by_the_restarted_energy_count() -> None:
    seen = course("L4:xid119@60s-120s", range(0, 130, 5))
    before, after = seen[115][0].energy_mj, seen[120][0].energy_mj
    assert before is not None
    assert after is not None
    assert after < before / 10


_FAULTS = st.builds(
    lambda name, begins, lasts: f":{name}@{begins}s-{begins + lasts}s",
    st.sampled_from([*(name for name in FAULTS if name != "hang"), *(f"xid{number}" for number in XIDS)]),
    st.integers(0, 300),
    st.integers(1, 300),
)


@given(
    st.sampled_from(["H200", "B200", "H100/3g.40gb+2x1g.10gb"]),
    st.lists(_FAULTS, max_size=4),
    st.lists(st.integers(0, 900), min_size=1, max_size=12),
)
def test_random_histories_have_plausible_health_and_end_ok(
    product: str, faults: list[str], moments: list[int]
) -> None:
    machine, tracker = SimulatedGpus(product + "".join(faults), seed="m"), HealthTracker()
    healths: list[Health] = []
    for after in (0, *sorted(moments), *range(1000, 1020, 5)):
        report = machine.read(START + after)
        plain = replace(report, gpus=tuple(replace(gpu, **NVMLS_ALONE) for gpu in report.gpus))
        assert validate(plain) == plain
        judged = tracker.observe(report, now_wall=START + after, now_mono=float(after))
        healths = [gpu.health for gpu in judged.gpus]
    assert set(healths) == {Health.OK}
