import pytest

from gpu_agent.registry import declaration as declared
from gpu_agent.registry import health
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ReasonCode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeRegister, ResourceUsage
from tests.registry.harness import declaration, figures, hardware, heartbeat, model, node_record

DEFAULTS = Thresholds()


def node(
    message: Heartbeat | None, registration: NodeRegister | None = None, thresholds: Thresholds = DEFAULTS
) -> NodeRecord:
    registration = registration or declaration(hardware=hardware(2))
    record = node_record(registration)
    declared.write_declaration(record, registration, thresholds)
    if message is not None:
        record.liveness.usage, record.liveness.probe_age_seconds = (
            message.usage,
            message.probe_age_seconds,
        )
        record.gpus.write(message.gpus, exactly=False)
    return record


def usage(gpu_percent: float | None) -> ResourceUsage:
    return ResourceUsage(cpu_percent=1.0, mem_percent=1.0, gpu_percent=gpu_percent)


def failing(record: NodeRecord, thresholds: Thresholds = DEFAULTS) -> dict[str, str]:
    return {check.name: check.detail for check in health.checks(record, thresholds) if not check.ok}


HEALTHY = [
    heartbeat(gpus=figures(2)),
    heartbeat(gpus=None),
    heartbeat(gpus=(*figures(1), figures(2, health="lost")[1])),
    heartbeat(gpus=figures(2, health="degraded")),
    heartbeat(gpus=figures(2), resource_usage=usage(None)),
    heartbeat(gpus=figures(2), resource_usage=usage(100.0)),
    heartbeat(gpus=figures(2), probe_age_seconds=None),
    heartbeat(gpus=figures(2), probe_age_seconds=60.0),
]


@pytest.mark.parametrize("message", HEALTHY)
def test_a_heartbeat_with_one_usable_gpu_and_sane_figures_is_healthy(message: Heartbeat) -> None:
    record = node(message)
    assert health.is_healthy(record, DEFAULTS)
    assert health.definite_failure(record, DEFAULTS) is None
    assert failing(record) == {}


def test_a_node_that_has_not_not_stored_is_not_healthy_and_has_no_checks() -> None:
    record = node(None)
    assert not health.is_healthy(record, DEFAULTS)
    assert health.checks(record, DEFAULTS) == ()


def test_no_usable_gpu_is_a_definite_failure() -> None:
    record = node(heartbeat(gpus=figures(2, health="lost", reasons=("xid_79",))))
    assert not health.is_healthy(record, DEFAULTS)
    assert health.definite_failure(record, DEFAULTS) is ReasonCode.GPU_UNAVAILABLE
    assert failing(record) == {"gpus": "none of the 2 GPUs is usable (2 lost: xid_79)"}


def test_what_a_node_writes_of_its_gpus_is_clipped_and_few_kinds_of_trouble_are_named() -> None:
    registration = declaration(hardware=hardware(40))
    troubles = tuple(
        one.model_copy(update={"health": f"{place:02}{'h' * 1000}", "reasons": ("r" * 1000,) * 64})
        for place, one in enumerate(figures(40))
    )
    detail = failing(node(heartbeat(gpus=troubles), registration))["gpus"]
    assert len(detail) <= 1000
    short = tuple(one.model_copy(update={"health": f"h{place:02}"}) for place, one in enumerate(figures(40)))
    assert failing(node(heartbeat(gpus=short), registration))["gpus"] == (
        "none of the 40 GPUs is usable (1 h00: no reason given; 1 h01: no reason given; "
        "1 h02: no reason given; "
        "1 h03: no reason given; 1 h04: no reason given; and 35 other problems)"
    )


def test_a_hung_driver_is_named_in_the_checks() -> None:
    record = node(
        heartbeat(gpus=figures(2, health="unknown", reasons=("nvml_hung",)), probe_age_seconds=75.0)
    )
    assert failing(record) == {
        "gpus": "none of the 2 GPUs is usable (2 unknown: nvml_hung)",
        "probe_age": "last good GPU reading 75 s ago, limit 60 s",
    }


@pytest.mark.parametrize("percent", [-0.1, 100.1])
def test_a_gpu_percent_outside_0_to_100_is_unhealthy_and_not_definite(percent: float) -> None:
    record = node(heartbeat(gpus=figures(2), resource_usage=usage(percent)))
    assert not health.is_healthy(record, DEFAULTS)
    assert health.definite_failure(record, DEFAULTS) is None
    assert failing(record) == {"gpu_percent": f"{percent:g} %, may be 0 to 100"}


def test_an_old_gpu_reading_is_unhealthy() -> None:
    record = node(heartbeat(gpus=figures(2), probe_age_seconds=60.5))
    assert not health.is_healthy(record, DEFAULTS)
    assert failing(record) == {"probe_age": "last good GPU reading 60.5 s ago, limit 60 s"}


def test_a_required_model_that_is_not_ready_is_a_definite_failure() -> None:
    thresholds = Thresholds(required_models=("asr", "nmt"))
    registration = declaration(installed_models=(model("asr"), model("nmt", status="downloading")))
    record = node(heartbeat(), registration, thresholds)
    assert not health.is_healthy(record, thresholds)
    assert health.definite_failure(record, thresholds) is ReasonCode.MODEL_MISSING
    assert failing(record, thresholds) == {"required_models": "not ready: nmt"}


def test_with_models_enabled_enough_of_them_must_be_ready() -> None:
    thresholds = Thresholds(min_ready_models=2)
    registration = declaration(
        installed_models=(model("a"), model("b", status="error"), model("c", enabled=False))
    )
    record = node(heartbeat(), registration, thresholds)
    assert not health.is_healthy(record, thresholds)
    assert health.definite_failure(record, thresholds) is None
    assert failing(record, thresholds) == {"ready_models": "1 of 2 enabled models ready, needs 2"}


def test_a_node_without_enabled_models_may_be_healthy() -> None:
    thresholds = Thresholds(min_ready_models=2)
    assert health.is_healthy(node(heartbeat(), declaration(), thresholds), thresholds)
    disabled = declaration(installed_models=(model("a", enabled=False),))
    assert health.is_healthy(node(heartbeat(), disabled, thresholds), thresholds)
