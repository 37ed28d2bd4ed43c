import json

from pydantic import TypeAdapter

from gpu_agent.registry.credentials import FreshToken
from gpu_agent.registry.events import BeatArrived, RegistrationArrived
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Claim
from gpu_agent.registry.keys import joined
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server import viewing
from gpu_agent.server.chronicle import RegistryEvent
from gpu_agent.server.clock import Clock
from gpu_agent.server.views import NodeDetail, NodeTokenView
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister
from tests.server.harness import beat, registration

THRESHOLDS = Thresholds()
CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
UUID = "GPU-1"
GPU = {"name": "NVIDIA L4", "memory_gb": 24, "memory_mb": 23034, "uuid": UUID}
FIGURES = {"uuid": UUID, "utilization_percent": 40.0, "memory_used_mb": 1000, "temperature_c": 61.0}


def record(*, beaten: bool = True, **fields: object) -> NodeRecord:
    fleet = Fleet(THRESHOLDS, lambda: 0.5, auth_off=True)
    hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": [GPU], "driver_version": "580.1"}
    message = decode_from_node(json.dumps(registration(node_id="node-1", hardware=hardware, **fields)))
    assert isinstance(message, NodeRegister)
    fleet.handle(RegistrationArrived(1, message, fresh_id="node-X", address="10.0.0.1:5"), 90.0)
    if beaten:
        lived = decode_from_node(json.dumps(beat("node-1", gpus=[FIGURES], probe_age_seconds=1.5)))
        assert isinstance(lived, NodeHeartbeat)
        fleet.handle(BeatArrived(1, lived), 97.5)
    found = fleet.node("node-1")
    assert found is not None
    return found


def detail(of: NodeRecord, *events: RegistryEvent) -> NodeDetail:
    return viewing.detail(of, CLOCK, thresholds=THRESHOLDS, events=events)


def test_a_list_shows_status_figures_and_the_age_of_the_last_beat() -> None:
    shown = viewing.summary(record(), CLOCK, THRESHOLDS)
    assert (shown.status, shown.reason_code, shown.since) == ("registering", "registered", 999_990.0)
    assert shown.clears_when is not None
    assert shown.clears_when.startswith("2 more healthy beats in a row")
    assert shown.last_beat_age_seconds == 2.5
    (gpu,) = shown.gpus
    assert (gpu.uuid, gpu.memory_mb, gpu.memory_used_mb, gpu.utilization_percent) == (UUID, 23034, 1000, 40.0)
    assert gpu.power_w is None
    assert gpu.usable


def test_a_round_trip_is_shown_in_milliseconds_where_it_is_known() -> None:
    shown = record()
    assert detail(shown).round_trip_ms is None
    shown.round_trip_seconds = 0.0123456
    assert detail(shown).round_trip_ms == 12.346


def test_what_no_beat_has_said_is_unknown() -> None:
    shown = detail(record(beaten=False))
    assert (shown.last_beat_age_seconds, shown.cpu_percent, shown.probe_age_seconds) == (None, None, None)
    assert shown.checks == ()


def test_a_node_shows_what_its_join_token_gave_it_and_by_which_token_it_is_known() -> None:
    known = record(labels={"zone": "a"})
    assert (detail(known).token, detail(known).granted_labels) == (None, {})
    known.granted_labels = {"team": "red"}
    known.keys = joined(FreshToken("0123abcd", "gpun_x", "digest"), "89abcdef").to_be_rotated()
    shown = detail(known)
    assert shown.token == NodeTokenView(token_id="0123abcd", rotating=True, joined_by="89abcdef")
    assert shown.granted_labels == {"team": "red"}
    assert "digest" not in repr(shown)


def test_the_nodes_newest_word_on_a_model_wins() -> None:
    shown = viewing.summary(record(capability_state={"m": "downloading"}), CLOCK, THRESHOLDS)
    assert [(model.model_id, model.status) for model in shown.installed_models] == [("m", "downloading")]
    assert [model.status for model in viewing.summary(record(), CLOCK, THRESHOLDS).installed_models] == [
        "ready"
    ]


def test_a_node_in_full_has_checks_and_what_would_change_its_status() -> None:
    event = RegistryEvent(1.0, "node_registered", "node-1")
    shown = detail(record(labels={"zone": "a"}, features_supported={"emotion_detection": True}), event)
    assert shown.checks[0].name == "gpus"
    assert (shown.healthy_beats, shown.beats_needed) == (1, 2)
    assert shown.clears_when
    assert (shown.labels, shown.events) == ({"zone": "a"}, (event,))
    assert "emotion_detection" in shown.features
    assert (shown.driver_version, shown.probe_age_seconds, shown.cpu_percent) == ("580.1", 1.5, 10.0)
    assert shown.address == "10.0.0.1:5"


def test_a_drain_is_shown_with_its_deadline_as_unix_time() -> None:
    drained = record()
    drained.drain = Drain(by_operator=True, deadline=160.0, reason="new driver")
    shown = detail(drained).drain
    assert shown is not None
    assert (shown.deadline, shown.reason) == (1_000_060.0, "new driver")


def test_a_view_is_a_copy() -> None:
    live = record(labels={"zone": "a"})
    shown = detail(live)
    live.labels["zone"] = "b"
    live.reason = "changed"
    assert (shown.labels["zone"], shown.reason) != ("b", "changed")


def test_a_view_is_plain_json() -> None:
    document = json.loads(TypeAdapter(NodeDetail).dump_json(detail(record())))
    assert document["gpus"][0]["uuid"] == UUID
    assert document["status"] == "registering"


def test_a_placement_says_until_when_in_unix_time() -> None:
    claim = Claim(
        job_id="job-1",
        node_id="node-1",
        gpu_uuids=(UUID,),
        endpoint="http://10.0.0.1:9000",
        granted_at=100.0,
        expires_at=160.0,
    )
    shown = viewing.placement(claim, CLOCK)
    assert (shown.expires_at, shown.endpoint, shown.gpu_uuids) == (1_000_060.0, claim.endpoint, (UUID,))


def test_a_gpu_without_a_uuid_is_given_none_in_a_placement() -> None:
    claim = Claim(
        job_id="job-1",
        node_id="node-1",
        gpu_uuids=("#0", "GPU-1"),
        endpoint=None,
        granted_at=90.0,
        expires_at=150.0,
    )
    assert viewing.placement(claim, CLOCK).gpu_uuids == ("GPU-1",)
