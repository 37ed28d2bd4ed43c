"""What the agent exposes to Prometheus: names, labels, what is absent, and where it goes."""

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpu_agent.node.metrics import GPU_LABELS, METRICS, GpuEvents, View, exposition
from gpu_agent.node.metrics_export import MOST_REQUESTS, serve_metrics, write_metrics
from gpu_agent.records import replace
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.session.types import State
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, HealthReason, Outcome
from gpu_agent.wire.messages import NodeStatusMessage, StatusDetails
from tests.authority import self_signed
from tests.node.control_harness import INVENTORY, snapshot
from tests.node.running_agent import running_agent, settings_for
from tests.programs import free_port
from tests.waiting import patience, until

GPU = Gpu(
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    index=0,
    pci_bus_id="00000000:01:00.0",
    memory_mb=81559,
    memory_used_mb=1000,
    memory_free_mb=80559,
    utilization_percent=12.5,
    temperature_c=41.0,
    energy_mj=123456789012,
    events={},
)
LOST = Gpu(
    uuid="GPU-2",
    name=GPU.name,
    index=1,
    health=Health.LOST,
    reasons=(HealthReason(code="xid_79", detail="it fell off the bus"),),
    events={"xid_79": 1},
)


def view(*gpus: Gpu, age: float = 1.0, outcome: Outcome = Outcome.OK) -> View:
    report = GpuReport(outcome=outcome, gpus=gpus)
    events = GpuEvents()
    events.count(report)
    return View(
        snapshot=snapshot(inventory=replace(INVENTORY, gpu=report)),
        events=events,
        reading_ages={"nvidia": age},
        fresh_seconds=10.0,
        jobs_in_flight=2,
        hostname="gpu-7",
        now=100.0,
    )


def series(text: str) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """Every series by the metric's name, as Prometheus reads them."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            named = f"\n{sample.name}" in text  # this reader adds `_total` to counters that lack it
            name = sample.name if named else sample.name.removesuffix("_total")
            found.setdefault(name, []).append((sample.labels, sample.value))
    return found


def test_a_figure_has_dcgms_name_labels_and_unit() -> None:
    text = exposition(view(GPU))
    ((labels, value),) = series(text)["DCGM_FI_DEV_FB_USED"]
    assert value == 1000
    assert labels == {
        "gpu": "0",
        "UUID": "GPU-1",
        "pci_bus_id": "00000000:01:00.0",
        "device": "nvidia0",
        "modelName": "NVIDIA H100 80GB HBM3",
        "Hostname": "gpu-7",
    }
    assert tuple(labels) == GPU_LABELS
    ((_, energy),) = series(text)["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    assert energy == 123456789012


def test_an_unknown_figure_has_no_series() -> None:
    found = series(exposition(view(GPU)))
    assert "DCGM_FI_DEV_POWER_USAGE" not in found
    assert "DCGM_FI_DEV_GPU_UTIL" in found


def test_a_lost_gpu_stays_visible_as_lost_without_figures() -> None:
    found = series(exposition(view(GPU, LOST)))
    health = {(labels["UUID"], labels["health"]): value for labels, value in found["gpu_agent_gpu_health"]}
    assert health["GPU-2", "lost"] == 1
    assert health["GPU-2", "ok"] == 0
    assert health["GPU-1", "ok"] == 1
    assert [labels["reason"] for labels, _ in found["gpu_agent_gpu_health_reason"]] == ["xid_79"]
    assert [labels["UUID"] for labels, _ in found["DCGM_FI_DEV_GPU_TEMP"]] == ["GPU-1"]
    xids = {labels["UUID"]: value for labels, value in found["DCGM_FI_DEV_XID_ERRORS"]}
    assert xids == {"GPU-1": 0, "GPU-2": 79}


def test_figures_of_an_overdue_reading_are_absent_and_its_age_grows() -> None:
    found = series(exposition(view(GPU, age=10.1)))
    assert not [name for name in found if name.startswith("DCGM_")]
    assert found["gpu_agent_gpu_reading_age_seconds"] == [({"vendor": "nvidia"}, 10.1)]
    assert "gpu_agent_gpu_health" in found


def test_an_event_is_counted_once_though_its_reading_is_reported_again() -> None:
    events, report = GpuEvents(), GpuReport(outcome=Outcome.OK, gpus=(LOST,))
    for one in (report, replace(report, gpus=(replace(LOST, processes=()),)), report):
        events.count(one)
    assert events.counts == {("GPU-2", "xid_79"): 1}
    events.count(GpuReport(outcome=Outcome.OK, gpus=(replace(LOST, events={"xid_79": 2}),)))
    assert events.counts == {("GPU-2", "xid_79"): 3}


def test_a_mig_device_names_its_profile_and_its_gpu() -> None:
    device = Gpu(
        uuid="MIG-1",
        name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        index=0,
        parent_uuid="GPU-1",
        gpu_instance=7,
        memory_used_mb=5,
    )
    used = {
        labels["UUID"]: labels for labels, _ in series(exposition(view(GPU, device)))["DCGM_FI_DEV_FB_USED"]
    }
    labels = used["MIG-1"]
    assert (labels["GPU_I_PROFILE"], labels["GPU_I_ID"], labels["parent_UUID"]) == ("1g.10gb", "7", "GPU-1")
    assert not {"GPU_I_PROFILE", "GPU_I_ID"} & used["GPU-1"].keys()


def test_replays_and_remapped_rows_have_dcgms_names_and_are_absent_where_unknown() -> None:
    known = replace(
        GPU,
        pcie_replays=17,
        remapped_rows_correctable=3,
        remapped_rows_uncorrectable=2,
        row_remap_failed=False,
    )
    found = series(exposition(view(known, LOST)))
    figures = {
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 17,
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 3,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 2,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
    }
    for name, value in figures.items():
        assert [(labels["UUID"], one) for labels, one in found[name]] == [("GPU-1", value)], name


def test_processes_of_nobody_that_is_known_are_counted_where_each_is_known() -> None:
    ours, foreign, unseen = (GpuProcess(pid=pid, ours=one) for pid, one in ((1, True), (2, False), (3, None)))
    for processes, counted in (((ours, foreign), [1]), ((), [0]), ((foreign, unseen), []), (None, [])):
        found = series(exposition(view(replace(GPU, processes=processes))))
        assert [value for _, value in found.get("gpu_agent_gpu_foreign_processes", [])] == counted


def test_the_jobs_that_the_registry_counts_here_are_absent_without_a_connection() -> None:
    seen = view(GPU)
    session = seen.snapshot.session
    told = NodeStatusMessage(node_id="node-1", status="ready", details=StatusDetails(in_flight_jobs=3))
    for state, counted in ((State.REGISTERED, [3]), (State.BACKING_OFF, [])):
        now = replace(session, state=state, registry_status=told)
        found = series(exposition(replace(seen, snapshot=replace(seen.snapshot, session=now))))
        assert [value for _, value in found.get("gpu_agent_registry_jobs", [])] == counted


def test_a_hostile_name_stays_within_its_label() -> None:
    name = 'evil"} 1\nDCGM_FI_DEV_GPU_TEMP{UUID="x\\'
    found = series(exposition(view(replace(GPU, name=name))))
    assert [labels["modelName"] for labels, _ in found["DCGM_FI_DEV_GPU_TEMP"]] == [name]


def test_every_metric_is_described_once_and_each_series_has_its_labels() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    found = series(exposition(view(GPU, LOST)))
    by_name = {metric.name: metric for metric in METRICS}
    assert found.keys() <= by_name.keys()
    for name, all_of_it in found.items():
        for labels, _ in all_of_it:
            assert set(by_name[name].labels) == set(labels), name
            assert len([one for one, _ in all_of_it if one == labels]) == 1, name


# Where they go


@asynccontextmanager
async def served(text: str = "up 1\n", **more: object) -> AsyncIterator[Address]:
    address = Address("127.0.0.1", free_port())
    serving = asyncio.ensure_future(serve_metrics(address, more.get("own"), lambda: text))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(patience(5)):
            while not serving.done():
                try:
                    _, writer = await asyncio.open_connection(address.host, address.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield address
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def answer(address: Address, request: bytes, tls: ssl.SSLContext | None = None) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=tls, server_hostname=None if tls is None else "localhost"
    )
    writer.write(request)
    received = b""
    with suppress(ConnectionResetError):  # closed with the request unread
        received = await asyncio.wait_for(reader.read(), patience(5))
    writer.close()
    head, _, body = received.decode().partition("\r\n\r\n")
    return head, body


async def test_the_metrics_are_served_and_nothing_else() -> None:
    async with served() as address:
        head, body = await answer(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK")
        assert "Content-Type: text/plain; version=0.0.4" in head
        assert body == "up 1\n"
        head, body = await answer(address, b"HEAD /metrics?a=b HTTP/1.1\r\n\r\n")
        assert "Content-Length: 5" in head
        assert body == ""
        assert (await answer(address, b"GET / HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 404")
        assert (await answer(address, b"POST /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 405")
        assert await answer(address, b"x" * 20_000 + b"\r\n\r\n") == ("", "")


async def test_peers_that_send_nothing_keep_nobody_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.node.metrics_export.REQUEST_SECONDS", 0.2)
    async with served() as address:
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(MOST_REQUESTS)]
        assert await answer(address, b"GET /metrics HTTP/1.1\r\n\r\n") == ("", "")
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), patience(5)) == b""
            writer.close()
        assert (await answer(address, b"GET /metrics HTTP/1.1\r\n\r\n"))[1] == "up 1\n"


async def test_a_port_that_is_in_use_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpu_agent.node.metrics_export.AGAIN_SECONDS", 0.05)
    address = Address("127.0.0.1", free_port())
    taken = address.bind()
    caplog.set_level("INFO")
    serving = asyncio.ensure_future(serve_metrics(address, None, lambda: "up 1\n"))
    await until(lambda: "metrics_listen_failed" in caplog.text)
    taken.close()
    await until(lambda: "metrics_listening" in caplog.text)
    assert caplog.text.count("metrics_listen_failed") == 1
    failed = next(one for one in caplog.records if one.message == "metrics_listen_failed")
    assert "name a free address of this machine in metrics_listen" in str(vars(failed)["fields"])
    assert (await answer(address, b"GET /metrics HTTP/1.1\r\n\r\n"))[1] == "up 1\n"
    serving.cancel()
    await asyncio.wait({serving})


async def test_the_nodes_own_certificate_encrypts_them(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(own.cert_file))
    async with served(own=own) as address:
        head, body = await answer(address, b"GET /metrics HTTP/1.1\r\n\r\n", trusting)
        assert (head.partition("\r\n")[0], body) == ("HTTP/1.1 200 OK", "up 1\n")


async def test_the_file_is_whole_each_time_and_gone_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, writes = tmp_path / "late" / "gpu_agent.prom", 0

    def text() -> str:
        nonlocal writes
        writes += 1
        return f"writes {writes}\n"

    caplog.set_level("INFO")
    writing = asyncio.ensure_future(write_metrics(path, text, every_seconds=lambda: 0.01))
    await until(lambda: "metrics_file_failed" in caplog.text)
    path.parent.mkdir()
    await until(lambda: "metrics_file_recovered" in caplog.text)
    seen: set[str] = set()
    while len(seen) < 5:
        seen.add(path.read_text())
        await asyncio.sleep(0)
    assert all(one.startswith("writes ") and one.endswith("\n") for one in seen)
    assert path.stat().st_mode & 0o777 == 0o644
    assert caplog.text.count("metrics_file_failed") == 1
    writing.cancel()
    await asyncio.wait({writing})
    assert list(path.parent.iterdir()) == []


async def test_a_link_that_another_user_puts_beside_the_file_is_not_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "gpu_agent.prom", tmp_path / "identity.json"
    victim.write_text("mine")
    path.symlink_to(victim)
    writing = asyncio.ensure_future(write_metrics(path, lambda: "up 1\n", every_seconds=lambda: 0.01))
    await until(lambda: not path.is_symlink() and path.read_text() == "up 1\n")
    writing.cancel()
    await asyncio.wait({writing})
    assert victim.read_text() == "mine"
    assert not path.exists()


async def test_a_file_that_cannot_be_replaced_leaves_no_old_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu_agent.prom"
    writing = asyncio.ensure_future(write_metrics(path, lambda: "up 1\n", every_seconds=lambda: 0.01))
    await until(path.exists)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("gpu_agent.node.metrics_export.os.fdopen", Mock(side_effect=full))
    await until(lambda: "metrics_file_failed" in caplog.text and not path.exists())
    writing.cancel()
    await asyncio.wait({writing})
    assert not path.exists()


async def test_an_open_connection_does_not_hold_up_the_end(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    for certificate in (None, own):
        async with served(own=certificate) as address:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            ending = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ending < patience(1.0)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), patience(5)) == b""
        writer.close()


async def test_a_running_agent_exposes_its_machine(tmp_path: Path) -> None:
    async with running_agent(settings_for("ws://127.0.0.1:9", tmp_path)) as running:
        await running.until(lambda: "DCGM_FI_DEV_GPU_UTIL" in running.agent.metrics())
        found = series(running.agent.metrics())
        assert len(found["DCGM_FI_DEV_GPU_TEMP"]) == 2
        assert found["gpu_agent_connected"] == [({}, 0)]
        assert "gpu_agent_node_status" not in found
        assert found["gpu_agent_simulated"] == [({}, 1)]


# Settings


def test_an_address_that_others_reach_needs_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tls_cert_file is not set: .* listen on 127\.0\.0\.1:9835"):
        settings_for("wss://a", tmp_path, metrics_listen="0.0.0.0:9835")
    own = self_signed(tmp_path)
    settings = settings_for(
        "wss://a",
        tmp_path,
        metrics_listen="0.0.0.0:9835",
        tls_cert_file=own.cert_file,
        tls_key_file=own.key_file,
    )
    assert settings.metrics_listen == Address("0.0.0.0", 9835)


def test_a_file_that_node_exporter_would_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"names end in \.prom"):
        settings_for("ws://a", tmp_path, metrics_file=tmp_path / "gpu.txt")
