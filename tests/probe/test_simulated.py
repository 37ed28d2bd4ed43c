import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.products import PRODUCTS, Product, SimulationError
from gpu_agent.probe.simulated import MAX_GPUS, SimulatedGpus, parse
from gpu_agent.wire.inventory import Health, Outcome

UUID = re.compile(r"^GPU-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}$")


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("8xH100-80GB", ["H100-80GB"] * 8),
        ("4xA100-80GB,2xL4-24GB", ["A100-80GB"] * 4 + ["L4-24GB"] * 2),
        (" 1 X t4 , 1\u00d7V100-16gb ", ["T4-16GB", "V100-16GB"]),
        ("h200", ["H200-141GB"]),
        (f"{MAX_GPUS}xL4", ["L4-24GB"] * MAX_GPUS),
    ],
)
def test_a_spec_is_a_list_of_groups(spec: str, labels: list[str]) -> None:
    assert [product.label for product in parse(spec)] == labels


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "empty group"),
        ("2xH100,,1xL4", "empty group"),
        ("8x", "'8x' names no GPU: write for example 8xH100-80GB"),
        ("0xH100", "asks for no GPU at all"),
        ("65xT4", "more than 64 GPUs"),
        ("40xT4,40xL4", "more than 64 GPUs"),
        ("9" * 5000 + "xT4", "more than 64 GPUs"),
        ("2xA100", "several sizes"),
        ("xH100", "nearest is H100-80GB"),
        ("-1xH100", "nearest is H100-80GB"),
        ("8xH100-90GB", "nearest is H100-80GB"),
    ],
)
def test_a_bad_spec_is_answered_with_what_to_write(spec: str, says: str) -> None:
    with pytest.raises(SimulationError, match=re.escape(says)):
        parse(spec)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_answered(spec: str) -> None:
    try:
        assert 1 <= len(parse(spec)) <= MAX_GPUS
    except SimulationError as error:
        assert str(error).endswith(".")  # noqa: PT017  both outcomes are right for some text


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
    report = SimulatedGpus(",".join(product.label for product in PRODUCTS), seed="m").read(10)
    assert report.outcome is Outcome.OK
    assert report.driver_version is None
    assert len(report.usable) == len(PRODUCTS)
    for index, (gpu, product) in enumerate(zip(report.gpus, PRODUCTS, strict=True)):
        assert (gpu.index, gpu.name, gpu.memory_mb) == (index, product.name, product.memory_mb)
        assert (gpu.compute_capability, gpu.health) == (product.compute_capability, Health.OK)
    assert len({gpu.pci_bus_id for gpu in report.gpus}) == len(PRODUCTS)


@given(st.floats(min_value=0, max_value=4e9), st.sampled_from(PRODUCTS))
def test_figures_stay_plausible_and_never_keep_a_job_away(now: float, product: Product) -> None:
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
