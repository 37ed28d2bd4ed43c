from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.registration import NothingDeclaredError, Registration
from gpu_agent.wire.messages import GpuDeclaration, Hardware
from tests.session.played import WITH_GPU, WITHOUT_GPU


def _registration(node_id: str | None = "node-A") -> Registration:
    registration = Registration(node_id=node_id)
    registration.declaration = WITH_GPU
    return registration


def test_it_says_who_and_what_at_the_newest_schema() -> None:
    registration = _registration()
    registration.running_jobs = ("job-1",)
    message = registration.compose()
    assert (message.node_id, message.capability_schema_version) == ("node-A", "1.1")
    assert message.hardware == WITH_GPU.hardware
    assert message.running_jobs == ("job-1",)


def test_nothing_can_be_said_before_anything_is_declared() -> None:
    registration = Registration(node_id=None)
    assert not registration.possible
    with pytest.raises(NothingDeclaredError):
        registration.compose()
    with pytest.raises(NothingDeclaredError):
        registration.accepted("node-A", names_schema=True)


def test_r01_without_a_gpu_it_is_not_possible() -> None:
    registration = Registration(node_id=None)
    registration.declaration = WITHOUT_GPU
    assert not registration.possible


def test_refused_gpus_are_not_declared_again_until_they_are_others() -> None:
    registration = _registration()
    registration.compose()
    registration.gpus_refused()
    assert not registration.possible
    sick = replace(WITH_GPU, hardware=_hardware(health="degraded"))
    registration.declaration = sick
    assert not registration.possible
    registration.declaration = replace(WITH_GPU, hardware=_hardware(uuid="GPU-2"))
    assert registration.possible


@pytest.mark.parametrize(
    ("details", "version"),
    [
        ({"supported": ["1.0"]}, "1.0"),
        ({"supported": ["0.9", "1.0", "2.0"]}, "1.0"),
        ({"supported": [1.0, None, "1.0"]}, "1.0"),
        ({"supported": []}, "1.0"),
        ({"supported": "1.0"}, "1.0"),
        ({}, "1.0"),
        (None, "1.0"),
    ],
)
def test_r05_a_refused_schema_falls_back_to_the_highest_that_both_know(
    details: dict[str, Any] | None, version: str
) -> None:
    registration = _registration()
    assert registration.downgrade(details)
    assert registration.compose().capability_schema_version == version
    assert not registration.downgrade(details), "only once"


@pytest.mark.parametrize("supported", [["9.9"], ["1.1"], ["2.0", "3.0"]])
def test_r05_with_no_schema_in_common_there_is_nothing_to_try(supported: list[str]) -> None:
    assert not _registration().downgrade({"supported": supported})


def test_a_refused_schema_is_tried_again_on_the_next_connection() -> None:
    registration = _registration()
    registration.downgrade(None)
    registration.connection_opened()
    assert registration.compose().capability_schema_version == "1.1"
    assert registration.downgrade(None)


def _begins_with(registration: Registration) -> str | None:
    registration.connection_opened()
    return registration.compose().capability_schema_version


def test_silence_makes_the_next_connection_begin_with_the_other_schema() -> None:
    registration, versions = _registration(), []
    for _ in range(4):
        versions.append(_begins_with(registration))
        registration.unanswered()
    assert versions == ["1.1", "1.0", "1.1", "1.0"]


def test_the_oldest_schema_is_kept_for_a_registry_that_names_none_in_its_ack() -> None:
    registration = _registration()
    registration.compose()
    registration.unanswered()
    assert _begins_with(registration) == "1.0"
    registration.accepted("node-A", names_schema=False)
    assert _begins_with(registration) == "1.0"
    registration.accepted("node-A", names_schema=True)
    assert _begins_with(registration) == "1.1"


def test_the_schema_is_raised_once_until_the_newest_one_is_accepted() -> None:
    registration = _registration()
    assert not registration.raise_schema(), "there is no newer one"
    registration.schema_version = "1.0"
    assert registration.raise_schema()
    registration.schema_version = "1.0"
    assert not registration.raise_schema(), "it was in vain"
    assert _begins_with(registration) == "1.1"
    registration.accepted("node-A", names_schema=True)
    registration.schema_version = "1.0"
    assert registration.raise_schema()


def test_a_schema_that_was_refused_on_this_connection_is_not_raised_to() -> None:
    registration = _registration()
    assert registration.downgrade(None)
    assert not registration.raise_schema()


def test_r06_an_id_in_conflict_is_forgotten_once_until_an_ack() -> None:
    registration = _registration()
    assert registration.forget_id()
    assert registration.compose().node_id is None
    assert not registration.forget_id()
    assert registration.accepted("node-B", names_schema=True) == WITH_GPU
    assert registration.node_id == "node-B"
    assert registration.forget_id()


def _hardware(**changed: str) -> Hardware:
    gpu = GpuDeclaration.model_validate({"name": "A100", "memory_gb": 80, "uuid": "GPU-1", **changed})
    return Hardware(cpu_cores=8, memory_gb=64, gpus=(gpu,))
