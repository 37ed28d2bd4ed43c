from collections.abc import Iterable

import pytest
from hypothesis import given, strategies

from gpu_agent.registry.gpus import STEP_MB, Gpus, GpuState
from gpu_agent.wire.heartbeat import GpuColumns
from gpu_agent.wire.messages import GpuFigures
from tests.registry.harness import figures


def gpus(count: int, *, memory_mb: int | None = 81920) -> Gpus:
    return Gpus(GpuState(uuid=f"GPU-{place}", name="H100", memory_mb=memory_mb) for place in range(count))


def write(subject: Gpus, reported: Iterable[GpuFigures] | None, *, exactly: bool) -> bool:
    return bool(subject.write(None if reported is None else GpuColumns.of(reported), exactly=exactly))


def test_figures_reach_the_gpu_of_their_uuid() -> None:
    subject = gpus(2)
    reported = GpuFigures(
        uuid="GPU-1",
        utilization_percent=40.0,
        memory_used_mb=2000,
        temperature_c=55.0,
        power_w=300.5,
        health="degraded",
        reasons=("ecc_pending",),
    )
    assert write(subject, (*figures(1), reported), exactly=False)
    gpu = subject["GPU-1"]
    assert (gpu.health, gpu.reasons, gpu.memory_used_mb) == ("degraded", ("ecc_pending",), 2000)
    assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_w) == (40.0, 55.0, 300.5)
    assert subject.usable == 2


def test_only_the_first_of_several_heartbeats_without_figures_concerns_dispatch() -> None:
    subject = gpus(2)
    assert [write(subject, None, exactly=False) for _ in range(3)] == [True, False, False]
    assert write(subject, figures(2, memory_used_mb=2000), exactly=False)
    assert [write(subject, None, exactly=False) for _ in range(2)] == [True, False]
    assert subject["GPU-1"].memory_used_mb is None
    subject.set_failed_checks({"GPU-1": ("ecc",)})
    assert [write(subject, None, exactly=False) for _ in range(2)] == [True, False]
    assert subject.usable == 1


@given(
    strategies.lists(
        strategies.builds(
            GpuFigures,
            uuid=strategies.just("GPU-?"),
            utilization_percent=strategies.none() | strategies.floats(0, 100),
            memory_used_mb=strategies.none() | strategies.integers(0, 2**53),
            temperature_c=strategies.none() | strategies.floats(-50, 150),
            power_w=strategies.none() | strategies.floats(0, 2000),
            health=strategies.sampled_from(["ok", "ok", "ok", "degraded", "lost", "unknown"]),
            reasons=strategies.sampled_from([(), (), ("xid_79",)]),
        ),
        min_size=3,
        max_size=12,
    )
)
def test_whatever_receives_a_gpu_is_what_is_known_of_it(reported: list[GpuFigures]) -> None:
    subject = gpus(3)
    for at in range(0, len(reported) - 2, 3):
        named = tuple(
            one.model_copy(update={"uuid": f"GPU-{place}"}) for place, one in enumerate(reported[at : at + 3])
        )
        write(subject, named, exactly=False)
        for one in named:
            gpu = subject[one.uuid]
            assert (gpu.health, gpu.reasons, gpu.memory_used_mb) == (
                one.health,
                one.reasons,
                one.memory_used_mb,
            )
            assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_w) == (
                one.utilization_percent,
                one.temperature_c,
                one.power_w,
            )
        assert subject.usable == sum(gpu.usable for gpu in subject.values())


def test_before_any_figures_nothing_is_known_of_a_gpu() -> None:
    gpu = gpus(1)["GPU-0"]
    assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_w, gpu.memory_used_mb) == (None,) * 4


def test_a_difference_within_one_step_is_none() -> None:
    subject = gpus(2)
    assert write(subject, figures(2, memory_used_mb=1000), exactly=False)
    assert not write(subject, figures(2, memory_used_mb=1000), exactly=False)
    assert not write(subject, figures(2, memory_used_mb=1010, utilization_percent=70.0), exactly=False)
    assert subject["GPU-0"].memory_used_mb == 1010
    assert write(subject, figures(2, memory_used_mb=5000), exactly=False)
    assert write(subject, figures(2, memory_used_mb=5000, health="lost"), exactly=False)
    assert write(subject, figures(2, memory_used_mb=5000), exactly=False)


def test_exactly_means_that_every_difference_in_memory_counts() -> None:
    subject = gpus(1)
    write(subject, figures(memory_used_mb=1000), exactly=True)
    assert write(subject, figures(memory_used_mb=1001), exactly=True)
    assert not write(subject, figures(memory_used_mb=1001), exactly=True)


@given(
    size=strategies.integers(1, 200_000),
    before=strategies.integers(0, 200_000),
    after=strategies.integers(0, 200_000),
)
def test_a_difference_counts_when_free_memory_is_in_another_step(size: int, before: int, after: int) -> None:
    subject = gpus(1, memory_mb=size)
    write(subject, figures(memory_used_mb=before), exactly=False)
    differs = (size - before) // STEP_MB != (size - after) // STEP_MB
    assert write(subject, figures(memory_used_mb=after), exactly=False) == differs


def test_where_memory_is_not_known_every_heartbeat_counts() -> None:
    subject = gpus(1)
    write(subject, figures(memory_used_mb=None), exactly=False)
    assert write(subject, figures(memory_used_mb=None), exactly=False)
    unknown_size = gpus(1, memory_mb=None)
    write(unknown_size, figures(memory_used_mb=5), exactly=False)
    assert write(unknown_size, figures(memory_used_mb=6), exactly=False)


def test_a_node_that_reports_no_figures_counts_as_usable() -> None:
    subject = gpus(2)
    write(subject, figures(2, health="lost", memory_used_mb=500), exactly=False)
    assert subject.usable == 0
    assert write(subject, None, exactly=False)
    assert subject.usable == 2
    assert subject["GPU-0"].memory_used_mb is None


def test_a_gpu_that_the_list_leaves_out_is_not_there_to_be_used() -> None:
    subject = gpus(2)
    write(subject, figures(1), exactly=False)
    assert subject.usable == 1
    assert (subject["GPU-1"].health, subject["GPU-1"].reasons) == ("unknown", ("not_reported",))
    write(subject, figures(2), exactly=False)
    assert subject.usable == 2
    assert (subject["GPU-1"].health, subject["GPU-1"].reasons) == ("ok", ())


def test_a_line_break_in_a_uuid_makes_two_gpus_of_none() -> None:
    subject = Gpus([GpuState(uuid="a\nb", name="A", memory_mb=24576)])
    write(subject, (GpuFigures(uuid="a", memory_used_mb=1), GpuFigures(uuid="b")), exactly=False)
    assert [(gpu.health, gpu.memory_used_mb) for gpu in subject.values()] == [("unknown", None)]
    assert (subject.usable, subject.healths, subject.free_steps) == (0, ("unknown",), None)


@pytest.mark.parametrize(
    ("declared", "reported"),
    [(("a\nb",), ("a", "b")), (("a", "b"), ("a\nb",)), (("a\nb", "c"), ("a", "b\nc"))],
)
def test_no_gpu_gets_the_figures_of_another_whatever_line_breaks_are_in_their_names(
    declared: tuple[str, ...], reported: tuple[str, ...]
) -> None:
    subject = Gpus(GpuState(uuid=uuid, name="A", memory_mb=24576) for uuid in declared)
    write(subject, tuple(GpuFigures(uuid=uuid, memory_used_mb=7) for uuid in reported), exactly=False)
    shown = {uuid for uuid, gpu in subject.items() if gpu.memory_used_mb == 7}
    assert shown == set(declared) & set(reported)


def test_an_empty_list_leaves_no_gpu_to_be_used() -> None:
    subject = gpus(2)
    write(subject, (), exactly=False)
    assert subject.usable == 0


def test_a_gpu_that_was_never_declared_is_not_invented() -> None:
    subject = gpus(1)
    write(subject, figures(3), exactly=False)
    assert list(subject) == ["GPU-0"]
    assert (len(subject), subject.usable) == (1, 1)


def test_gpus_declared_without_a_uuid_are_matched_by_their_position() -> None:
    subject = Gpus(GpuState(uuid=f"#{place}", name="A", memory_mb=24576) for place in range(2))
    write(subject, (*figures(1, health="lost"), figures(2, memory_used_mb=700)[1]), exactly=False)
    assert [(gpu.health, gpu.memory_used_mb) for gpu in subject.values()] == [("lost", 1000), ("ok", 700)]
    assert subject.usable == 1


def test_the_parent_of_mig_slices_is_never_counted_as_usable() -> None:
    parent = GpuState(uuid="GPU-0", name="H100", memory_mb=81920, is_parent=True)
    a_slice = GpuState(uuid="MIG-1", name="1g.10gb", memory_mb=10240, parent_uuid="GPU-0")
    subject = Gpus((parent, a_slice))
    assert subject.usable == 1
    write(subject, (*figures(1), GpuFigures(uuid="MIG-1")), exactly=False)
    assert subject.usable == 1
    write(subject, (*figures(1, health="degraded"), GpuFigures(uuid="MIG-1")), exactly=False)
    assert subject.usable == 1


def test_the_parent_of_slices_counts_under_no_name() -> None:
    parent = GpuState(uuid="GPU-0", name="H100", memory_mb=81920, is_parent=True)
    subject = Gpus([parent, GpuState(uuid="MIG-1", name="H100 MIG 1g.10gb", memory_mb=9856)])
    assert subject.names == (None, "H100 MIG 1g.10gb")
