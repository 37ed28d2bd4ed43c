"""The registry about itself, over HTTP."""

import tempfile
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.api.admin import BACKUP_MEDIA_TYPE
from gpu_agent.server.service import RegistryService
from gpu_agent.store.backup import inspect_backup
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore
from tests.server.api_harness import problem, serving
from tests.server.harness import Node, node, running
from tests.server.instances import FORWARDED
from tests.small_disk import Ballast, mounted

OF_EACH_INSTANCE = pytest.mark.skipif(FORWARDED, reason="a standby answers this of itself")


@OF_EACH_INSTANCE
async def test_healthz_counts_nodes_and_connections(api: httpx.AsyncClient, ready: Node) -> None:
    answer = (await api.get("/healthz")).json()
    assert (answer["status"], answer["nodes"], answer["connections"]) == ("ok", 1, 1)
    assert ready.node_id


async def test_a_load_balancer_can_use_head(api: httpx.AsyncClient) -> None:
    assert (await api.head("/healthz")).status_code == 200


@OF_EACH_INSTANCE
async def test_a_running_registry_is_ready(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["ready"]
    assert [check["ok"] for check in answer.json()["checks"]] == [True, True, True]


@OF_EACH_INSTANCE
async def test_a_stopping_registry_says_which_check_fails(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    await service.stop()
    answer = await api.get("/readyz")
    assert answer.status_code == 503
    document = problem(answer)
    assert document["code"] == "NOT_READY"
    assert [check["name"] for check in document["checks"] if not check["ok"]] == ["fleet", "nodes"]
    assert "stopping" in document["detail"]
    assert (await api.head("/readyz")).status_code == 503


@OF_EACH_INSTANCE
async def test_prometheus_reads_the_metrics(api: httpx.AsyncClient, ready: Node) -> None:
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'gpu_registry_nodes{status="ready"} 1.0' in answer.text
    await api.get("/v1/nodes/node-x")
    counted = (
        'gpu_registry_http_request_seconds_count{method="GET",route="/v1/nodes/{node_id}",status="404"} 1.0'
    )
    assert counted in (await api.get("/metrics")).text
    assert ready.node_id not in answer.text


async def test_thresholds_are_shown_as_they_are_in_force() -> None:
    async with running(Thresholds(claim_ttl_seconds=7.0)) as service, serving(service) as api:
        shown = {one["name"]: one for one in (await api.get("/v1/thresholds")).json()["thresholds"]}
    assert [name.partition(".")[0] for name in shown] == [one.name for one in fields(Thresholds)]
    assert shown["admission.required_checks"]["value"] == []
    ttl = shown["claim_ttl_seconds"]
    assert (ttl["value"], ttl["unit"], ttl["default"]) == (7.0, "seconds", 60.0)
    assert shown["required_models"]["value"] == []
    assert all(one["meaning"] for one in shown.values())


async def test_a_backup_is_streamed_whole_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    async with (
        running(store=SqliteStore(tmp_path / "registry.db")) as service,
        serving(service) as api,
        node(service) as ready,
    ):
        await ready.become_ready()
        answer = await api.post("/v1/backup", json={})
    assert (answer.status_code, answer.headers["content-type"]) == (200, BACKUP_MEDIA_TYPE)
    assert answer.headers["cache-control"] == "no-store"
    (tmp_path / "copy.db").write_bytes(answer.content)
    holds = inspect_backup(tmp_path / "copy.db")
    assert (holds.nodes, holds.events > 2) == (1, True)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_registry_that_stores_in_memory_cannot_be_backed_up() -> None:
    async with running(store=MemoryStore()) as service, serving(service) as api:
        refused = problem(await api.post("/v1/backup", json={}))
    assert (refused["status"], refused["code"]) == (409, "NOTHING_TO_BACK_UP")
    assert "--store sqlite" in refused["detail"]


async def test_a_backup_without_room_for_the_copy_is_refused_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "disk", kib=64) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        async with running(store=SqliteStore(tmp_path / "registry.db")) as service, serving(service) as api:
            Ballast(disk).fill()
            refused = problem(await api.post("/v1/backup", json={}))
        assert (refused["status"], refused["code"]) == (503, "BACKUP_FAILED")
        assert str(disk) in refused["detail"]
