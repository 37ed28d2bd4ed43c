"""The documents that the registry makes of its nodes, claims and dispatches."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from gpu_agent.registry.claim_history import ClaimHistory, ClaimRecord, GpuUse
from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.exclusions import (
    Eligible,
    Excluded,
    ExclusionCounters,
    Explanation,
    NoAvailableNode,
)
from gpu_agent.registry.events import HeartbeatReceived, RegistrationReceived
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Claim, ClaimEnd, Grant, Job
from gpu_agent.registry.node import Drain, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import FreshToken, tokens_of_joining_node
from gpu_agent.server import views
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import (
    ALL_NODES,
    NODES_IN_A_PIECE,
    Clock,
    GpuFacts,
    NodeFilter,
    claims_page,
    explanation_json,
)
from gpu_agent.wire.api import (
    ExcludedNode,
    ExplanationView,
    NodeDetail,
    NodeSummary,
    NodeTokenView,
    RegistryEvent,
)
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.codes import ExclusionReason, NodeStatus, ReasonCode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister
from tests.server.harness import Node, heartbeat, registration

THRESHOLDS = Thresholds()
NO_FACTS = GpuFacts((), ClaimHistory())
CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
UUID = "GPU-1"
GPU = {"name": "NVIDIA L4", "memory_gb": 24, "memory_mb": 23034, "uuid": UUID}
FIGURES = {"uuid": UUID, "utilization_percent": 40.0, "memory_used_mb": 1000, "temperature_c": 61.0}


def record(*, alive: bool = True, **fields: object) -> NodeRecord:
    fleet = Fleet(THRESHOLDS, lambda: 0.5, auth_off=True)
    hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": [GPU], "driver_version": "580.1"}
    message = decode_from_node(json.dumps(registration(node_id="node-1", hardware=hardware, **fields)))
    assert isinstance(message, NodeRegister)
    fleet.handle(RegistrationReceived(1, message, fresh_id="node-X", address="10.0.0.1:5"), 90.0)
    if alive:
        first_heartbeat = decode_from_node(
            json.dumps(heartbeat("node-1", gpus=[FIGURES], probe_age_seconds=1.5))
        )
        assert isinstance(first_heartbeat, NodeHeartbeat)
        fleet.handle(HeartbeatReceived(1, Heartbeat.of(first_heartbeat)), 97.5)
    found = fleet.node("node-1")
    assert found is not None
    return found


def detail(of: NodeRecord, *events: RegistryEvent) -> NodeDetail:
    return views.node_detail(of, CLOCK, thresholds=THRESHOLDS, gpus=NO_FACTS, events=events, stored=True)


def summary(of: NodeRecord) -> NodeSummary:
    return views.node_summary(of, CLOCK, thresholds=THRESHOLDS, gpus=NO_FACTS, stored=True)


def test_a_list_shows_status_figures_and_the_age_of_the_last_heartbeat() -> None:
    shown = summary(record())
    assert (shown.status, shown.reason_code, shown.since) == ("registering", "registered", 999_990.0)
    assert shown.clears_when is not None
    assert shown.clears_when.startswith("2 more healthy heartbeats in a row")
    assert shown.last_heartbeat_age_seconds == 2.5
    (gpu,) = shown.gpus
    assert (gpu.uuid, gpu.memory_mb, gpu.memory_used_mb, gpu.utilization_percent) == (UUID, 23034, 1000, 40.0)
    assert gpu.power_w is None
    assert gpu.usable


def test_a_round_trip_is_shown_in_milliseconds_where_it_is_known() -> None:
    shown = record()
    assert detail(shown).round_trip_ms is None
    shown.liveness.round_trip_seconds = 0.0123456
    assert detail(shown).round_trip_ms == 12.346


def test_figures_are_unknown_before_the_first_heartbeat() -> None:
    shown = detail(record(alive=False))
    assert (shown.last_heartbeat_age_seconds, shown.cpu_percent, shown.probe_age_seconds) == (
        None,
        None,
        None,
    )
    assert shown.checks == ()


def test_a_node_shows_its_granted_labels_and_its_token() -> None:
    known = record(labels={"zone": "a"})
    assert (detail(known).token, detail(known).granted_labels) == (None, {})
    known.granted_labels = {"team": "red"}
    known.tokens = tokens_of_joining_node(
        FreshToken("0123abcd", "gpun_x", "digest"), "89abcdef"
    ).with_rotation()
    shown = detail(known)
    assert shown.token == NodeTokenView(token_id="0123abcd", rotating=True, joined_by="89abcdef")
    assert shown.granted_labels == {"team": "red"}
    assert "digest" not in repr(shown)


def test_the_latest_reported_status_of_a_model_is_shown() -> None:
    shown = summary(record(capability_state={"m": "downloading"}))
    assert [(model.model_id, model.status) for model in shown.installed_models] == [("m", "downloading")]
    assert [model.status for model in summary(record()).installed_models] == ["ready"]


def test_a_node_in_full_has_checks_and_what_would_change_its_status() -> None:
    event = RegistryEvent(1.0, "node_registered", "node-1")
    shown = detail(record(labels={"zone": "a"}, features_supported={"emotion_detection": True}), event)
    assert shown.checks[0].name == "gpus"
    assert (shown.healthy_heartbeats, shown.heartbeats_needed) == (1, 2)
    assert shown.clears_when
    assert (shown.labels, shown.events) == ({"zone": "a"}, (event,))
    assert "emotion_detection" in shown.features
    assert (shown.driver_version, shown.probe_age_seconds, shown.cpu_percent) == ("580.1", 1.5, 10.0)
    assert shown.address == "10.0.0.1:5"


def test_a_drain_is_shown_with_its_deadline_as_unix_time() -> None:
    drained = record()
    drained.desired.drain = Drain(by_operator=True, deadline=160.0, reason="new driver")
    shown = detail(drained).drain
    assert shown is not None
    assert (shown.deadline, shown.reason) == (1_000_060.0, "new driver")


def test_a_view_is_a_copy() -> None:
    live = record(labels={"zone": "a"})
    shown = detail(live)
    live.declared = replace(live.declared, labels={"zone": "b"})
    live.reason = "changed"
    assert (shown.labels["zone"], shown.reason) != ("b", "changed")


def test_a_view_is_plain_json() -> None:
    document = json.loads(TypeAdapter(NodeDetail).dump_json(detail(record())))
    assert document["gpus"][0]["uuid"] == UUID
    assert document["status"] == "registering"


def claim(
    job_id: str, node_ids: tuple[str, ...] = ("node-1",), gpu_uuids: tuple[str, ...] = ()
) -> ClaimRecord:
    grants = tuple(
        Grant(node_id=one, gpu_uuids=gpu_uuids, endpoint="http://10.0.0.1:9000") for one in node_ids
    )
    return ClaimRecord(
        Claim(
            claim_id=f"claim-{job_id}",
            job=Job(job_id=job_id, gpu_count=len(gpu_uuids) or None),
            owner="ann",
            grants=grants,
            granted_at=90.0,
            expires_at=160.0,
            ttl_seconds=70.0,
        )
    )


def test_a_claim_says_until_when_in_unix_time_and_in_seconds_from_now() -> None:
    shown = views.claim_view(claim("job-1", gpu_uuids=(UUID,)), CLOCK)
    assert (shown.expires_at, shown.expires_in_seconds, shown.ttl_seconds) == (1_000_060.0, 60.0, 70.0)
    assert (shown.state, shown.owner, shown.ended_at) == ("active", "ann", None)
    assert (shown.node_id, shown.gpu_uuids, shown.endpoint) == ("node-1", (UUID,), "http://10.0.0.1:9000")
    assert [one.node_id for one in shown.nodes] == ["node-1"]


def test_a_gpu_without_a_uuid_is_given_none_in_a_claim() -> None:
    shown = views.claim_view(claim("job-1", gpu_uuids=("#0", "GPU-1")), CLOCK)
    assert (shown.gpu_uuids, shown.nodes[0].gpu_uuids) == (("GPU-1",), ("GPU-1",))


def test_a_claim_on_two_nodes_has_no_node_of_its_own_at_the_top() -> None:
    shown = views.claim_view(claim("job-1", ("node-1", "node-2")), CLOCK)
    assert (shown.node_id, shown.gpu_uuids, shown.endpoint) == (None, None, None)
    assert [one.node_id for one in shown.nodes] == ["node-1", "node-2"]


@pytest.mark.parametrize(("held", "state"), [(True, "held"), (False, "expired")])
def test_an_ended_claim_says_how_it_ended_unless_it_still_holds_gpus(*, held: bool, state: str) -> None:
    ended = claim("job-1")
    ended.end, ended.ended_at = ClaimEnd.EXPIRED, 99.0
    shown = views.claim_view(ended, CLOCK, held=held)
    assert (shown.state, shown.ended_at) == (state, 999_999.0)


def test_a_claim_in_full_has_what_happened_to_it_and_how_busy_its_gpus_were() -> None:
    one = claim("job-1", gpu_uuids=(UUID,))
    one.notes.append((95.0, "its GPUs were idle for 900 s"))
    one.use["node-1", UUID] = GpuUse(readings=2, total_percent=30.0, highest_percent=25.0)
    one.use["node-1", "GPU-2"] = GpuUse()
    shown = views.claim_detail(one, CLOCK, held=False)
    assert [(note.at, note.text) for note in shown.history] == [
        (999_990.0, "granted on node-1"),
        (999_995.0, "its GPUs were idle for 900 s"),
    ]
    assert [
        (use.gpu_uuid, use.mean_utilization_percent, use.highest_utilization_percent) for use in shown.gpu_use
    ] == [(UUID, 15.0, 25.0), ("GPU-2", None, None)]


def test_a_selection_has_a_score_unless_the_job_holds_a_claim() -> None:
    chosen = views.selection_view("job-2", Choice((Grant(node_id="node-2", gpu_uuids=("GPU-2",)),), 900))
    assert (chosen.job_id, chosen.node_id, chosen.score, chosen.held) == ("job-2", "node-2", 900, False)
    held = views.selection_view("job-1", claim("job-1", gpu_uuids=("GPU-1", "#1")).claim)
    assert (held.node_id, held.gpu_uuids, held.score, held.held) == ("node-1", ("GPU-1",), None, True)


def test_a_minute_of_failures_is_shown_by_names() -> None:
    counted, reason = ExclusionCounters(), ExclusionReason.CORDONED
    examples = {reason: (Excluded("node-1", reason, "none", "fans"),)}
    counted.count(NoAvailableNode("job-1", {reason: 3}, examples), 70.0)
    (window,) = counted.windows(100.0)
    shown = views.exclusions_view(window, CLOCK)
    assert (shown.window_start, shown.window_end, shown.failed) == (999_960.0, 1_000_020.0, 1)
    assert (shown.counts, shown.last_jobs) == ({"cordoned": 3}, ("job-1",))
    assert shown.examples == {
        "cordoned": (ExcludedNode(node_id="node-1", reason="cordoned", need="none", have="fans"),)
    }


async def test_failed_dispatches_are_counted_by_the_minute(service: RegistryService, ready: Node) -> None:
    await service.claim(Job(job_id="job-1", required_models=("other",)))
    (minute,) = service.exclusions()
    assert (minute.failed, minute.counts, minute.last_jobs) == (1, {"model_not_available": 1}, ("job-1",))
    assert [one.node_id for one in minute.examples["model_not_available"]] == [ready.node_id]
    assert abs(minute.window_start - time.time()) < 61
    assert minute.window_end - minute.window_start == pytest.approx(60.0)


CLAIMS = [claim("c"), claim("a"), claim("d", ("node-2",)), claim("b", ("node-1", "node-2"))]


def jobs(claims: list[ClaimRecord]) -> list[str]:
    return [one.claim.job_id for one in claims]


def test_claims_are_sorted_by_job() -> None:
    assert jobs(claims_page(CLAIMS)) == ["a", "b", "c", "d"]


def test_a_page_begins_after_a_job_and_has_a_limit() -> None:
    assert jobs(claims_page(CLAIMS, after="a", limit=2)) == ["b", "c"]
    assert jobs(claims_page(CLAIMS, after="d", limit=2)) == []


def test_a_page_can_be_for_one_node() -> None:
    assert jobs(claims_page(CLAIMS, node_id="node-2")) == ["b", "d"]


def labelled_record() -> NodeRecord:
    message = decode_from_node(json.dumps(registration(node_id="node-1", labels={"zone": "a", "rack": "7"})))
    assert isinstance(message, NodeRegister)
    fleet = Fleet(Thresholds(), lambda: 0.5, auth_off=True)
    fleet.handle(RegistrationReceived(1, message, fresh_id="node-X"), 0.0)
    found = fleet.node("node-1")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "condition",
    [
        ALL_NODES,
        NodeFilter(statuses=frozenset({NodeStatus.REGISTERING, NodeStatus.READY})),
        NodeFilter(reason=ReasonCode.REGISTERED),
        NodeFilter(model="m"),
        NodeFilter(labels={"zone": "a", "rack": "7"}),
        NodeFilter(labels={"zone": ("b", "a"), "rack": "7"}),
        NodeFilter(gpu_name="nvidia l"),
        NodeFilter(connected=True),
    ],
)
def test_a_node_matches_if_every_condition_holds(condition: NodeFilter) -> None:
    assert condition.matches(labelled_record())


@pytest.mark.parametrize(
    "condition",
    [
        NodeFilter(statuses=frozenset({NodeStatus.READY})),
        NodeFilter(reason=ReasonCode.FLAPPING),
        NodeFilter(model="other"),
        NodeFilter(labels={"zone": "a", "rack": "8"}),
        NodeFilter(labels={"row": "1"}),
        NodeFilter(labels={"zone": ("b", "c")}),
        NodeFilter(gpu_name="H100"),
        NodeFilter(connected=False),
    ],
)
def test_a_node_does_not_match_if_one_condition_fails(condition: NodeFilter) -> None:
    assert not condition.matches(labelled_record())


def excluded(count: int) -> tuple[Excluded, ...]:
    reason = ExclusionReason.MODEL_NOT_AVAILABLE
    return tuple(Excluded(f"node-{n}", reason, 'model "m"', "not installed") for n in range(count))


def eligible(*node_ids: str) -> tuple[Eligible, ...]:
    return tuple(Eligible(node_id, 7, f"host-{node_id}") for node_id in node_ids)


async def text_of(explanation: Explanation) -> bytes:
    return b"".join([piece async for piece in explanation_json(explanation, explanation.excluded)])


async def test_an_explanation_in_pieces_reads_as_its_model() -> None:
    explanation = Explanation('job "1"', eligible("node-a", "node-b"), excluded(2))
    answer = ExplanationView.model_validate_json(await text_of(explanation))
    assert (answer.job_id, answer.eligible) == ('job "1"', ("node-a", "node-b"))
    assert [(one.hostname, one.score) for one in answer.eligible_nodes] == [
        ("host-node-a", 7),
        ("host-node-b", 7),
    ]
    assert [(one.node_id, one.reason, one.need) for one in answer.excluded] == [
        ("node-0", "model_not_available", 'model "m"'),
        ("node-1", "model_not_available", 'model "m"'),
    ]
    assert answer.counts == {"model_not_available": 2}


async def test_an_explanation_without_nodes_is_valid() -> None:
    assert json.loads(await text_of(Explanation("job-1", (), ()))) == {
        "job_id": "job-1",
        "eligible": [],
        "eligible_nodes": [],
        "excluded": [],
        "nodes_needed": 1,
        "counts": {},
    }


async def test_other_tasks_run_between_the_pieces_of_a_long_explanation() -> None:
    count = 3 * NODES_IN_A_PIECE + 1
    explanation = Explanation("job-1", eligible(*[f"node-{n}" for n in range(count)]), excluded(count))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(other())
        answer = json.loads(await text_of(explanation))
        counting.cancel()
    assert (len(answer["eligible"]), len(answer["excluded"])) == (count, count)
    assert turns >= 6
