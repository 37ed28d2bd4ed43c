"""Settings that a running agent reloads: it stays registered, and sends what is new."""

import json
import logging
from pathlib import Path

import pytest

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.models.all_sources import SOURCES
from gpu_agent.probe.snapshot import advanced_features, supported_features
from gpu_agent.runtime.config.fields import reloadable_names, setting_of
from gpu_agent.runtime.reload import merge_reloaded
from gpu_agent.wire.declaration import Declaration, DeclarationChanges, changes, declare, registration
from gpu_agent.wire.inventory import Gpu, GpuReport, Inventory, Outcome
from tests.bare_registry import ACK, BareRegistry, listening_registry
from tests.cli.hosts import HOST
from tests.node.running_agent import RunningAgent, running_agent, settings_for

MODERN = {**ACK, "capability_schema_version": "1.1"}


async def _reload(running: RunningAgent, **changed: object) -> None:
    before = running.agent.settings
    read = AgentSettings.model_validate({**before.model_dump(), **changed})
    await running.agent.apply(merge_reloaded(before, read))


async def _beat_with(registry: BareRegistry, key: str) -> object:
    while True:
        heartbeat = await registry.next("node_heartbeat")
        if heartbeat.get(key) is not None:
            return heartbeat[key]


async def test_what_an_owner_states_goes_out_with_the_next_beat_on_the_same_session(tmp_path: Path) -> None:
    async with (
        listening_registry(MODERN) as registry,
        running_agent(settings_for(registry.url, tmp_path, probe_interval_seconds=30)) as running,
    ):
        await registry.next("node_heartbeat")
        await _reload(running, labels={"zone": "b"}, accept_public_jobs=True, max_concurrent_jobs=7)
        heartbeat = await registry.next("node_heartbeat")
        while heartbeat.get("labels") is None:
            heartbeat = await registry.next("node_heartbeat")
        sent = (heartbeat["labels"], heartbeat["accept_public_jobs"], heartbeat["max_concurrent_jobs"])
        assert sent == ({"zone": "b"}, True, 7)
        assert len(registry.connections) == 1


async def test_models_of_a_new_source_are_sent_while_the_old_ones_stay(tmp_path: Path) -> None:
    for name in ("old", "new"):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        stated = {"model_id": name, "version": "1", "kind": "llm"}
        (folder / "model.json").write_text(json.dumps(stated))
    places = {"hub_roots": (), "ollama_roots": (), "model_directories": (tmp_path / "old",)}
    async with listening_registry(MODERN) as registry:
        settings = settings_for(registry.url, tmp_path, probe_interval_seconds=30, **places)
        async with running_agent(settings) as running:
            first = await registry.next("node_register")
            assert [model["model_id"] for model in first["installed_models"]] == ["old"]
            await registry.next("node_heartbeat")
            await _reload(running, model_directories=(tmp_path / "old", tmp_path / "new"))
            models = await _beat_with(registry, "installed_models")
            assert isinstance(models, list)
            assert sorted(model["model_id"] for model in models) == ["new", "old"]


async def test_a_new_endpoint_registers_again_on_the_same_socket(tmp_path: Path) -> None:
    async with (
        listening_registry(MODERN) as registry,
        running_agent(settings_for(registry.url, tmp_path)) as running,
    ):
        await registry.next("node_heartbeat")
        await _reload(running, endpoint="10.0.0.7:9000", features={"speech_rate_control": True})
        again = await registry.next("node_register")
        assert again["endpoint"] == "10.0.0.7:9000"
        assert again["features_supported"]["speech_rate_control"] is True
        assert len(registry.connections) == 1


async def test_a_join_token_that_was_replaced_opens_the_next_connection(tmp_path: Path) -> None:
    async with (
        listening_registry() as registry,
        running_agent(settings_for(registry.url, tmp_path, join_token="first")) as running,
    ):
        await registry.next("node_heartbeat")
        await _reload(running, join_token="second")
        await registry.connections[0].close()
        await registry.next("node_register")
        requests = [connection.request for connection in registry.connections]
        shown = [request.headers["Authorization"] for request in requests if request is not None]
        assert shown == ["Bearer first", "Bearer second"]


async def test_the_log_level_holds_at_once(tmp_path: Path) -> None:
    async with (
        listening_registry() as registry,
        running_agent(settings_for(registry.url, tmp_path)) as running,
    ):
        await _reload(running, log_level="debug")
        assert logging.getLogger("gpu_agent").level == logging.DEBUG


RUNNING = AgentSettings(registry_url="wss://10.0.0.1/ws/node")
ANOTHER: dict[str, object] = {
    "join_token_file": "/a",
    "join_token": "b",
    "proxy": "http://10.0.0.3:3128",
    "tls_ca_file": "/a",
    "tls_pin": ["sha256//" + "A" * 43 + "="],
    "tls_cert_file": "/a",
    "tls_key_file": "/a",
    "insecure_plaintext": True,
    "log_level": "debug",
    "probe_interval_seconds": 7,
    "drain_on_stop_seconds": 7,
    "accept_public_jobs": True,
    "public_jobs": {"pause_while_in_use": True},
    "checks": {"gpu_count": 1},
    "labels": {"zone": "b"},
    "max_concurrent_jobs": 7,
    "endpoint": "10.0.0.7:9000",
    "hub_roots": ["/a"],
    "ollama_roots": ["/a"],
    "model_directories": ["/a"],
    "cross_file_systems": True,
    "declared_models": [{"model_id": "a", "version": "1"}],
    "features": {"speech_rate_control": True},
    "advanced_features": ["kv_cache"],
}
"""Another value of each setting that a reload applies."""


def test_each_reloadable_setting_is_tried_here() -> None:
    assert ANOTHER.keys() == reloadable_names(AgentSettings)


def test_the_places_of_every_model_source_can_be_reloaded() -> None:
    assert {row.setting for row in SOURCES.values()} <= reloadable_names(AgentSettings)


def declared(settings: AgentSettings) -> Declaration:
    policy = settings.probe_options.features
    gpus = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="H100", memory_mb=81_559),))
    machine = Inventory(
        host=HOST,
        gpu=gpus,
        features_supported=supported_features(policy, ()),
        advanced_features=advanced_features(policy),
    )
    return declare(machine, settings.owner)


@pytest.mark.parametrize("name", ANOTHER)
def test_a_setting_that_no_heartbeat_can_send_registers_again(name: str) -> None:
    beside = {"tls_cert_file": "/a"} if name == "tls_key_file" else {}
    values = {**RUNNING.model_dump(), **beside}
    before, after = (
        declared(AgentSettings.model_validate({**values, **new})) for new in ({}, {name: ANOTHER[name]})
    )
    registration_differs = registration(before, node_id="n") != registration(after, node_id="n")
    heartbeats_suffice = changes(before, after) != DeclarationChanges()
    assert setting_of(AgentSettings.model_fields[name]).registers is (
        registration_differs and not heartbeats_suffice
    )


def test_identity_and_registry_wait_for_a_restart() -> None:
    fixed = {"registry_url": "wss://10.0.0.2/ws/node", "simulate": "1xGB10", "state_dir": "/elsewhere"}
    read = RUNNING.model_copy(update={**fixed, "endpoint": "10.0.0.7:9000"})
    result = merge_reloaded(RUNNING, read)
    assert (result.changed, set(result.waiting)) == (("endpoint",), set(fixed))
