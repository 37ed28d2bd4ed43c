"""A simulated machine: the same GPUs for one seed, plausible figures at any time, faults at their times."""

import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.nvml.readings import FIGURES
from gpu_agent.probe.simulation.gpu_models import GPU_MODELS, GpuModel, SimulationError
from gpu_agent.probe.simulation.gpus import SimulatedGpus, read_simulated_once
from gpu_agent.wire.inventory import Gpu, Health, Outcome

UUID = re.compile(r"^GPU-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}$")


def test_the_same_spec_and_seed_are_the_same_gpus_at_the_same_time() -> None:
    one, two = SimulatedGpus("8xH100", seed="m"), SimulatedGpus("8 x h100-80GB", seed="m")
    assert one.read(1234.5) == two.read(1234.5)
    assert one.read(1234.5) != one.read(1300.0)


def test_uuids_are_well_formed_stay_and_differ_between_machines_and_specs() -> None:
    specs = ("8xH100", "7xH100")
    machines = [SimulatedGpus(spec, seed=seed) for spec in specs for seed in ("one", "two")]
    uuids = [gpu.uuid for machine in machines for gpu in machine.read(0).gpus]
    assert len(set(uuids)) == 30
    assert all(UUID.match(uuid) for uuid in uuids)
    assert uuids == [gpu.uuid for machine in machines for gpu in machine.read(9e9).gpus]


def test_every_product_becomes_a_whole_gpu() -> None:
    report = SimulatedGpus(",".join(product.label for product in GPU_MODELS), seed="m").read(10)
    assert report.outcome is Outcome.OK
    assert report.driver_version is None
    assert len(report.usable) == len(GPU_MODELS)
    for index, (gpu, product) in enumerate(zip(report.gpus, GPU_MODELS, strict=True)):
        assert (gpu.index, gpu.name, gpu.memory_mb) == (index, product.name, product.memory_mb)
        assert (gpu.compute_capability, gpu.health) == (product.compute_capability, Health.OK)
        assert gpu.memory_kind is product.memory_kind
    assert len({gpu.pci_bus_id for gpu in report.gpus}) == len(GPU_MODELS)


@given(st.floats(min_value=0, max_value=4e9), st.sampled_from(GPU_MODELS))
def test_figures_stay_plausible_and_never_keep_a_job_away(now: float, product: GpuModel) -> None:
    (gpu,) = SimulatedGpus(product.label, seed="m").read(now).gpus
    assert gpu.memory_mb is not None
    assert gpu.memory_used_mb is not None
    assert 0 < gpu.memory_used_mb < 0.5 * gpu.memory_mb
    assert gpu.memory_free_mb == gpu.memory_mb - gpu.memory_used_mb
    assert gpu.utilization_percent is not None
    assert 0 <= gpu.utilization_percent <= 70
    assert gpu.temperature_c is not None
    assert 30 <= gpu.temperature_c <= 85
    assert gpu.power_w is not None
    assert gpu.power_limit_w is not None
    assert 0 < gpu.power_w < gpu.power_limit_w


@given(st.floats(min_value=0, max_value=1e6))
def test_figures_drift_and_do_not_jump(now: float) -> None:
    machine = SimulatedGpus("L4", seed="m")
    before, after = machine.read(now).gpus[0], machine.read(now + 0.5).gpus[0]
    assert before.utilization_percent is not None
    assert after.utilization_percent is not None
    assert abs(before.utilization_percent - after.utilization_percent) < 5


def test_faults_and_mig_devices_leave_the_identities_as_they_are() -> None:
    plain = SimulatedGpus("2xA100-80GB", seed="m").read(0).gpus
    faulty = SimulatedGpus("2xA100-80GB/2x1g.10gb:lost#1", seed="m").read(0).gpus
    assert [gpu.uuid for gpu in plain] == [gpu.uuid for gpu in faulty if gpu.parent_uuid is None]


def test_a_gpu_in_mig_mode_is_listed_with_its_mig_devices() -> None:
    report = SimulatedGpus("A100-80GB/3g.40gb+2x1g.10gb,L4", seed="m").read(50)
    whole, *mig_devices, other = report.gpus
    assert (whole.mig_enabled, whole.utilization_percent) == (True, None)
    assert whole.unknowns["utilization_percent"]
    assert [each.name.rpartition(" ")[2] for each in mig_devices] == ["3g.40gb", "1g.10gb", "1g.10gb"]
    assert {(each.parent_uuid, each.index) for each in mig_devices} == {(whole.uuid, 0)}
    assert len({each.uuid for each in report.gpus}) == 5
    assert all(each.uuid.startswith("MIG-") for each in mig_devices)
    assert report.usable == (*mig_devices, other)


def test_every_figure_that_is_unknown_has_a_reason() -> None:
    figures = [each.name for each in fields(Gpu) if each.name in FIGURES]
    for gpu in SimulatedGpus("A100-80GB/3g.40gb,L4:degraded", seed="m").read(50).gpus:
        assert {name for name in figures if getattr(gpu, name) is None} == set(gpu.unknowns)


def test_a_fault_counts_its_time_from_the_first_reading() -> None:
    machine = SimulatedGpus("2xL4:lost#2@60s-120s", seed="m")
    healths = [
        [gpu.health.value for gpu in machine.read(1e9 + after).gpus] for after in (0, 59, 60, 119, 120)
    ]
    assert healths == [["ok", "ok"], ["ok", "ok"], ["ok", "lost"], ["ok", "lost"], ["ok", "ok"]]


def test_an_event_is_reported_once_even_when_a_reading_came_late() -> None:
    machine = SimulatedGpus("L4:xid94@60s", seed="m")
    events = [dict(machine.read(100 + after).gpus[0].events) for after in (0, 59, 200, 201)]
    assert events == [{}, {}, {"xid_94": 1}, {}]


def test_a_hang_has_a_start_and_an_end() -> None:
    machine = SimulatedGpus("L4:hang@60s-90s", seed="m")
    assert [machine.hung_seconds(100 + after) for after in (0, 60, 80, 90)] == [None, 0, 20, None]


def test_the_next_change_is_known_until_no_fault_is_left() -> None:
    machine = SimulatedGpus("2xL4:lost#2@60s-120s:hang@200s-210s;models:whisper=asr:error@30s", seed="m")
    seconds = [machine.seconds_to_change(100 + after) for after in (0, 30, 60, 130, 205, 210)]
    assert seconds == [30, 30, 60, 70, 5, None]
    assert SimulatedGpus("8xH100-80GB", seed="m").seconds_to_change(1e9) is None


def test_what_holds_from_the_beginning_is_seen_and_what_comes_later_is_not() -> None:
    report = read_simulated_once("3xL4:xid79#1:degraded#2:lost#3@60s", seed="m", now=1e9)
    assert report.outcome is Outcome.OK
    assert [gpu.health.value for gpu in report.gpus] == ["lost", "degraded", "ok"]
    assert [each.code for each in report.gpus[0].reasons] == ["gpu_lost", "xid_79"]
    assert report.gpus[0].reasons[0].since == 1e9


def test_a_driver_that_hangs_from_the_beginning_is_broken() -> None:
    report = read_simulated_once("L4:hang", seed="m", now=0)
    assert (report.outcome, report.gpus) == (Outcome.DRIVER_BROKEN, ())
    assert "did not answer within 5 s" in (report.detail or "")


def test_a_line_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(SimulationError, match="nearest"):
        read_simulated_once("8xH1000", seed="m", now=0)
