"""Who a node is, with agents and a registry that ask for tokens over real sockets."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.node.agent import Agent
from gpu_agent.node.gpu_readings import open_gpus
from gpu_agent.node.identity import IdentityFile
from gpu_agent.node.settings import load
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server.service import RegistryService
from gpu_agent.session.types import SessionSettings, State
from gpu_agent.wire.api import NewToken
from tests.server.harness import running, until
from tests.waiting import patience

QUICK = SessionSettings(
    backoff_first_seconds=0.02,
    backoff_ceiling_seconds=0.1,
    startup_jitter_seconds=0,
    fallback_interval_seconds=0.05,
    change_heartbeat_seconds=0.02,
    register_again_guard_seconds=0.0,
)


class Machine:
    """A machine's state directory and its join token, and the agent that runs there now and then."""

    def __init__(self, service: RegistryService, folder: Path) -> None:
        self.folder = folder
        self.agent: Agent | None = None
        self._url = f"ws://{service.node_address}/ws/node"
        folder.mkdir(exist_ok=True)

    @property
    def stored(self) -> dict[str, Any]:
        file = self.folder / "identity.json"
        stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return stored

    @property
    def state(self) -> State | None:
        return None if self.agent is None else self.agent.session.state

    def give(self, token: NewToken) -> None:
        (self.folder / "join").write_text(token.token)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        config = self.folder / "agent.toml"
        config.touch()
        options = {
            "registry_url": self._url,
            "state_dir": self.folder,
            "simulate": "1xL4-24GB",
            "probe_interval_seconds": 0.1,
            "join_token_file": self.folder / "join",
        }
        settings = load(options, config=config)
        identity = IdentityFile(self.folder)
        identity.load()
        gpus = open_gpus(simulate=settings.simulate, seed=str(self.folder), deadline_seconds=1)
        async with gpus as source, Tasks() as tasks:
            self.agent = Agent(settings, identity, source, session=QUICK)
            ended = tasks.start("agent", self.agent.run(tasks))
            try:
                yield self.agent
                await self.agent.stop("the test is over")
                async with asyncio.timeout(patience(5)):
                    await ended
            finally:
                tasks.end()


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running(allow_simulated=True, auth_on=True) as service:
        yield service


@pytest.fixture
def machine(service: RegistryService, tmp_path: Path) -> Callable[[str], Machine]:
    return lambda name: Machine(service, tmp_path / name)


def made(token: object) -> NewToken:
    assert isinstance(token, NewToken)
    return token


async def ready(service: RegistryService, node_id: str | None = None) -> str:
    """Wait until one node, or this one, is ready and connected."""

    def look() -> list[str]:
        return [
            one.node_id
            for one in service.nodes()
            if one.status == "ready" and one.connected and node_id in (None, one.node_id)
        ]

    return (await until(look, what=f"{node_id or 'a node'} is ready"))[0]


async def test_an_agent_joins_once_and_authenticates_with_its_own_token_afterwards(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha = machine("alpha")
    alpha.give(made(await service.tokens.create_join(labels={"rack": "4"})))
    async with alpha.running():
        node_id = await ready(service)
        first = alpha.stored["node_token"]
    assert first.startswith("gpun_")
    assert [one.state for one in service.tokens.all()] == ["used_up"]
    (alpha.folder / "join").unlink()
    async with alpha.running():
        assert await ready(service) == node_id
        detail = service.node(node_id)
    assert detail is not None
    assert detail.labels == {"rack": "4"}
    assert alpha.stored["node_token"] == first
    assert first.split("_", 2)[2] not in repr((detail, service.tokens.all()))


async def test_an_agent_whose_record_was_removed_joins_again_under_its_id(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha = machine("alpha")
    alpha.give(made(await service.tokens.create_join(uses=None)))
    async with alpha.running():
        node_id, first = await ready(service), alpha.stored["node_token"]
        assert await service.remove(node_id) is None
        await until(lambda: alpha.stored["node_token"] != first, what="another token is stored")
        assert await ready(service) == node_id


async def test_a_rotated_agent_stores_its_new_token_and_the_old_one_ends_when_it_is_used(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha = machine("alpha")
    alpha.give(made(await service.tokens.create_join()))
    async with alpha.running():
        node_id, first = await ready(service), alpha.stored["node_token"]
        assert await service.tokens.rotate(node_id) is None
        await until(lambda: alpha.stored["node_token"] != first, what="the new token is stored")
        assert service.tokens.authenticate(first) is not None
        await ready(service, node_id)
    async with alpha.running():
        assert await ready(service) == node_id
    assert service.tokens.authenticate(first) is None
    assert service.tokens.authenticate(alpha.stored["node_token"]) is not None


async def test_of_a_cloned_machine_the_newest_wins_and_the_other_stops(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha, beta = machine("alpha"), machine("beta")
    alpha.give(made(await service.tokens.create_join()))
    async with alpha.running():
        node_id = await ready(service)
        shutil.copytree(alpha.folder, beta.folder, dirs_exist_ok=True)
        async with beta.running():
            await until(lambda: alpha.state is State.YIELDED, what="the older session yields")
            assert await ready(service) == node_id
            assert alpha.agent is not None
            assert "SESSION_SUPERSEDED" in (alpha.agent.session.last_refusal or "")
            await asyncio.sleep(
                10 * QUICK.backoff_ceiling_seconds
            )  # time enough to come back, were it to fight
            assert alpha.state is State.YIELDED
            assert beta.state is State.REGISTERED
            assert [one.node_id for one in service.nodes()] == [node_id]


async def test_a_machine_that_lost_its_state_takes_back_its_id_labels_and_cordon(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha, new_disk = machine("alpha"), machine("new-disk")
    alpha.give(made(await service.tokens.create_join(labels={"rack": "4"})))
    async with alpha.running():
        node_id = await ready(service)
        await service.cordon(node_id, reason="a new disk")
    new_disk.give(made(await service.tokens.reclaim(node_id)))
    async with new_disk.running():
        assert await ready(service) == node_id
        detail = service.node(node_id)
    assert detail is not None
    assert (detail.cordoned, detail.labels) == ("a new disk", {"rack": "4"})
    assert new_disk.stored["node_id"] == node_id
    assert service.tokens.authenticate(alpha.stored["node_token"]) is None
    assert service.tokens.authenticate(new_disk.stored["node_token"]) is not None


async def test_an_agent_whose_token_was_revoked_at_once_returns_with_a_reclaim_token_without_a_restart(
    service: RegistryService, machine: Callable[[str], Machine]
) -> None:
    alpha = machine("alpha")
    alpha.give(made(await service.tokens.create_join()))
    async with alpha.running():
        node_id, first = await ready(service), alpha.stored["node_token"]
        assert await service.tokens.rotate(node_id, revoke_now=True) is None
        assert service.tokens.authenticate(first) is None
        await until(lambda: alpha.state is State.BACKING_OFF, what="the session is over")
        alpha.give(made(await service.tokens.reclaim(node_id)))
        assert await ready(service) == node_id
    assert alpha.stored["node_id"] == node_id
