import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.collectors.validation import InvalidReportError, _rules, validate
from gpu_agent.probe.nvml.readings import MOST_GPUS
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    MemoryKind,
    Outcome,
)

WHOLE = Gpu(
    uuid="AMD-1",
    name="Radeon",
    index=3,
    vendor="amd",
    memory_mb=16384,
    memory_used_mb=1024,
    memory_free_mb=15360,
    memory_kind=MemoryKind.DEDICATED,
    pci_bus_id="0000:03:00.0",
    utilization_percent=12.5,
    memory_utilization_percent=3.0,
    temperature_c=55.0,
    power_w=120.0,
    power_limit_w=300.0,
    clock_sm_mhz=2100,
    clock_memory_mhz=1000,
    ecc_uncorrected=0,
    retirement_pending=False,
    throttle_reasons=(),
    processes=(GpuProcess(pid=7, memory_mb=64),),
    unknowns={"compute_capability": "a measure of NVIDIA's"},
)


def report(*gpus: object) -> GpuReport:
    return GpuReport(outcome=Outcome.OK, gpus=gpus)  # type: ignore[arg-type]  # anything may be reported


def validated(**fields: object) -> Gpu:
    (gpu,) = validate(report(replace(WHOLE, **fields))).gpus  # type: ignore[arg-type]
    return gpu


def test_a_gpu_that_can_be_true_passes_unchanged() -> None:
    assert validate(report(WHOLE)) == report(WHOLE)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("memory_mb", 0),
        ("memory_mb", -1),
        ("memory_mb", 2**64 - 1),
        ("memory_mb", "16384"),
        ("memory_mb", True),
        ("memory_used_mb", 1.5),
        ("utilization_percent", math.nan),
        ("utilization_percent", 101),
        ("temperature_c", math.inf),
        ("power_w", -5),
        ("index", -1),
        ("clock_sm_mhz", 2**40),
        ("ecc_uncorrected", -1),
        ("retirement_pending", "no"),
        ("mig_enabled", 1),
        ("throttle_reasons", "thermal"),
        ("processes", [1, 2]),
        ("pci_bus_id", 7),
    ],
)
def test_a_figure_that_cannot_be_true_is_unknown_with_the_value_as_reason(field: str, said: object) -> None:
    gpu = validated(**{field: said})
    assert getattr(gpu, field) is None
    assert gpu.unknowns[field].startswith("its collector reported ")
    assert replace(gpu, unknowns=WHOLE.unknowns, **{field: getattr(WHOLE, field)}) == WHOLE


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("GPUs", "gave str in place of a GpuReport"),
        (GpuReport(outcome="ok"), "no outcome"),  # type: ignore[arg-type]
        (GpuReport(outcome=Outcome.OK, gpus=[WHOLE]), "no tuple of GPUs"),  # type: ignore[arg-type]
        (report("card0"), "among its GPUs is str"),
        (report(WHOLE, WHOLE), "lists a uuid twice"),
        (report(replace(WHOLE, uuid="")), "has no uuid"),
        (report(replace(WHOLE, uuid=7)), "has no uuid"),  # type: ignore[arg-type]
        (report(replace(WHOLE, name=None)), "no name"),  # type: ignore[arg-type]
        (report(*[WHOLE] * (MOST_GPUS + 1)), "lists 1025 GPUs"),
    ],
)
def test_gpus_with_the_same_uuid_are_refused(said: object, says: str) -> None:
    with pytest.raises(InvalidReportError, match=says):
        validate(said)


@pytest.mark.parametrize("outcome", [Outcome.NO_DRIVER, Outcome.DRIVER_BROKEN])
@pytest.mark.parametrize("detail", [None, "", "\n"])
def test_a_driver_that_is_not_well_never_goes_without_a_sentence(
    outcome: Outcome, detail: str | None
) -> None:
    assert "and not why" in (validate(GpuReport(outcome=outcome, detail=detail)).detail or "")
    detail = validate(GpuReport(outcome=outcome, detail="It is old: update it." + "x" * 9000)).detail or ""
    assert detail.startswith("It is old: update it.")
    assert len(detail) == 1024


def test_nothing_in_a_text_steers_a_terminal_or_is_endless() -> None:
    gpu = validated(name="\x1b[31mRadeon\x07" + "x" * 900)
    assert gpu.name.isprintable()
    assert len(gpu.name) <= 256


def test_a_reason_of_the_table_decides_the_health_and_keeps_its_moment() -> None:
    why = HealthReason(code="retired_pages_pending", detail="3 pages", since=5.0)
    gpu = validated(health=Health.OK, reasons=(why,))
    assert gpu.health is Health.DEGRADED
    assert [(one.code, one.detail, one.since) for one in gpu.reasons] == [(why.code, "3 pages", 5.0)]
    assert gpu.reasons[0].action == "reset GPU"


@pytest.mark.parametrize(
    ("reported", "health", "code"),
    [
        (Health.DEGRADED, Health.DEGRADED, "collector_degraded"),
        (Health.LOST, Health.LOST, "gpu_lost"),
        (Health.UNKNOWN, Health.UNKNOWN, "collector_unsure"),
        ("melted", Health.UNKNOWN, "collector_unsure"),
    ],
)
def test_a_fault_that_the_table_lacks_gets_a_code_by_its_health(
    reported: object, health: Health, code: str
) -> None:
    gpu = validated(health=reported, reasons=(HealthReason(code="vendor_7", detail="fan stopped"), "rubbish"))
    assert [one.code for one in gpu.reasons] == [code]
    assert gpu.reasons[0].detail == "vendor_7: fan stopped"
    assert gpu.health is health


def test_no_reason_is_made_up_for_a_gpu_that_is_well() -> None:
    gpu = validated(reasons=(HealthReason(code="vendor_note", detail="all is well"),))
    assert (gpu.health, gpu.reasons) == (Health.OK, ())


_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.text(max_size=5)),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.builds(object),
    st.sampled_from([*Health, *MemoryKind, *Outcome]),
)


@given(st.dictionaries(st.sampled_from([field.name for field in fields(Gpu)]), _ANYTHING))
def test_whatever_a_collector_reports_is_validated_or_refused(
    reported: dict[str, Any],
) -> None:
    try:
        (gpu,) = validate(report(replace(WHOLE, **reported))).gpus
    except InvalidReportError:
        return
    assert gpu.uuid.isprintable()
    assert gpu.memory_mb is None or 0 < gpu.memory_mb <= 4 << 20
    assert gpu.utilization_percent is None or 0 <= gpu.utilization_percent <= 100
    assert isinstance(gpu.health, Health)
    assert isinstance(gpu.memory_kind, MemoryKind)
    assert all(isinstance(one, HealthReason) for one in gpu.reasons)


def test_every_field_of_a_gpu_has_a_rule_or_is_checked_by_itself() -> None:
    by_themselves = {"uuid", "name", "vendor", "memory_kind", "health", "reasons", "unknowns", "offered"}
    never_a_collectors = {"events", "recovery_action", "fabric_faults"}
    assert {field.name for field in fields(Gpu)} == set(_rules()) | by_themselves | never_a_collectors
