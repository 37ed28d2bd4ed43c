"""The agent at a registry with several addresses, each a listener on a real socket."""

import asyncio
from pathlib import Path

from gpu_agent.node.identity import IdentityFile
from gpu_agent.session.types import State
from tests.bare_registry import ACK, BareRegistry, listening_registry
from tests.node.running_agent import RunningAgent, running_agent, settings_for
from tests.waiting import patience


async def first_reached(
    running: RunningAgent, one: BareRegistry, other: BareRegistry
) -> tuple[BareRegistry, BareRegistry]:
    """Wait for the agent; returns the one of two that it reached, and the other."""
    await running.until(lambda: bool(one.connections or other.connections))
    return (one, other) if one.connections else (other, one)


async def test_a_service_restart_moves_the_agent_to_the_other_address_with_its_id_and_token(
    tmp_path: Path,
) -> None:
    IdentityFile(tmp_path).save("node-A", "s3cret")
    async with listening_registry() as a, listening_registry() as b:
        settings = settings_for(f"{a.url},{b.url}", tmp_path)
        async with running_agent(settings) as running:
            one, other = await first_reached(running, a, b)
            await one.next("node_heartbeat")
            assert running.agent.session.address == one.url
            await one.connections[0].close(1012, "service restart")
            registration = await other.next("node_register")
            assert registration["node_id"] == "node-A"
            request = other.connections[0].request
            assert request is not None
            assert request.headers["Authorization"] == "Bearer s3cret"
            await other.next("node_heartbeat")
            snapshot = running.agent.snapshot()
            assert (snapshot.session.address, snapshot.registry_urls) == (other.url, (a.url, b.url))
            assert len(one.connections) == 1
            await running.stopped()


async def test_a_token_from_one_address_opens_the_other(tmp_path: Path) -> None:
    ack = {**ACK, "node_token": "s3cret"}
    async with (
        listening_registry(ack) as a,
        listening_registry(ack) as b,
        running_agent(settings_for(f"{a.url},{b.url}", tmp_path)) as running,
    ):
        one, other = await first_reached(running, a, b)
        await one.next("node_heartbeat")
        await one.connections[0].close(1001)
        await other.next("node_heartbeat")
        request = other.connections[0].request
        assert request is not None
        assert request.headers["Authorization"] == "Bearer s3cret"
        await running.stopped()


async def test_a_superseded_agent_knocks_at_no_other_address(tmp_path: Path) -> None:
    superseded = {"type": "node_error", "code": "SESSION_SUPERSEDED", "message": "a newer one"}
    async with (
        listening_registry(superseded) as a,
        listening_registry(superseded) as b,
        running_agent(settings_for(f"{a.url},{b.url}", tmp_path)) as running,
    ):
        one, other = await first_reached(running, a, b)
        await running.until(lambda: running.agent.session.state is State.YIELDED)
        await asyncio.wait_for(one.connections[0].wait_closed(), patience(5))
        assert (len(one.connections), len(other.connections)) == (1, 0)
        assert running.agent.progress().deadline is None
        await running.stopped()
