"""An agent that runs in this process, against any listener at its registry's URL."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gpu_agent.node.agent import Agent
from gpu_agent.node.gpu_readings import GpuSource, ReadGpus, open_gpus
from gpu_agent.node.identity import IdentityFile
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import Exit, SessionSettings
from tests.waiting import patience

QUICK = SessionSettings(
    backoff_first_seconds=0.02,
    startup_jitter_seconds=0,
    fallback_interval_seconds=0.05,
    change_heartbeat_seconds=0.02,
)


def settings_for(url: str, folder: Path, **more: object) -> AgentSettings:
    empty = folder / "agent.toml"
    empty.touch()
    flags = {"registry_url": url, "state_dir": folder, "simulate": "2xL4-24GB", "probe_interval_seconds": 0.1}
    return load({**flags, **more}, config=empty)


class RunningAgent:
    """An agent that runs, and how it ended."""

    def __init__(self, agent: Agent, ended: "asyncio.Task[Exit]") -> None:
        self.agent = agent
        self.ended = ended

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(patience(10)):
            while not true():
                assert not self.ended.done(), self.ended.result()
                await asyncio.sleep(0.01)

    async def stopped(self) -> Exit:
        await self.agent.stop("bye")
        async with asyncio.timeout(patience(5)):
            return await asyncio.shield(self.ended)


@asynccontextmanager
async def running_agent(
    settings: AgentSettings,
    *,
    session: SessionSettings = QUICK,
    read: ReadGpus | GpuSource | None = None,
) -> AsyncIterator[RunningAgent]:
    identity = IdentityFile(Path(settings.state_dir or ""))
    identity.load()
    gpus = open_gpus(simulate=settings.simulate, seed="test", deadline_seconds=1)
    async with gpus as source, Tasks() as tasks:
        own = GpuSource(read) if read and not isinstance(read, GpuSource) else read
        agent = Agent(settings, identity, own or source, session=session)
        yield RunningAgent(agent, tasks.start("agent", agent.run(tasks)))
        tasks.end()
