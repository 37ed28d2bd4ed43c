"""Each action of an operator is recorded with its reason and its name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from gpu_agent.wire.event_words import event_sentence
from tests.server.api_harness import serving
from tests.server.harness import Node, node, running

WHY = {"reason": "a new fan"}
ASKED = {
    "claim_released",
    "drain_requested",
    "node_control_sent",
    "node_cordoned",
    "node_removed",
    "node_uncordoned",
    "resume_requested",
}
GPU = {"name": "NVIDIA L4", "memory_gb": 24, "uuid": "GPU-1"}


@pytest.mark.parametrize(
    ("action", "event", "words"),
    [
        ("drain", "drain_requested", "drain requested: a new fan (by ada)"),
        ("resume", "resume_requested", "resume requested: a new fan (by ada)"),
        ("cordon", "node_cordoned", "cordoned: a new fan (by ada)"),
        ("uncordon", "node_uncordoned", "uncordoned: a new fan (by ada)"),
        ("gpus/GPU-1/cordon", "gpu_cordoned", "GPU GPU-1 cordoned: a new fan (by ada)"),
        ("gpus/GPU-1/uncordon", "gpu_uncordoned", "GPU GPU-1 uncordoned: a new fan (by ada)"),
        ("refresh", "node_control_sent", "command sent: refresh: a new fan (by ada)"),
        ("reregister", "node_control_sent", "command sent: reregister: a new fan (by ada)"),
        ("check", "node_control_sent", "command sent: check: a new fan (by ada)"),
    ],
)
async def test_an_action_on_a_node_is_recorded(action: str, event: str, words: str) -> None:
    async with running(auth_on=True) as service, serving(service) as api:
        headers = await ada(service, Role.OPERATE)
        async with joined(service) as one:
            answer = await api.post(f"/v1/nodes/{one.node_id}/{action}", json=WHY, headers=headers)
            assert answer.status_code == 200, answer.text
            recorded = [found for found in service.event_log.history_of(one.node_id) if found.event == event]
    assert (recorded[-1].fields["reason"], recorded[-1].fields["by"]) == ("a new fan", "ada")
    assert event_sentence(recorded[-1]) == words


async def test_a_removal_and_a_release_are_recorded() -> None:
    async with running(auth_on=True) as service, serving(service) as api:
        headers = await ada(service, Role.ADMIN)
        with service.event_log.subscribe() as events:
            async with joined(service) as one:
                made = await api.post("/v1/claims", json={"job_id": "job-1"}, headers=headers)
                assert made.status_code == 200, made.text
                for path in ("claims/job-1", f"nodes/{one.node_id}"):
                    answer = await api.delete(f"/v1/{path}", params=WHY, headers=headers)
                    assert answer.status_code == 204, answer.text
            told = [found for found in events.take(1000) if found.fields.get("by")]
    assert [event_sentence(found) for found in told] == [
        "claim of job job-1 released: a new fan (by ada)",
        "removed: a new fan (by ada)",
    ]


@pytest.mark.parametrize("action", ["drain", "resume", "cordon", "uncordon", "refresh"])
async def test_a_reason_longer_than_500_characters_is_refused(
    api: httpx.AsyncClient, ready: Node, action: str
) -> None:
    answer = await api.post(f"/v1/nodes/{ready.node_id}/{action}", json={"reason": "x" * 501})
    assert answer.status_code == 422
    assert "$.reason" in answer.json()["detail"]


async def ada(service: RegistryService, role: Role) -> dict[str, str]:
    made = await service.tokens.create_operator(role, name="ada")
    assert isinstance(made, NewToken)
    return {"Authorization": f"Bearer {made.token}"}


@asynccontextmanager
async def joined(service: RegistryService) -> AsyncIterator[Node]:
    """A ready node with one GPU."""
    made = await service.tokens.create_join()
    assert isinstance(made, NewToken)
    async with node(service, token=made.token) as one:
        hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": [GPU]}
        await one.become_ready(capability_schema_version="1.1", hardware=hardware)
        yield one


async def test_what_nobody_said_is_no_field() -> None:
    async with running(auth_on=False) as service, serving(service) as api:
        with service.event_log.subscribe() as events:
            async with joined(service) as one:
                await api.post("/v1/claims", json={"job_id": "job-1"})
                await api.delete("/v1/claims/job-1")
                for action in ("cordon", "uncordon", "check", "drain", "resume"):
                    answer = await api.post(f"/v1/nodes/{one.node_id}/{action}", json={})
                    assert answer.status_code == 200, answer.text
                await api.delete(f"/v1/nodes/{one.node_id}")
            told = [found for found in events.take(1000) if found.event in ASKED]
    assert {found.event for found in told} == ASKED
    assert not [found for found in told if {"reason", "by"} & found.fields.keys()]
    assert {event_sentence(found) for found in told} == {
        "claim of job job-1 released",
        "cordoned",
        "uncordoned",
        "command sent: check",
        "drain requested",
        "resume requested",
        "removed",
    }
