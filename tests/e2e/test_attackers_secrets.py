"""Where another user of the machine, or of the registry, may look for a token: there is none."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.bare_registry import ACK, listening_registry
from tests.children import called
from tests.e2e.place import Place
from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND, Agent, Program, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

CHILD = "gpu-agent-nvml"
JOIN, NODE = "gpuj_0123abcd_J01Ns3cret", "gpun_0123abcd_N0DEs3cret"
PASSWORD = "pr0xyS3cret"


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def secret_part(token: str) -> str:
    """What must not be seen; the id before it names a token without being one."""
    return token.split("_", 2)[2]


def all_said(*programs: Program) -> str:
    return "\n".join(json.dumps(one.lines) + "".join(one.other) for one in programs)


def process_list() -> str:
    """Every command line of the machine, as each of its users sees it."""
    words = []
    for process in psutil.process_iter():
        try:
            words.append("\0".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(words)


def child_of(agent: Agent) -> psutil.Process:
    """The process that asks the driver."""

    def look() -> psutil.Process | None:
        return called(CHILD, psutil.Process(agent.pid).children(recursive=True))

    return eventually(look, within_seconds=20, what=CHILD)


def test_no_token_is_in_the_process_list_the_childs_environment_or_a_log(
    tmp_path: Path, running: ExitStack
) -> None:
    place = Place(tmp_path, running)
    registry = place.registry("--log-level", "debug")
    join = place.join_token(registry)
    given = {
        "GPU_AGENT_JOIN_TOKEN": join,
        "HTTPS_PROXY": f"http://me:{PASSWORD}@127.0.0.1:9",
        "HF_TOKEN": PASSWORD,
        **FakeNvml(tmp_path, gpus=1).environment(),
    }
    words = ("--log-level", "debug")
    started = Agent(registry.node_url, tmp_path / "a", *words, simulate=None, environment=given)
    agent = running.enter_context(started)
    place.await_ready(registry)
    child = child_of(agent)
    secrets = {secret_part(join), secret_part(place.node_token("a")), secret_part(place.operator_token)}
    listed, inherited = process_list(), json.dumps(child.environ())
    assert "gpu_agent.probe.nvml.child" in listed
    assert [secret for secret in secrets if secret in listed] == []
    assert [secret for secret in (*secrets, PASSWORD) if secret in inherited] == []
    assert [secret for secret in (*secrets, PASSWORD) if secret in all_said(agent, registry)] == []


def test_no_token_is_in_a_message_or_in_an_answer_of_the_local_socket(tmp_path: Path) -> None:
    asyncio.run(_listen_to_an_agent(tmp_path))


async def _listen_to_an_agent(folder: Path) -> None:
    state = folder / "state"
    async with listening_registry({**ACK, "node_token": NODE}) as registry:
        with Agent(
            registry.url, state, "--log-level", "debug", environment={"GPU_AGENT_JOIN_TOKEN": JOIN}
        ) as agent:
            frames = [await registry.next("node_register"), await registry.next("node_heartbeat")]
            await registry.connections[0].close()
            frames += [await registry.next("node_register"), await registry.next("node_heartbeat")]
            shown = [presented(one) for one in registry.connections]
            answer = await asyncio.to_thread(status, state / "agent.sock")
            said = all_said(agent)
    assert shown == [f"Bearer {JOIN}", f"Bearer {NODE}"]
    text = json.dumps(frames) + answer + said
    assert [secret for secret in map(secret_part, (JOIN, NODE)) if secret in text] == []


def presented(connection: object) -> str:
    request = getattr(connection, "request", None)
    assert request is not None
    return str(request.headers["Authorization"])


def status(place: Path) -> str:
    """What the agent shows of itself on this machine."""
    words = [*COMMAND, "status", "--json", "--socket", str(place)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=patience(30))
    assert '"node-A"' in ended.stdout, ended.stderr
    return ended.stdout
