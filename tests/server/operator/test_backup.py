"""Backups over HTTP, on a true registry with a database."""

import tempfile
from pathlib import Path

import httpx
import pytest

from gpu_agent.server.operator.backup import MEDIA_TYPE
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.store.sqlite_restore import contents
from tests.server.api import problem, serving
from tests.server.harness import node, running
from tests.small_disk import Ballast, mounted


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
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
    assert answer.headers["cache-control"] == "no-store"
    (tmp_path / "copy.db").write_bytes(answer.content)
    holds = contents(tmp_path / "copy.db")
    assert (holds.nodes, holds.events > 2) == (1, True)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_what_is_kept_in_memory_only_cannot_be_backed_up(api: httpx.AsyncClient) -> None:
    refused = problem(await api.post("/v1/backup", json={}))
    assert (refused["status"], refused["code"]) == (409, "NOTHING_TO_BACK_UP")
    assert "--store sqlite" in refused["detail"]


async def test_where_there_is_no_room_for_the_copy_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "disk", kib=64) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        async with running(store=SqliteStore(tmp_path / "registry.db")) as service, serving(service) as api:
            Ballast(disk).fill()
            refused = problem(await api.post("/v1/backup", json={}))
        assert (refused["status"], refused["code"]) == (503, "BACKUP_FAILED")
        assert str(disk) in refused["detail"]
