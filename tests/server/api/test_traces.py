"""A caller's trace, from its header to every event that it caused, on a real registry."""

import logging

import httpx
import pytest
from starlette.datastructures import Headers

from gpu_agent.server.http_headers import trace_id_of
from gpu_agent.server.service import RegistryService
from tests.server.harness import Node, node

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def named(*headers: tuple[str, str]) -> str | None:
    return trace_id_of(
        Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in headers]).getlist
    )


def test_traceparent_names_the_trace_or_else_the_request_id() -> None:
    assert named(("traceparent", PARENT)) == TRACE
    assert named(("X-Request-Id", "req-7")) == "req-7"
    assert named(("x-request-id", "req-7"), ("Traceparent", PARENT)) == TRACE
    assert named(("traceparent", f"01-{TRACE}-00f067aa0ba902b7-01-what-is-new")) == TRACE
    assert named(("host", "x")) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        PARENT.upper(),
        f"{PARENT}more",
    ],
)
def test_a_traceparent_that_is_none_names_nothing(value: str) -> None:
    assert named(("traceparent", value)) is None
    assert named(("traceparent", value), ("x-request-id", "req-7")) == "req-7"


@pytest.mark.parametrize("value", ["", "a b", "ä", "x" * 129])
def test_a_request_id_that_would_upset_a_log_names_nothing(value: str) -> None:
    assert named(("x-request-id", value)) is None


def test_a_header_that_is_sent_twice_names_no_trace() -> None:
    assert named(("x-request-id", "a"), ("x-request-id", "b")) is None
    assert named(("traceparent", PARENT), ("traceparent", PARENT)) is None


async def traces(api: httpx.AsyncClient, node_id: str) -> dict[str, object]:
    """By event: the trace that a node's history names for it."""
    events = (await api.get(f"/v1/nodes/{node_id}/events")).json()["events"]
    return {event["event"]: event["fields"].get("trace_id") for event in events}


async def test_every_event_of_a_request_has_its_trace(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    for number, (method, sub, body) in enumerate(
        (
            ("POST", f"{path}/cordon", {}),
            ("POST", f"{path}/uncordon", {}),
            ("POST", f"{path}/refresh", {}),
            ("POST", "/v1/claims", {"job_id": "job-1"}),
            ("POST", f"{path}/drain", {}),
        )
    ):
        answer = await api.request(method, sub, json=body, headers={"X-Request-Id": f"req-{number}"})
        assert answer.status_code == 200
    assert (await api.delete("/v1/claims/job-1", headers={"traceparent": PARENT})).status_code == 204
    found = await traces(api, ready.node_id)
    assert found["node_cordoned"] == "req-0"
    assert found["node_uncordoned"] == "req-1"
    assert found["node_control_sent"] == "req-2"
    assert found["job_assigned"] == "req-3"
    assert found["drain_requested"] == "req-4"
    assert found["node_status_changed"] == TRACE  # the release ended the drain
    assert found["node_registered"] is None
    assert "resume_requested" not in found
    await api.post(f"{path}/resume", json={})
    assert (await traces(api, ready.node_id))["resume_requested"] is None


async def test_tokens_and_failed_dispatches_are_logged_with_the_trace_of_the_request(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        headers = {"traceparent": PARENT}
        await api.post("/v1/tokens", json={"kind": "join"}, headers=headers)
        await api.post("/v1/claims", json={"job_id": "job-1"}, headers=headers)
    found = {record.getMessage(): record.__dict__.get("fields", {}) for record in caplog.records}
    assert found["token_created"]["trace_id"] == TRACE
    assert found["dispatch_failed"]["trace_id"] == TRACE
    assert found["operator_request"]["trace_id"] == TRACE


async def test_an_event_that_a_node_causes_has_no_trace(
    api: httpx.AsyncClient, service: RegistryService
) -> None:
    async with node(service) as other:
        await other.register()
        await api.post(f"/v1/nodes/{other.node_id}/cordon", json={}, headers={"X-Request-Id": "req-1"})
        await other.register()
        found = await traces(api, other.node_id)
    assert (found["node_cordoned"], found["node_registered"]) == ("req-1", None)
