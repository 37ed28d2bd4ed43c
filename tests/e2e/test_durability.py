"""Acknowledged changes are stored: after kills at any moment, a full disk, a restore."""

import asyncio
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import Failure
from gpu_agent.cli.main import main
from gpu_agent.registry.settings import Thresholds
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.api import ClaimList, ClaimView, NodeDetail, NodeList, Problem, RegistryEvent
from tests.programs import Agent, Registry, eventually
from tests.server.harness import node, running
from tests.small_disk import Ballast, mounted
from tests.store.etcd_cluster import cluster

pytestmark = pytest.mark.e2e

AGENTS = 20
HASTY = Thresholds(
    heartbeat_interval_seconds=0.3,
    warmup_heartbeat_interval_seconds=0.1,
    heartbeat_timeout_seconds=1.5,
    scan_interval_seconds=0.05,
)
UNMOVED = ("--max-cpu-percent", "100", "--max-memory-percent", "100")
"""A machine that is busy with tests gives places too."""
KILLS = 2
MOST_HELD = 4
FULL_SECONDS = 8.0
"""How long the disk is full under load; a minute shows no more, and takes a minute."""
COMING_BACK_SECONDS = 90.0
"""Agents whose registry dies again and again wait longer each time, up to a minute."""


class Restarted:
    """A registry with a database, on ports of its own, that can be killed and started again."""

    def __init__(self, place: str, running: ExitStack) -> None:
        self._words = ("--allow-simulated", "--store", place, "--claim-ttl-seconds", "600", *UNMOVED)
        self._running = running
        self.registry = running.enter_context(Registry(*self._words))

    @property
    def api(self) -> Api:
        return Api(self.registry.api)

    def killed(self) -> None:
        self.registry.send(signal.SIGKILL)
        self.registry.wait(5)

    def started(self) -> None:
        before = self.registry
        self.registry = self._running.enter_context(
            Registry(*self._words, node_port=before.node_port, operator_port=before.operator_port)
        )
        # On etcd the lease of the one that was killed must end first.
        eventually(
            lambda: self.registry.answer("/v1/nodes"), within_seconds=20, what="the registry's answers"
        )


@contextmanager
def fleet(place: str, folder: Path, count: int) -> Iterator[Restarted]:
    with ExitStack() as running:
        restarted = Restarted(place, running)
        url = restarted.registry.node_url
        for number in range(count):
            running.enter_context(Agent(url, folder / f"agent-{number}", simulate="1xT4-16GB"))
        restarted.registry.await_ready(count, within_seconds=60)
        yield restarted


def histories(api: Api) -> dict[str, tuple[RegistryEvent, ...]]:
    nodes = [node.node_id for node in api.get("/v1/nodes", NodeList).model.nodes]
    return {node_id: api.get(f"/v1/nodes/{node_id}", NodeDetail).model.events for node_id in nodes}


@pytest.mark.timeout(240)
def test_after_kills_at_any_moment_all_acknowledged_changes_are_there_and_all_agents_return(
    tmp_path: Path,
) -> None:
    dice = random.Random(7)  # noqa: S311 - moments, not secrets
    with fleet(f"sqlite://{tmp_path / 'registry.db'}", tmp_path, AGENTS) as restarted:
        ids = sorted(node["node_id"] for node in restarted.registry.nodes())
        drained, cordoned = ids[0], ids[1]
        restarted.api.request("POST", f"/v1/nodes/{drained}/drain", {"reason": "fans"})
        restarted.api.request("POST", f"/v1/nodes/{cordoned}/cordon", {"reason": "dust"})
        held: set[str] = set()
        for turn in range(KILLS):
            before = histories(restarted.api)
            killer = threading.Timer(dice.uniform(0.05, 0.5), restarted.killed)
            killer.start()
            held |= claim_until_it_is_gone(restarted.api, f"job-{turn}")
            killer.join()
            restarted.started()
            for node_id, events in histories(restarted.api).items():
                known = {event.id: event for event in events}
                assert all(known[event.id] == event for event in before[node_id])
            assert held <= {claim.job_id for claim in restarted.api.get("/v1/claims", ClaimList).model.claims}
            restarted.registry.await_ready(AGENTS // 2, within_seconds=COMING_BACK_SECONDS)
        assert len(held) > KILLS
        restarted.registry.await_ready(AGENTS - 1, within_seconds=COMING_BACK_SECONDS)
        eventually(
            lambda: restarted.api.get(f"/v1/nodes/{drained}", NodeDetail).model.status == "offline",
            within_seconds=COMING_BACK_SECONDS,
            what="the end of the drain, which begins again when the agent is back",
        )
        assert sorted(node["node_id"] for node in restarted.registry.nodes()) == ids
        assert "fans" in str(restarted.api.get(f"/v1/nodes/{drained}", NodeDetail).model.drain)
        assert restarted.api.get(f"/v1/nodes/{cordoned}", NodeDetail).model.cordoned == "dust"


def claim_until_it_is_gone(api: Api, prefix: str) -> set[str]:
    """Claim slots until the registry answers no more; returns the jobs that have one."""
    claimed: set[str] = set()
    for number in range(10_000):
        job_id = f"{prefix}-{number}"
        try:
            api.request("POST", "/v1/claims", {"job_id": job_id})
        except Refused:
            continue
        except Failure:
            return claimed
        claimed.add(job_id)
    raise AssertionError("the registry was not killed")


@pytest.mark.timeout(120)
def test_a_full_disk_refuses_changes_until_there_is_room(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", kib=4096) as disk,
        fleet(f"sqlite://{disk / 'registry.db'}", tmp_path, 2) as restarted,
    ):
        registry, api = restarted.registry, restarted.api
        Ballast(disk).fill()
        refused = eventually(lambda: busy(api), within_seconds=30, what="a refusal")
        assert refused.status == 503
        assert registry.await_event("store_failing")["problem"].count("disk is full")
        with pytest.raises(Refused) as not_ready:
            api.request("GET", "/readyz")
        assert "disk is full" in str(not_ready.value.document)
        with Agent(registry.node_url, tmp_path / "late", simulate="1xT4-16GB") as late:
            late.await_event("node_register_refused", code="REGISTRY_BUSY", within_seconds=20)
            assert len(registry.await_ready(2, within_seconds=1)) == 2
            Ballast(disk).throw_off()
            registry.await_event("store_recovered", within_seconds=10)
            registry.await_ready(3, within_seconds=30)
        assert "job_id" in api.request("POST", "/v1/claims", {"job_id": "after"})
        assert api.request("GET", "/readyz")["ready"]
        assert len(registry.events("store_failing")) == len(registry.events("store_recovered"))


class Load(threading.Thread):
    """Claims and releases without a pause, and remembers what was acknowledged."""

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self.held: dict[str, str] = {}
        """By job: the node of each acknowledged claim that nobody has asked to release."""
        self.released: set[str] = set()
        self.busy: list[str] = []
        """Jobs whose claim or release was answered with `REGISTRY_BUSY`."""
        self._api = api
        self._ends = threading.Event()

    def run(self) -> None:
        for number in range(1_000_000):
            if self._ends.is_set():
                return
            try:
                self._claim(f"load-{number}")
                if len(self.held) > MOST_HELD:
                    self._release(next(iter(self.held)))
            except Refused as refused:
                if refused.problem_code != "REGISTRY_BUSY":
                    raise

    def end(self) -> None:
        self._ends.set()
        self.join(30)

    def _claim(self, job_id: str) -> None:
        self.busy.append(job_id)
        claim = self._api.post("/v1/claims", {"job_id": job_id, "affinity_key": "x" * 200}, ClaimView).model
        self.busy.remove(job_id)
        self.held[job_id] = claim.nodes[0].node_id

    def _release(self, job_id: str) -> None:
        del self.held[job_id]
        self.busy.append(job_id)
        self._api.delete(f"/v1/claims/{job_id}")
        self.busy.remove(job_id)
        self.released.add(job_id)


@pytest.mark.timeout(180)
def test_a_disk_that_is_full_under_load_loses_nothing_acknowledged_and_undoes_nothing(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", kib=4096) as disk,
        fleet(f"sqlite://{disk / 'registry.db'}", tmp_path, 3) as restarted,
    ):
        load = Load(restarted.api)
        load.start()
        eventually(lambda: len(load.released) > MOST_HELD, within_seconds=30, what="some load")
        Ballast(disk).fill()
        restarted.registry.await_event("store_failing", within_seconds=60)
        time.sleep(FULL_SECONDS)
        assert len(restarted.registry.await_ready(3, within_seconds=1)) == 3
        Ballast(disk).throw_off()
        restarted.registry.await_event("store_recovered", within_seconds=10)
        before = len(load.released)
        eventually(lambda: len(load.released) > before + MOST_HELD, within_seconds=30, what="load again")
        load.end()
        assert load.busy
        for crashed in (False, True):
            if crashed:
                restarted.killed()
                restarted.started()
            shown: Any = restarted.api.request("GET", "/v1/claims")
            claims = {one["job_id"]: one["node_id"] for one in shown["claims"]}
            assert load.held.items() <= claims.items()
            assert not load.released & claims.keys()
            assert claims.keys() <= load.held.keys() | set(load.busy)


def busy(api: Api) -> Problem | None:
    """Claim and release until the disk has no room for it."""
    for number in range(50):
        try:
            api.request("POST", "/v1/claims", {"job_id": f"job-{number}", "affinity_key": "x" * 200})
            api.delete(f"/v1/claims/job-{number}")
        except Refused as refused:
            if refused.problem_code == "REGISTRY_BUSY":
                return Problem.model_validate(refused.document)
    return None


@pytest.mark.timeout(120)
def test_a_restored_backup_brings_back_its_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, backup = f"sqlite://{tmp_path / 'registry.db'}", tmp_path / "backup.db"
    with fleet(place, tmp_path, 2) as restarted:
        first, second = sorted(node["node_id"] for node in restarted.registry.nodes())
        restarted.api.request("POST", f"/v1/nodes/{first}/cordon", {"reason": "then"})
        assert main(["registry", "backup", str(backup), "--server", restarted.registry.api]) == 0
        restarted.api.request("POST", f"/v1/nodes/{first}/uncordon", {})
        restarted.api.request("POST", f"/v1/nodes/{second}/cordon", {"reason": "later"})
        restarted.registry.send(signal.SIGTERM)
        assert restarted.registry.wait(6) == 0
        assert main(["registry", "restore", str(backup), "--store", place, "--force"]) == 0
        assert "The former database is now" in capsys.readouterr().out
        restarted.started()
        restarted.registry.await_ready(2, within_seconds=30)
        assert restarted.api.get(f"/v1/nodes/{first}", NodeDetail).model.cordoned == "then"
        assert restarted.api.get(f"/v1/nodes/{second}", NodeDetail).model.cordoned is None


@pytest.mark.timeout(180)
def test_a_registry_on_etcd_survives_a_kill_and_moves_to_sqlite_and_back(tmp_path: Path) -> None:
    (backup, other), moved = (tmp_path / "backup.db", tmp_path / "other.db"), f"sqlite://{tmp_path / 'r.db'}"
    with cluster(1) as etcd:
        place = f"etcd://127.0.0.1:{etcd.members[0].endpoint[1]}/fleet"
        with fleet(place, tmp_path, 2) as restarted:
            first = restarted.registry.nodes()[0]["node_id"]
            restarted.api.request("POST", f"/v1/nodes/{first}/cordon", {"reason": "dust"})
            restarted.api.request("POST", "/v1/claims", {"job_id": "job-1"})
            before = histories(restarted.api)
            restarted.killed()
            restarted.started()
            for node_id, events in histories(restarted.api).items():
                assert events[: len(before[node_id])] == before[node_id]
            assert main(["registry", "backup", str(backup), "--server", restarted.registry.api]) == 0
            restarted.registry.send(signal.SIGTERM)
            assert restarted.registry.wait(6) == 0
            assert main(["registry", "restore", str(backup), "--store", moved]) == 0
            with Registry("--store", moved) as on_sqlite:
                assert main(["registry", "backup", str(other), "--server", on_sqlite.api]) == 0
            words = ["registry", "restore", str(other), "--store", place, "--state-dir", str(tmp_path / "s")]
            assert main(words) == 4
            assert main([*words, "--force"]) == 0
            restarted.started()
            restarted.registry.await_ready(2, within_seconds=COMING_BACK_SECONDS)
            assert restarted.api.get(f"/v1/nodes/{first}", NodeDetail).model.cordoned == "dust"
            claims = restarted.api.get("/v1/claims", ClaimList).model.claims
            assert [claim.job_id for claim in claims] == ["job-1"]
        assert len(list((tmp_path / "s").glob("etcd.replaced-*.db"))) == 1


async def kept_fleet(path: Path, count: int) -> None:
    """Leave a database in which so many nodes are ready, however long the machine takes to get there."""
    patient = replace(HASTY, heartbeat_timeout_seconds=60.0)
    async with running(patient, store=SqliteStore(path)) as service, AsyncExitStack() as nodes:
        for _ in range(count):
            await (await nodes.enter_async_context(node(service))).become_ready()


async def statuses_over_time(path: Path, *, until_seconds: float) -> list[tuple[float, Counter[str], int]]:
    """Start a registry to which no node returns, and look at its nodes for a while; its start counts."""
    seen: list[tuple[float, Counter[str], int]] = []
    began = time.monotonic()
    async with running(HASTY, store=SqliteStore(path)) as service:
        while (passed := time.monotonic() - began) < until_seconds:
            nodes = list(service.nodes())
            seen.append((passed, Counter(one.status for one in nodes), sum(one.connected for one in nodes)))
            await asyncio.sleep(0.05)
    return seen


async def test_after_a_restart_nodes_have_one_full_timeout_before_they_are_silent(tmp_path: Path) -> None:
    await kept_fleet(tmp_path / "registry.db", 3)
    seen = await statuses_over_time(tmp_path / "registry.db", until_seconds=4.5)
    timeout = HASTY.heartbeat_timeout_seconds
    assert {connected for _, _, connected in seen} == {0}
    assert all(counted == {"ready": 3} for passed, counted, _ in seen if passed < timeout - 0.1)
    assert all(counted == {"offline": 3} for passed, counted, _ in seen if passed > timeout + 3.0)


async def test_after_a_restart_without_any_node_the_registry_suspects_itself_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await kept_fleet(tmp_path / "registry.db", 12)
    seen = await statuses_over_time(tmp_path / "registry.db", until_seconds=7.0)
    timeout = HASTY.heartbeat_timeout_seconds
    assert [one.getMessage() for one in caplog.records].count("mass_disconnect_suspected") == 1
    assert all(counted == {"ready": 12} for passed, counted, _ in seen if passed < 2 * timeout - 0.1)
    assert seen[-1][1] == {"offline": 12}
