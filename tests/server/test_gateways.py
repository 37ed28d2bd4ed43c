"""Gateways: real processes that hold the node connections of one registry."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest
from hypothesis import given, strategies
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpu_agent.registry.events import Amounts
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.server.gateway import gateways as gateways_module
from gpu_agent.server.gateway.link import (
    HeartbeatRow,
    pack_amounts,
    pack_rows,
    unpack_amounts,
    unpack_rows,
)
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import MessageHandler, Peer
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import ClaimView, NewToken
from tests.authority import Authority
from tests.server import encrypted_ports
from tests.server.harness import LOOPBACK, QUICK, Node, heartbeat, known, node, until
from tests.waiting import patience

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows shares no port")

UUID = "GPU-1"
SETTLED = Thresholds(
    heartbeat_interval_seconds=30.0,
    warmup_heartbeat_interval_seconds=0.05,
    scan_interval_seconds=0.05,
)


@asynccontextmanager
async def gateways(
    count: int = 1,
    *,
    node_listen: Address = LOOPBACK,
    auth_on: bool = False,
    thresholds: Thresholds = QUICK,
    tls: Encryption | None = None,
) -> AsyncIterator[RegistryService]:
    settings = ServiceSettings(
        node_listen=node_listen,
        thresholds=thresholds,
        limits=Limits(close_timeout_seconds=0.3),
        auth_on=auth_on,
        gateways=count,
        tls=tls,
    )
    service = RegistryService(settings, MemoryStore())
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


def processes() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "gpu_agent.server.gateway" in one.cmdline()]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def figures(uuid: str = UUID, *, used: int = 1000, temperature: float = 40.0) -> list[dict[str, object]]:
    return [{"uuid": uuid, "memory_used_mb": used, "temperature_c": temperature}]


def hardware(uuid: str = UUID) -> dict[str, object]:
    gpu = {"name": "NVIDIA L4", "memory_gb": 24, "memory_mb": 23034, "uuid": uuid}
    return {"cpu_cores": 8, "memory_gb": 32, "gpus": [gpu]}


async def settled(service: RegistryService, peer: Node, uuid: str = UUID) -> None:
    """Bring a node up to ready, with three heartbeats that say the same."""
    await peer.register(hardware=hardware(uuid), capability_schema_version="1.1")
    for _ in range(3):
        await peer.heartbeat(gpus=figures(uuid))
    await until(lambda: known(service, peer.node_id).status == "ready", what="the node is ready")


def messages(service: RegistryService) -> int:
    return service.health.messages.heartbeats


def is_counted(service: RegistryService, heartbeats: int) -> bool:
    return messages(service) == heartbeats


def is_ready(service: RegistryService) -> bool:
    return service.health.ready


async def test_nodes_of_several_gateways_are_one_fleet_and_its_end_ends_them() -> None:
    async with gateways(2, thresholds=SETTLED) as service:
        before = processes()
        assert len(before) == 2
        async with node(service) as first, node(service) as second, node(service) as third:
            for place, peer in enumerate((first, second, third)):
                await settled(service, peer, f"GPU-{place}")
            assert service.size.connections == 3
            leader, *others = service.members()
            assert (leader.role, leader.nodes) == ("leader", 0)
            assert [one.name for one in others] == ["gateway-1", "gateway-2"]
            assert sum(one.nodes or 0 for one in others) == 3
            claim = await service.claim(Job(job_id="job", nodes=3, gpu_count=1))
            assert isinstance(claim, ClaimView)
            assert len(claim.nodes) == 3
    assert not [one for one in before if one.is_running()]


async def test_figures_that_say_nothing_new_stay_at_the_gateway_until_somebody_asks() -> None:
    async with gateways(thresholds=SETTLED) as service, node(service) as peer:
        await settled(service, peer)
        received = messages(service)
        await peer.heartbeat(gpus=figures(used=1001, temperature=77.0))
        await until(partial(is_counted, service, received + 1), what="the heartbeat is counted")
        (gpu,) = known(service, peer.node_id).gpus
        assert (gpu.memory_used_mb, gpu.temperature_c) == (1000, 40.0)
        await service.fetch_figures(peer.node_id)
        (gpu,) = known(service, peer.node_id).gpus
        assert (gpu.memory_used_mb, gpu.temperature_c) == (1001, 77.0)
        assert messages(service) == received + 1


async def test_memory_that_changes_a_step_of_dispatch_is_known_soon_and_no_other_figure() -> None:
    async with gateways(thresholds=SETTLED) as service, node(service) as peer:
        await settled(service, peer)
        received = messages(service)
        await peer.heartbeat(gpus=figures(used=9000, temperature=77.0))
        await peer.heartbeat(gpus=figures(used=9001, temperature=78.0))
        await until(lambda: known(service, peer.node_id).gpus[0].memory_used_mb == 9000, what="its memory")
        assert known(service, peer.node_id).gpus[0].temperature_c == 40.0
        await until(partial(is_counted, service, received + 2), what="both heartbeats are counted")


@given(
    strategies.dictionaries(
        strategies.integers(0, 2**64 - 1),
        strategies.builds(
            HeartbeatRow,
            heartbeats=strategies.integers(1, 65_535),
            at=strategies.just(90.0),
            probe_age_seconds=strategies.none() | strategies.just(0.5),
            amounts=strategies.none()
            | strategies.builds(
                Amounts,
                cpu_percent=strategies.floats(0, 100),
                mem_percent=strategies.floats(0, 100),
                gpu_percent=strategies.none() | strategies.floats(0, 100),
                gpu_mem_percent=strategies.none() | strategies.floats(0, 100),
                memory_used_mb=strategies.none()
                | strategies.lists(strategies.integers(0, 2**53), max_size=9).map(tuple),
            ),
        ),
    )
)
def test_rows_arrive_as_they_were_sent(rows: dict[int, HeartbeatRow]) -> None:
    plain = dict(unpack_rows(memoryview(pack_rows(rows, 100.0)), 100.0))
    with_amounts = dict(unpack_amounts(memoryview(pack_amounts(rows, 100.0)), 100.0))
    assert not plain.keys() & with_amounts.keys()
    assert {**plain, **with_amounts} == rows


async def test_a_node_with_a_claim_reports_its_memory_to_the_mebibyte() -> None:
    async with gateways(thresholds=SETTLED) as service, node(service) as peer:
        await settled(service, peer)
        assert isinstance(await service.claim(Job(job_id="job", min_gpu_memory_mb=2048)), ClaimView)
        for used in (1001, 1002):  # the first of them is the occasion to tell the gateway
            received = messages(service)
            await peer.heartbeat(gpus=figures(used=used))
            await until(partial(is_counted, service, received + 1), what="the heartbeat is counted")
        assert known(service, peer.node_id).gpus[0].memory_used_mb == 1002


async def test_a_silent_node_of_a_gateway_times_out() -> None:
    quick = Thresholds(
        heartbeat_interval_seconds=0.3,
        warmup_heartbeat_interval_seconds=0.05,
        heartbeat_timeout_seconds=1.0,
        scan_interval_seconds=0.05,
    )
    async with gateways(thresholds=quick) as service, node(service) as peer:
        await peer.register(hardware=hardware())
        await peer.heartbeat()  # on a busy machine its status may pass unseen until it is offline
        await until(lambda: known(service, peer.node_id).status == "offline", what="the node is offline")
        assert known(service, peer.node_id).reason_code == "heartbeat_timeout"


async def test_nodes_of_a_gateway_that_is_killed_are_disconnected_and_another_one_starts() -> None:
    async with gateways(thresholds=SETTLED) as service:
        async with node(service) as peer:
            await settled(service, peer)
            (gateway,) = processes()
            gateway.send_signal(signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                await peer.receive_type("never")
        await until(lambda: not known(service, peer.node_id).connected, what="the node is disconnected")
        assert known(service, peer.node_id).status == "ready"
        assert not is_ready(service)
        async with asyncio.timeout(patience(30)):
            while not is_ready(service):  # noqa: ASYNC110 - as in `until`
                await asyncio.sleep(0.05)
        async with node(service) as peer_again:
            await peer_again.register(node_id=peer.node_id, hardware=hardware())
            assert peer_again.node_id == peer.node_id
        assert processes() != [gateway]


async def test_the_end_of_the_leader_ends_its_gateways_even_a_frozen_one() -> None:
    """It would keep the nodes' port, and the next start would be refused."""
    program = (
        "import asyncio, sys\n"
        "from tests.server.test_gateways import gateways\n"
        "async def main():\n"
        "    async with gateways(2):\n"
        "        print('started', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    leader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert leader.stdout is not None
    assert await asyncio.wait_for(leader.stdout.readline(), 60) == b"started\n"
    children = psutil.Process(leader.pid).children()
    assert len(children) == 2
    children[0].suspend()
    leader.kill()
    await leader.wait()
    await until(lambda: not any(one.is_running() for one in children), what="the gateways have ended")


async def test_a_token_is_judged_by_the_leader() -> None:
    async with gateways(auth_on=True) as service:
        with pytest.raises(InvalidStatus) as refusal:
            async with node(service):
                pass
        assert refusal.value.response.status_code == HTTPStatus.UNAUTHORIZED
        assert b"join token" in (refusal.value.response.body or b"")
        token = await service.tokens.create_join()
        assert isinstance(token, NewToken)
        async with node(service, token=token.token) as peer:
            ack = await peer.register()
            assert ack["node_token"]
            await service.remove(peer.node_id)
            with pytest.raises(ConnectionClosed):
                await peer.receive_type("never")


async def test_each_heartbeat_of_another_node_is_refused() -> None:
    async with gateways(thresholds=SETTLED) as service, node(service) as peer:
        await settled(service, peer)
        for _ in range(3):
            await peer.send(heartbeat("node-of-others"))
            assert (await peer.receive_type("node_error"))["code"] == "UNKNOWN_NODE"


async def test_nodes_reach_a_gateway_over_tls(authority: Authority) -> None:
    encryption = Encryption(TlsFiles(own=authority.issue()))
    async with (
        gateways(tls=encryption) as service,
        encrypted_ports.node(service, authority.trusting()) as peer,
    ):
        await settled(service, peer)


async def test_a_gateway_that_cannot_listen_ends_the_start_with_its_reason(authority: Authority) -> None:
    files = TlsFiles(own=authority.issue())
    encryption = Encryption(files)
    files.own.cert_file.unlink()
    with pytest.raises(OSError, match=r"gateway-1 does not listen: .*[Nn]o such file"):
        async with gateways(2, tls=encryption):
            pass
    assert processes() == []


async def test_gateways_that_do_not_listen_in_time_end_the_start_with_that_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateways_module, "START_SECONDS", 0.01)
    with pytest.raises(OSError, match="its gateways do not listen within"):
        async with gateways():
            pass
    assert processes() == []


async def test_a_gateway_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways_module, "SILENT_SECONDS", 2.5)
    async with gateways(thresholds=SETTLED) as service:
        (gateway,) = processes()
        gateway.suspend()
        async with asyncio.timeout(patience(40)):
            while not is_ready(service) or processes() == [gateway]:  # noqa: ASYNC110 - as in `until`
                await asyncio.sleep(0.05)
        assert not gateway.is_running()
        async with node(service) as peer:
            await settled(service, peer)


async def test_a_crash_over_what_one_node_says_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateways(thresholds=SETTLED) as service, node(service) as peer, node(service) as bad:
        await settled(service, peer)
        taken = MessageHandler.frame_arrived

        def crash(self: MessageHandler, connection: Peer, payload: bytes) -> None:
            if b"boom" in payload:
                raise RuntimeError("a bug")
            taken(self, connection, payload)

        monkeypatch.setattr(MessageHandler, "frame_arrived", crash)
        await bad.send({"type": "node_error", "code": "boom"})
        assert (await bad.closed())[0] == 1011
        await peer.heartbeat(gpus=figures(used=9000))
        await until(lambda: known(service, peer.node_id).gpus[0].memory_used_mb == 9000, what="its memory")
        assert len(service.members()) == 2


async def test_two_registries_share_no_port() -> None:
    async with gateways() as service:
        with pytest.raises(OSError, match="in use"):
            async with gateways(node_listen=service.node_address):
                pass
        with socket.socket() as other:  # as other programs bind, while no gateway listens
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            (gateway,) = processes()
            gateway.kill()
            await until(lambda: not is_ready(service), what="its end")
            with pytest.raises(OSError, match="in use"):
                other.bind((service.node_address.host, service.node_address.port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            async with gateways(node_listen=Address(*taken.getsockname())):
                pass


async def test_a_gateway_runs_nothing_from_the_folder_in_which_the_registry_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "gpu_agent"
    planted.mkdir()
    (planted / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    async with gateways() as service:
        assert is_ready(service)
    assert not (tmp_path / "ran").exists()
